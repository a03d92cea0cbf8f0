"""Where samples and events of a run are read: in its folder, whether it runs or not, or from its control channel.

A run that is named is read from its folder, for that needs nobody who answers; one that is known by its URL is asked.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from deploy.control.target import open_run
from deploy.run_folder.address import find_folder, read_end
from deploy.run_folder.history import Events, RunHistory, Samples
from deploy.run_folder.lock import is_held


class Written(Protocol):
    """What a run has written down; `RunHistory` and `RunClient` are such."""

    def samples(
        self,
        *,
        update: int | None,
        kind: Literal["best", "worst", "heldout"] | None,
        contains: str | None,
        limit: int,
    ) -> Samples:
        """The newest texts that fit."""

    def events(self, *, after: int = -1, limit: int) -> Events:
        """The newest events whose number is above `after`."""


@dataclass(frozen=True, slots=True)
class Source:
    """A run that is read."""

    name: str
    """For people."""
    written: Written
    is_over: Callable[[], bool]
    """Whether nothing more will come."""
    folder: Path | None
    """None where it is known by its URL alone."""

    def how_it_ended(self) -> str:
        """Of a run that is over."""
        if self.folder is None:
            return f"nobody answers at {self.name} any more: the run is over"
        end = read_end(self.folder)
        how = "it left no word, so it was killed" if end is None else f"exit code {end.exit_code}: {end.reason}"
        return f"{self.name} does not run any more: {how}"

    def stacks(self) -> list[Path]:
        """Files with the stacks of processes that hung, as far as they can be reached."""
        return [] if self.folder is None else sorted((self.folder / "logs").glob("*"))


@contextmanager
def open_source(
    run: str | None, runs: Path, *, url: str | None, token: str | None, token_file: Path | None
) -> Iterator[Source]:
    """The run that a command line means; arguments and errors as of `deploy.control.target.open_run`."""
    if run is not None and url is None:
        folder = find_folder(run, runs)
        history = RunHistory(folder, most_bytes=None)  # all of it: nobody else waits for the answer
        yield Source(folder.resolve().name, history, lambda: not is_held(folder), folder)
        return
    with open_run(run, runs, url=url, token=token, token_file=token_file) as client:
        yield Source(client.name, client, client.is_over, None)
