"""The commands that steer what a live run does: pause, resume, checkpoint, set. Imports what is heavy after parsing."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from deploy.control.cli import (
    RunsOption,
    TargetArgument,
    TimeoutOption,
    TokenFileOption,
    TokenOption,
    UrlOption,
    progress,
)

if TYPE_CHECKING:
    from deploy.control.run_status import SettingsRequest

app = typer.Typer(rich_markup_mode="rich")

PAUSE_EXAMPLES = """
[bold]Examples[/]

  minichatgpt pause demo                         returns at once; the run stands still after its update

  minichatgpt pause demo --wait --reason "the disk is moved"
"""
RESUME_EXAMPLES = """
[bold]Examples[/]

  minichatgpt resume demo

  minichatgpt resume --url http://10.0.0.7:9464 --token-file control.token
"""
CHECKPOINT_EXAMPLES = """
[bold]Examples[/]

  minichatgpt checkpoint demo                    as soon as the update that runs is done

  minichatgpt checkpoint demo --timeout 60
"""
SET_EXAMPLES = """
[bold]Settings[/]

  temperature      of sampling

  learning_rate    peak rate, as ppo.optimizer.lr; all rates move by the same factor

  kl_target        nats; where ppo.kl.type is "adaptive"

  kl_coef          where ppo.kl.type is "fixed"

[bold]Examples[/]

  minichatgpt set demo kl_target=3 learning_rate=1e-4

  minichatgpt set demo temperature=0.9 --reason "too many repetitions"
"""

ReasonOption = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; goes to the log.")]


@app.command(epilog=PAUSE_EXAMPLES)
def pause(
    run: TargetArgument = None,
    reason: ReasonOption = "minichatgpt pause",
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the run stands still.")] = False,
    timeout_s: TimeoutOption = 300.0,
    url: UrlOption = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Let a live run stand still once its update is done; workers and replicas stay, and wait."""
    from pydantic import ValidationError

    from common.errors import ConfigError
    from deploy.control.models import PauseRequest
    from deploy.control.target import open_run
    from deploy.control.waits import await_pause

    try:
        wanted = PauseRequest(reason=reason)
    except ValidationError as error:
        raise ConfigError(f"--reason {reason!r}: {error.errors()[0]['msg']}") from error
    console = Console()
    with open_run(run, runs, url=url, token=token, token_file=token_file) as client:
        now = client.pause(wanted)
        if wait:
            with progress(console) as show:
                now = await_pause(client, "paused", timeout_s, show)
        console.print(
            f"{now.run} stands still after update {now.step}; `minichatgpt resume` lets it go on"
            if now.pause == "paused"
            else f"{now.run} will stand still once the running update is done",
            markup=False,
            highlight=False,
        )


@app.command(epilog=RESUME_EXAMPLES)
def resume(
    run: TargetArgument = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the run goes on.")] = False,
    timeout_s: TimeoutOption = 300.0,
    url: UrlOption = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Let a paused run go on."""
    from deploy.control.target import open_run
    from deploy.control.waits import await_pause

    console = Console()
    with open_run(run, runs, url=url, token=token, token_file=token_file) as client:
        before = client.status()
        now = client.resume()
        if wait:
            with progress(console) as show:
                now = await_pause(client, "none", timeout_s, show)
        does = "goes on" if before.pause != "none" else "was not paused"
        console.print(f"{now.run} {does}", markup=False, highlight=False)


@app.command(epilog=CHECKPOINT_EXAMPLES)
def checkpoint(
    run: TargetArgument = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, max=3600, help="Longest wait.")
    ] = 900.0,
    url: UrlOption = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Have a live run write a checkpoint, and wait until it is written and verified."""
    from deploy.control.target import open_run

    console = Console()
    with (
        open_run(run, runs, url=url, token=token, token_file=token_file) as client,
        console.status("waiting for the checkpoint"),
    ):
        info = client.checkpoint(timeout_s)
    console.print(f"[green]✓[/] checkpoint of update {info.step}, written and verified:", highlight=False)
    console.print(info.url, markup=False, highlight=False, soft_wrap=True)


@app.command(name="set", epilog=SET_EXAMPLES)
def change(
    words: Annotated[
        list[str], typer.Argument(metavar="[RUN] SETTING=VALUE...", help="Run, and what to change.", show_default=False)
    ],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; goes to log and report.")] = "",
    url: UrlOption = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Change settings of a live run from its next update on."""
    from deploy.control.target import open_run

    run, settings = (None, words) if "=" in words[0] else (words[0], words[1:])
    wanted = parse_settings(settings, reason)
    console = Console()
    with open_run(run, runs, url=url, token=token, token_file=token_file) as client:
        before = client.status().settings
        after = client.change(wanted).settings
    is_changed = False
    for name in wanted.changes():
        was, now = getattr(before, name, None), getattr(after, name, None)
        shown = "–" if was is None else f"{was:g}"
        console.print(
            f"{name} is {shown} already" if was == now else f"{name} [bold]{shown} → {now:g}[/]", highlight=False
        )
        is_changed = is_changed or was != now
    console.print("[dim]in force from the next update on[/]" if is_changed else "nothing changes")


def parse_settings(words: Sequence[str], reason: str) -> "SettingsRequest":
    """What `NAME=VALUE ...` asks for; raises ConfigError with what is legal."""
    from pydantic import ValidationError

    from common.errors import ConfigError
    from deploy.control.run_status import SettingsRequest

    legal = [name for name in SettingsRequest.model_fields if name != "reason"]
    values: dict[str, float] = {}
    for word in words:
        name, is_there, value = word.partition("=")
        if name not in legal:
            close = difflib.get_close_matches(name, legal, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(f"{word!r}: {hint}legal settings are {', '.join(legal)}, as in {legal[0]}=0.9")
        if name in values:
            raise ConfigError(f"{word!r}: {name} is given twice; leave one out")
        try:
            values[name] = float(value)
        except ValueError as error:
            got = f"{value!r}" if is_there else "no value"
            raise ConfigError(f"{name} wants a number, got {got}; write {name}=0.9 or {name}=1e-4") from error
    try:
        return SettingsRequest.model_validate({**values, "reason": reason})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        got = f" (got {first['input']})" if place in values else ""
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{place}: {message}{got}" if place else message) from error
