"""Which run a command means: one of this machine by name or folder, or any by the URL of its control channel.

`RUN` or `--url`; the token comes from `--token`, `--token-file`, the run folder, or the environment, in this order.
"""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from common.errors import ConfigError, ControlError
from deploy.control.client import RunClient, not_running
from deploy.control.tokens import TOKEN_NAME, token_in
from deploy.http_url import http_url
from deploy.run_folder.address import find_folder, read_address
from deploy.run_folder.lock import holder_pid, is_held, process_exists

URL_VARIABLE: Final = "MINICHATGPT_URL"
TOKEN_VARIABLE: Final = "MINICHATGPT_TOKEN"


def open_run(
    run: str | None,
    runs: Path,
    *,
    url: str | None = None,
    token: str | None = None,
    token_file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> RunClient:
    """The run that a command line means.

    Args:
        run: name of a run in `runs`, or its folder.
        runs: where run folders are.
        url: of its control channel, instead of `run`.
        token: to show it.
        token_file: file that holds the token.
        environ: where URL and token are looked for otherwise.

    Raises:
        ConfigError: no run is named, or two are; or the URL or the token is none.
        DataError: there is no such folder; the message names those that are there.
        ControlError: nobody runs there, or whoever does cannot be asked.
    """
    if run is not None and url is not None:
        raise ConfigError(f"RUN is {run!r} and --url is {url!r}: two runs are named; leave one out")
    if token is not None and token_file is not None:
        raise ConfigError("--token and --token-file both give a token; leave one out")
    given = token if token_file is None else token_in(token_file)
    from_environment = environ.get(TOKEN_VARIABLE) or None
    if run is not None:
        return find_run(run, runs, token=given, other=from_environment)
    url = url or environ.get(URL_VARIABLE) or None
    if url is None:
        raise ConfigError(
            f"no run is named; give its name or folder, or --url URL of its control channel (or set {URL_VARIABLE})"
        )
    return RunClient(None, None, checked_url(url), _checked_token(given or from_environment))


def find_run(name: str, runs: Path, *, token: str | None = None, other: str | None = None) -> RunClient:
    """The live run of that name in `runs`, or in that folder.

    Args:
        name: or folder.
        runs: where run folders are.
        token: to show it; None: the one in its folder.
        other: to show it where there is none in its folder that can be read.

    Raises:
        DataError: there is no such folder; the message names those that are there.
        ControlError: nobody runs there, or whoever does cannot be asked; the message says how the last run ended.
    """
    folder = find_folder(name, runs)
    pid = holder_pid(folder)
    address = read_address(folder)
    if address is not None and address.host != socket.gethostname():
        raise ControlError(
            f"{folder.name} runs on {address.host}, or did; run the command on that machine, or give the URL of its "
            f"control channel instead of the name: --url http://{address.host}:PORT --token-file "
            f"{folder / TOKEN_NAME}, see docs/control.md"
        )
    if not is_held(folder) or (pid is not None and not process_exists(pid)):
        raise ControlError(not_running(folder))
    if address is None or address.control_url is None:
        raise ControlError(
            f"{folder.name} runs (process {pid}) and has no control channel: it is about to start or to end, or "
            "control.enabled is false"
        )
    shown = _checked_token(token or _in_folder(folder) or other)
    return RunClient(folder, address.pid, address.control_url, shown)


def checked_url(url: str) -> str:
    """The URL; raises ConfigError if it is not that of a control channel."""
    http_url("--url", url, legal="give one as http://127.0.0.1:9464, and its token by --token-file")
    return url.rstrip("/")


def _checked_token(token: str | None) -> str | None:
    if token is not None and (not token.isascii() or not token.isprintable() or " " in token):
        raise ConfigError(
            "the token holds a space, a line break or a letter beyond ASCII; give it as it is in the file"
        )
    return token


def _in_folder(folder: Path) -> str | None:
    """The token of the folder; None where it cannot be read, for on loopback reading needs none."""
    try:
        return token_in(folder / TOKEN_NAME)
    except ControlError:
        return None
