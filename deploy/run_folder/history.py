"""What a run has written down so far, as the control channel shows it: updates, samples, events.

Read from the files of the run folder, newest last, so that a run that was resumed shows all of it. Imports pydantic
only.
"""

import math
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import ValidationError

from deploy.control.run_status import Status
from deploy.run_folder.newest_lines import count_lines, newest_lines, open_lines
from deploy.run_folder.thinning import every

MAX_ROWS = 1000
"""Most rows of one answer."""
MAX_BYTES = 32 << 20
"""Of samples.jsonl, read for one answer: some 50 000 texts, a second of work."""
Row = TypeVar("Row", bound=Status)
_STEP = re.compile(rb'\{"step": ?(\d{1,15}),')
"""How a line of metrics.jsonl begins; another beginning costs time and nothing else."""


class UpdateRow(Status):
    """One update: a line of metrics.jsonl."""

    step: int
    """Updates done, this one included."""
    identity: str
    """Of the weights that it made, lineage and step."""
    weights_hash: str = ""
    """xxh3-64 of the published policy, in hexadecimal digits."""
    metrics: dict[str, float | None]
    """By name; docs/runs.md says what they are."""
    seconds: dict[str, float]
    """Wall seconds by phase."""
    settings: dict[str, float] = {}
    """Settings that were in force, of those that may change at run time; those that the run has."""
    time: datetime | None = None
    """When it was recorded; None where an older version wrote it."""


class SampleRow(Status):
    """One text: a line of samples.jsonl. The model wrote it: whoever shows it must escape it."""

    kind: Literal["best", "worst", "heldout"]
    """Best or worst of its update, or an answer to a held-out prompt."""
    step: int | None = None
    """Update."""
    draw_index: int | None = None
    """Position of the prompt in the prompt stream."""
    prompt: str
    """Text."""
    response: str
    """Text."""
    score: float | None = None
    """Of the reward service."""
    kl_seq_sum: float | None = None
    """To the reference, summed over the response, in nats."""
    response_before: str | None = None
    """What the policy answered before PPO; of held-out prompts only."""
    score_before: float | None = None
    """Score of that."""


class EventRow(Status):
    """Something that an operator wants to know: a line of events.jsonl."""

    number: int
    """Position among the run's events, from 0."""
    time: datetime
    """When."""
    event: str
    """Kind."""
    slot: str = ""
    """Member that it is about."""
    text: str
    """In words."""


class Updates(Status):
    """Answer to GET /v1/updates."""

    updates: tuple[UpdateRow, ...]
    """Oldest first."""


class Samples(Status):
    """Answer to GET /v1/samples."""

    samples: tuple[SampleRow, ...]
    """Newest update first; within one, the best before the worst."""
    is_complete: bool = True
    """False: only the end of a long file was looked through, and older samples may fit too."""


class Events(Status):
    """Answer to GET /v1/events."""

    events: tuple[EventRow, ...]
    """Oldest first."""


