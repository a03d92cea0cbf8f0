"""The command `watch`: Prometheus on this machine, told of all runs in a folder. Thin: it writes a configuration and
starts the program that is installed. Grafana is told where the dashboards are, and started by whoever has it.
"""

import os
import shutil
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer
from rich.console import Console

from common.errors import ConfigError
from deploy.control.cli import RunsOption
from deploy.monitoring.scrape_target import TARGETS

app = typer.Typer(rich_markup_mode="rich")

PACKAGE: Final = Path(__file__).parents[1]
HOST: Final = "127.0.0.1"
PROMETHEUS: Final = "prometheus"
TOKEN_FILE: Final = "/etc/prometheus/minichatgpt.token"
NO_TOKEN: Final = f"    # authorization:\n    #   credentials_file: {TOKEN_FILE}"
"""As it stands in prometheus.yml."""
ALERTING: Final = """alerting:
  alertmanagers:
    - static_configs:
        - targets: ["127.0.0.1:9093"] # Alertmanager; where none runs, Prometheus still shows alerts
"""
"""Of prometheus.yml."""

EXAMPLES = """
[bold]Examples[/]

  minichatgpt watch                                        Prometheus at http://127.0.0.1:9090 until Ctrl-C

  minichatgpt watch --token-file read.token                runs off loopback, which ask for it

  minichatgpt watch --no-start                             write its configuration, and show how to start it

  minichatgpt watch --alertmanager 127.0.0.1:9093          send alerts there, too
"""


@app.command(epilog=EXAMPLES)
def watch(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Prometheus, on loopback.")] = 9090,
    ray_folder: Annotated[
        Path, typer.Option("--ray-folder", metavar="FOLDER", help="Ray's --temp-dir, for the metrics of nodes.")
    ] = Path("/tmp/ray"),
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            show_default=False,
            help="File with the token that all these runs were given (control.read_token_env), for those off loopback.",
        ),
    ] = None,
    alertmanager: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", show_default=False, help="Alertmanager to send alerts to; none by default."),
    ] = None,
    start: Annotated[bool, typer.Option("--start/--no-start", help="Start Prometheus in this terminal.")] = True,
    runs: RunsOption = Path("runs"),
) -> None:
    """Watch all live runs of this machine in Prometheus, with the alerts and recording rules of Mini-ChatGPT."""
    from deploy.control.tokens import token_in

    folder = (runs / ".watch").absolute()
    if not runs.is_dir():
        raise ConfigError(
            f"--runs {runs} is no folder, so nothing in it can be watched; give the folder of your runs, start a run "
            f"first, or make it: mkdir -p {runs}"
        )
    (runs / TARGETS).mkdir(exist_ok=True)
    if token_file is not None:
        token_in(token_file)
    write_configuration(
        folder,
        targets=(runs / TARGETS).absolute(),
        ray_folder=ray_folder.absolute(),
        port=port,
        token_file=None if token_file is None else token_file.absolute(),
        alertmanager=alertmanager,
    )
    command = [
        PROMETHEUS,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={HOST}:{port}",
        "--log.level=warn",
    ]
    _show(command, folder, port)
    if start:
        _become(command, folder)


def _show(command: list[str], folder: Path, port: int) -> None:
    console = Console()
    console.print(" \\\n  ".join(command), markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"[dim]http://{HOST}:{port} (alerts: /alerts, or /classic/alerts of Debian's package); Grafana: "
        f"GF_PATHS_PROVISIONING={folder / 'grafana'} grafana-server[/]",
        soft_wrap=True,
    )


def _become(command: list[str], folder: Path) -> NoReturn:
    """Go on as Prometheus, so that Ctrl-C and signals are its own."""
    program = shutil.which(PROMETHEUS)
    if program is None:
        raise ConfigError(
            f"{PROMETHEUS} is not installed here; `apt-get install prometheus` on Debian, else "
            f"https://prometheus.io/download/. Its configuration is written: {folder / 'prometheus.yml'}"
        )
    os.execv(program, command)


def write_configuration(
    folder: Path,
    *,
    targets: Path,
    ray_folder: Path,
    port: int,
    token_file: Path | None = None,
    alertmanager: str | None = None,
) -> None:
    """Write prometheus.yml, and Grafana's provisioning, with the paths of this machine.

    Args:
        folder: written to.
        targets: where runs announce themselves.
        ray_folder: where Ray announces its own.
        port: of Prometheus.
        token_file: holds the token of runs off loopback, read at each scrape; None: those cannot be scraped.
        alertmanager: host and port that alerts are sent to; None: they are shown only.
    """
    told = "" if alertmanager is None else ALERTING.replace("127.0.0.1:9093", alertmanager)
    shown = NO_TOKEN if token_file is None else NO_TOKEN.replace("# ", "").replace(TOKEN_FILE, str(token_file))
    grafana, provisioning = folder / "grafana", PACKAGE / "grafana" / "provisioning"
    _fill(
        PACKAGE / "prometheus" / "prometheus.yml",
        folder / "prometheus.yml",
        {
            "../../runs/.targets/": f"{targets}/",
            "/tmp/ray/": f"{ray_folder}/",
            "rules/*.yml": f"{PACKAGE / 'prometheus' / 'rules'}/*.yml",
            ALERTING: told,
            NO_TOKEN: shown,
        },
    )
    _fill(
        provisioning / "datasources" / "prometheus.yml",
        grafana / "datasources" / "prometheus.yml",
        {"http://127.0.0.1:9090": f"http://{HOST}:{port}"},
    )
    _fill(
        provisioning / "dashboards" / "minichatgpt.yml",
        grafana / "dashboards" / "minichatgpt.yml",
        {"/var/lib/grafana/dashboards/minichatgpt": str(PACKAGE / "grafana" / "dashboards")},
    )


def _fill(template: Path, path: Path, changes: dict[str, str]) -> None:
    text = template.read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text, f"{template} has lost {old}"
        text = text.replace(old, new)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
