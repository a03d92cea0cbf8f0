"""The commands `minichatgpt config ...`: look at a configuration without running it. Imports what is heavy late."""

import difflib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from common.config import RunConfig

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="Look at a configuration without running it.")

ConfigArgument = Annotated[
    str, typer.Argument(metavar="CONFIG", help="TOML file, or the name of one that comes along, as `demo` or `tiny`.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Change one setting, as in --set ppo.clip_eps=0.1; may be repeated."),
]

SHOW_EXAMPLES = """
[bold]Examples[/]

  minichatgpt config show demo > my.toml                         a whole configuration to start from

  minichatgpt config show tiny --set ppo.clip_eps=0.1
"""
VALIDATE_EXAMPLES = """
[bold]Examples[/]

  minichatgpt config validate my.toml

  minichatgpt config validate demo --set rollout.workers=0       says what is legal
"""
EXPLAIN_EXAMPLES = """
[bold]Examples[/]

  minichatgpt config explain demo

  minichatgpt config explain demo --read                         reads the data too: texts, steps, vocabulary

  minichatgpt config explain demo --set ppo.minibatch_sequences=32

  minichatgpt config explain demo --json | jq .traffic.bytes_per_publish
"""
FIELDS_EXAMPLES = """
[bold]Examples[/]

  minichatgpt config fields                                      all settings

  minichatgpt config fields ppo.kl

  minichatgpt config fields clip                                 all that have it in their name
"""


def find_config(name: str) -> Path:
    """A file on disk, or one of those that come with the package; raises ConfigError if a bare name is neither."""
    from common.errors import ConfigError

    path, packaged = Path(name), {p.stem: p for p in (Path(__file__).parent / "configs").glob("*.toml")}
    if path.is_file() or path.suffix == ".toml":
        return path
    if name not in packaged:
        raise ConfigError(f"{name} does not exist, and these come along: {', '.join(sorted(packaged))}")
    return packaged[name]


def load(config: str, changes: list[str] | None) -> "RunConfig":
    """The configuration that a command line names; raises ConfigError."""
    from common.config_file import load_config

    return load_config(find_config(config), changes or [])


@app.command(epilog=SHOW_EXAMPLES)
def show(config: ConfigArgument, changes: SetOption = None) -> None:
    """Print the resolved configuration, every default included, as TOML."""
    from common.config_file import to_toml

    sys.stdout.write(to_toml(load(config, changes)))


@app.command(epilog=VALIDATE_EXAMPLES)
def validate(config: ConfigArgument, changes: SetOption = None) -> None:
    """Check a configuration; errors say what to change."""
    Console().print(f"[green]✓[/] {load(config, changes).name} is valid")


@app.command(epilog=EXPLAIN_EXAMPLES)
def explain(
    config: ConfigArgument,
    changes: SetOption = None,
    read: Annotated[bool, typer.Option("--read", help="Read the data, for numbers of texts and of steps.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs: the bare numbers.")] = False,
) -> None:
    """Say what follows from a configuration: steps, samples, tokens, memory, traffic, disk, and why.

    Nothing is run, no weights are loaded and nothing is downloaded.
    """
    settings = load(config, changes)
    os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: a model is here, or its size is not known
    from deploy.explain.explain import explain as figures_of
    from deploy.explain.view import print_groups, to_json

    groups = figures_of(settings, read=read)
    if as_json:
        sys.stdout.write(to_json(settings.name, groups))
    else:
        print_groups(settings.name, groups, Console())


@app.command(epilog=FIELDS_EXAMPLES)
def fields(
    name: Annotated[str, typer.Argument(metavar="[PART]", help="Part of the name; none: all settings.")] = "",
) -> None:
    """Look settings up: type, default, meaning."""
    from common.errors import ConfigError
    from deploy.config_fields import settings
    from deploy.explain.view import print_settings

    known = settings()
    found = [setting for setting in known if name in setting.path]
    if not found:
        names = sorted({setting.field.name for setting in known})
        near = difflib.get_close_matches(name.rpartition(".")[2], names, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"no setting has {name!r} in its name{hint}")
    print_settings(found, Console())
