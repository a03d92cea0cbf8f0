"""The command `minichatgpt`. Heavy packages are imported after parsing, so that `--help` answers at once."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from deploy import config_cli
from deploy.bench import cli as bench_cli
from deploy.chat import cli as chat_cli
from deploy.compare import cli as compare_cli
from deploy.config_cli import ConfigArgument, SetOption
from deploy.control import cli as control_cli
from deploy.control import steer_cli as control_steer_cli
from deploy.control.cli import RunsOption
from deploy.exit_codes import FAILED, INTERRUPTED
from deploy.history import cli as history_cli
from deploy.jobs import cli as jobs_cli
from deploy.jobs.options import InsecureOption
from deploy.monitoring import watch_cli
from deploy.on_ray.environment import THREADS
from deploy.replay import cli as replay_cli
from deploy.top import cli as top_cli
from deploy.trace import cli as trace_cli

if TYPE_CHECKING:
    from common.config import RunConfig

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="RLHF end to end: supervised fine-tuning, reward model and PPO, on Ray or in one process.",
)
app.add_typer(config_cli.app, name="config")
app.add_typer(jobs_cli.app)
app.add_typer(control_cli.app)
app.add_typer(control_steer_cli.app)
app.add_typer(top_cli.app)
app.add_typer(compare_cli.app)
app.add_typer(chat_cli.app)
app.add_typer(replay_cli.app)
app.add_typer(watch_cli.app)
app.add_typer(history_cli.app)
app.add_typer(bench_cli.app)
app.add_typer(trace_cli.app)

LocalOption = Annotated[bool, typer.Option("--local", help="Everything in this process, without Ray.")]
AddressOption = Annotated[
    str | None, typer.Option(help="Address of a running Ray cluster; else one is started on this machine.")
]
PlaceOption = Annotated[
    str, typer.Option("--runs", metavar="PLACE", help="Where run folders are: a path, or a URL as s3://bucket/runs.")
]

EXAMPLES = """
[bold]Examples[/]

  minichatgpt run demo                                     the whole pipeline on film reviews, on a local Ray cluster

  minichatgpt run tiny --local                             seconds long, in one process, for debugging

  minichatgpt run demo --set rollout.workers=4 --again ppo

[bold]Exit codes[/]

  0    all stages are done

  1    an error; the message says what to change

  2    the command line is not understood

  3    ended by `minichatgpt stop`; the same command goes on from there

  4    ended by a guard rail of learning; docs/guards.md says how to go on

  130  ended by Ctrl-C; a second one ends it at once, with what the last checkpoint holds

  143  ended by SIGTERM
"""


@app.command(epilog=EXAMPLES)
def run(
    config: ConfigArgument,
    changes: SetOption = None,
    local: LocalOption = False,
    address: AddressOption = None,
    insecure: InsecureOption = False,
    again: Annotated[
        list[str] | None, typer.Option("--again", metavar="STAGE", help="Run this stage even if it is done.")
    ] = None,
    runs: PlaceOption = "runs",
    trace: Annotated[
        bool, typer.Option("--trace", help="Write trace.json into the run folder: who did what when, for Perfetto.")
    ] = False,
) -> None:
    """Run the stages that CONFIG names; those done before with the same inputs are skipped."""
    settings = _settings(config, changes, local=local, address=address)
    from common.run_place import workplace
    from deploy.early_start import start_early

    folder, stages = workplace(runs) / settings.name, frozenset(again or ())
    early = None
    try:
        if not local and address is None:
            early = start_early(settings, folder, insecure=insecure, again=stages)
        from deploy.run import run_pipeline

        run_pipeline(
            settings,
            folder,
            local=local,
            address=address,
            again=stages,
            insecure=insecure,
            early=early,
            with_trace=trace,
        )
    except KeyboardInterrupt:
        Console(stderr=True).print(
            "[yellow]Interrupted.[/] Finished stages are kept; the same command goes on from there."
        )
        raise
    finally:
        if early is not None:
            early.close()  # where the run was refused before a runtime was there to do it


@app.command()
def preflight(
    config: ConfigArgument,
    changes: SetOption = None,
    local: LocalOption = False,
    address: AddressOption = None,
    insecure: InsecureOption = False,
    runs: PlaceOption = "runs",
) -> None:
    """Check what `run` checks before it starts, and show what was measured; nothing is run or left behind."""
    settings = _settings(config, changes, local=local, address=address)
    from common.run_place import workplace
    from deploy.preflight.cli import show_preflight

    show_preflight(
        settings, workplace(runs) / settings.name, local=local, address=address, console=Console(), insecure=insecure
    )


def _settings(config: str, changes: list[str] | None, *, local: bool, address: str | None) -> "RunConfig":
    """The configuration, and the environment in which it is to be run."""
    from common.errors import ConfigError

    settings = config_cli.load(config, changes)
    if local and address:
        raise ConfigError("--local runs without Ray, so --address means nothing; leave one of them out")
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    return settings


@app.command()
def report(
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="Name of a run, or its folder.")],
    runs: RunsOption = Path("runs"),
) -> None:
    """Write report.html of a run anew, and print its summary."""
    from deploy.run_folder.address import find_folder

    folder = find_folder(run_name, runs)
    from deploy.run import show

    show(folder, Console())


def main() -> None:
    """Entry point: errors of ours become one message and an exit code, see `deploy/exit_codes.py`."""
    from common.errors import MiniChatGPTError, RunStopped

    console = Console(stderr=True)
    try:
        app()
    except RunStopped as stopped:
        console.print(str(stopped), markup=False, highlight=False, soft_wrap=True)
        sys.exit(stopped.exit_code)
    except MiniChatGPTError as error:
        console.print(f"[bold red]{type(error).__name__}[/]", highlight=False)
        for text in (str(error), *getattr(error, "__notes__", ())):
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
