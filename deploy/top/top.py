"""`minichatgpt top`: a live run in the terminal, looked at again and again, with keys that steer it."""

import time
from typing import Final

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from common.errors import ControlError
from deploy.console import one_line
from deploy.control.client import RunClient
from deploy.control.models import PauseRequest
from deploy.control.run_status import RunStatus, ScaleRequest
from deploy.top.keyboard import Keyboard, keyboard
from deploy.top.view import KEYS, lines
from deploy.top.watching import View, Watcher

NOTE_S: Final = 6.0
"""For how long the answer to a key is shown."""
PATIENCE: Final = 3
"""Looks in a row that may fail before `top` gives up."""


def print_once(client: RunClient, console: Console) -> None:
    """One frame, as long as it takes; raises ControlError if the run does not answer."""
    view = Watcher(client).look()
    for line in lines(view, width=console.width):
        console.print(line, soft_wrap=True)


def watch(client: RunClient, console: Console, *, interval_s: float) -> None:
    """Show the run until `q` is pressed, or it has ended.

    Raises:
        ControlError: it does not answer any more.
        KeyboardInterrupt: Ctrl-C.
    """
    with keyboard() as keys, Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        Top(client, keys, live).run(interval_s)


class Top:
    """The loop: look, show, wait for a key.

    Args:
        client: the run.
        keys: what is pressed.
        live: the screen.
    """

    def __init__(self, client: RunClient, keys: Keyboard, live: Live) -> None:
        self._client, self._keys, self._live = client, keys, live
        self._watcher = Watcher(client)
        self._note = Text()
        self._noted_at = float("-inf")

    def run(self, interval_s: float) -> None:
        """Until `q`, or the run has ended."""
        failures, view = 0, self._watcher.look()
        while self._show_for(view, interval_s):
            try:
                failures, view = 0, self._watcher.look()
            except ControlError as error:
                failures += 1
                if self._client.is_over():
                    return
                if failures >= PATIENCE:
                    raise
                self._say(str(error), "bold red")

    def _show_for(self, view: View, interval_s: float) -> bool:
        """Show a view until the next look is due; false if it is time to leave."""
        self._show(view)
        key = self._keys.read(interval_s)
        if key == "q":
            return False
        if key is not None:
            self._press(key, view.status)
        return True

    def _show(self, view: View) -> None:
        is_noted = time.monotonic() - self._noted_at < NOTE_S
        note = self._note if is_noted else Text(KEYS if self._keys.is_there else "Ctrl-C leaves", "dim")
        size = self._live.console.size
        self._live.update(Group(*lines(view, width=size.width, height=size.height, note=note.copy())), refresh=True)

    def _press(self, key: str, status: RunStatus) -> None:
        """Do what a key asks for; a refusal is shown, and the show goes on."""
        try:
            said = self._do(key, status)
        except ControlError as error:
            self._say(str(error), "bold red")
            return
        self._say(said, "bold")

    def _do(self, key: str, status: RunStatus) -> str:
        if key == "p":
            if status.pause == "none":
                self._client.pause(PauseRequest(reason="minichatgpt top"))
                return "it stands still once the running update is done"
            self._client.resume()
            return "it goes on"
        if key in "+-" and "rollout" in status.pools:
            target = status.pools["rollout"].target + (1 if key == "+" else -1)
            if target < 1:
                raise ControlError("there must be 1 rollout worker or more")
            self._client.scale(ScaleRequest(rollout_workers=target))
            return f"{target} rollout workers are asked for"
        return KEYS

    def _say(self, text: str, style: str) -> None:
        self._note, self._noted_at = Text(one_line(text), style), time.monotonic()
