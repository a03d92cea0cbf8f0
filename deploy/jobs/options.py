"""Options of the command line that lead to a cluster. Imports nothing heavy."""

from typing import Annotated

import typer

DashboardOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        show_default=False,
        help="Dashboard of a Ray cluster, as http://HEAD:8265, where RUN is a job: by `launch`. Instead of --url.",
    ),
]
InsecureOption = Annotated[
    bool,
    typer.Option(
        "--insecure",
        help="Accept a cluster beyond this machine that asks for no token: whoever reaches its ports runs code on it.",
    ),
]