class RunHistory:
    """The files of a run folder, read anew at each call and from their ends; safe to use from several threads.

    Files may be absent, grow, and be replaced by shorter ones meanwhile. A line that makes no sense, as one that was
    being written when the run was killed, is passed over; `minichatgpt report` names it.

    Args:
        folder: of the run.
        most_bytes: read at most about so many of samples.jsonl in one call, from its end; None: all of it.
    """

    def __init__(self, folder: Path, *, most_bytes: int | None = MAX_BYTES) -> None:
        self._folder = folder
        self._most_bytes = most_bytes

    def updates(self, *, after: int = 0, limit: int = MAX_ROWS, thinned: bool = False) -> Updates:
        """The newest `limit` updates later than update `after`; or all of these, thinned to at most so many."""
        rows: list[UpdateRow] = []
        k, whole_from = 1, 0
        with open_lines(self._folder / "metrics.jsonl") as opened:
            for line in newest_lines(*opened) if opened else ():
                if rows and _is_thinned_out(line, k, whole_from):
                    continue
                row = _parsed(line, UpdateRow)
                if row is None or (rows and row.step >= rows[-1].step):  # of a lineage that was gone back on
                    continue
                if row.step <= after or len(rows) >= limit:
                    break
                if thinned and not rows:
                    k, whole_from = every(after + 1, row.step, most=limit)
                rows.append(row)
        return Updates(updates=tuple(reversed(rows)))

    def samples(
        self,
        *,
        update: int | None = None,
        kind: Literal["best", "worst", "heldout"] | None = None,
        contains: str | None = None,
        limit: int = 20,
    ) -> Samples:
        """The newest samples that fit: of an update, of a kind, with a text in the response, case ignored.

        Held-out ones come first, for they are of the policy at the end. Within an update, the best before the worst.
        """
        sought = None if contains is None else contains.casefold()
        rows: list[SampleRow] = []
        is_complete = True
        for row in self._newest_samples():
            if row is None:
                is_complete = False
                break
            is_older = update is not None and row.step is not None and row.step < update
            if is_older or (len(rows) >= limit and row.step != rows[-1].step):
                break
            if (
                (update is None or row.step == update)
                and kind in (None, row.kind)
                and (sought is None or sought in row.response.casefold())
            ):
                rows.append(row)
        rows.reverse()  # as written: the best of an update before the worst
        rows.sort(key=lambda row: -math.inf if row.step is None else -row.step)
        return Samples(samples=tuple(dict.fromkeys(rows))[:limit], is_complete=is_complete)

    def _newest_samples(self) -> Iterator[SampleRow | None]:
        """Without those of lineages that were gone back on; None at last where the file is not read to its start."""
        oldest: float = math.inf
        with open_lines(self._folder / "samples.jsonl") as opened:
            for line in newest_lines(*opened, most_bytes=self._most_bytes) if opened else ():
                row = None if line is None else _sample(line)
                if line is None or (row is not None and (row.step is None or row.step <= oldest)):
                    yield row
                    oldest = oldest if row is None or row.step is None else row.step

    def events(self, *, after: int = -1, limit: int = MAX_ROWS, thinned: bool = False) -> Events:
        """The newest `limit` events whose number is above `after`; or all of these, thinned to at most so many."""
        rows: list[EventRow] = []
        with open_lines(self._folder / "events.jsonl") as opened:
            number = count_lines(*opened) if opened else 0
            k, whole_from = every(after + 1, number - 1, most=limit) if thinned else (1, 0)
            for line in newest_lines(*opened) if opened else ():
                number -= 1
                if number <= after or len(rows) >= limit:
                    break
                if number < whole_from and number % k:
                    continue
                event = _parsed(line, _Event)
                if event is not None:
                    rows.append(EventRow(number=number, **event.model_dump()))
        return Events(events=tuple(reversed(rows)))


class _Event(Status):
    """A line of events.jsonl, which does not hold its number: that is its position in the file."""

    time: datetime
    event: str
    slot: str = ""
    text: str


class _Heldout(Status):
    """A line of samples.jsonl about a held-out prompt."""

    kind: Literal["heldout"]
    prompt: str
    before: str
    after: str
    score_before: float | None = None
    score_after: float | None = None


def _is_thinned_out(line: bytes | None, k: int, whole_from: int) -> bool:
    """Whether an update's line need not be looked at: a long run has many, and most of them are not shown."""
    if k == 1 or line is None or (match := _STEP.match(line)) is None:
        return False
    step = int(match[1])
    return step < whole_from and step % k > 0


def _parsed(line: bytes | None, model: type[Row]) -> Row | None:
    """None where the line is not one of that kind."""
    try:
        return model.model_validate_json(line or b"")
    except ValidationError:
        return None


def _sample(line: bytes) -> SampleRow | None:
    heldout = _parsed(line, _Heldout)
    if heldout is None:
        row = _parsed(line, SampleRow)
        return row if row is not None and row.step is not None else None
    return SampleRow(
        kind="heldout",
        prompt=heldout.prompt,
        response=heldout.after,
        score=heldout.score_after,
        response_before=heldout.before,
        score_before=heldout.score_before,
    )
