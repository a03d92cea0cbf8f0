"""`python -m deploy.autoscaler RUN_FOLDER [--set autoscaler.max_workers=4] [--out trace.json]`: what the autoscaler
would have decided in a run that is recorded, whether it had one or not.
"""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from common.config_file import load_config
from common.errors import MiniChatGPTError
from deploy.autoscaler.recorded_trace import Trace, decisions, read_trace


def replay(
    folder: Annotated[Path, typer.Argument(help="Folder of a run whose PPO has begun.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting of its configuration, as autoscaler.max_workers=4."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write what the policy sees to this file, as JSON.")] = None,
) -> None:
    """Show what the autoscaler would have decided after each update of a recorded run."""
    try:
        trace = read_trace(folder)
        config = load_config(folder / "config.toml", overrides or ()).autoscaler
    except MiniChatGPTError as error:
        raise typer.BadParameter(str(error)) from error
    if out is not None:
        out.write_bytes(TypeAdapter(Trace).dump_json(trace, indent=1) + b"\n")
    table = Table("update", "workers", "learner waits", "decision", "because", box=None, pad_edge=False)
    for seen, decision in decisions(config, trace):
        decided = decision.direction if decision.direction == "hold" else f"{decision.direction} to {decision.target}"
        waits = f"{100 * seen.learner_wait_fraction:.0f} %"
        table.add_row(str(seen.step), str(seen.active), waits, decided, decision.reason)
    Console().print(table)


if __name__ == "__main__":
    typer.run(replay)
