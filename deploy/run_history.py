"""What a run has written down so far, as the control channel shows it: updates, samples, events.

Read from the files of the run folder, newest last, so that a run that was resumed shows all of it. Imports pydantic
only.
"""

from datetime import datetime
from pathlib import Path
from typing import Literal

from deploy.run_status import Status

MAX_ROWS = 1000
"""Most rows of one answer."""


class UpdateRow(Status):
    """One update: a line of metrics.jsonl."""

    step: int
    """Updates done, this one included."""
    identity: str
    """Of the weights that it made, lineage and step."""
    metrics: dict[str, float | None]
    """By name; docs/runs.md says what they are."""
    seconds: dict[str, float]
    """Wall seconds by phase."""


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


class Events(Status):
    """Answer to GET /v1/events."""

    events: tuple[EventRow, ...]
    """Oldest first."""


class RunHistory:
    """The files of a run folder, read anew at each call.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def updates(self, *, after: int = 0, limit: int = MAX_ROWS) -> Updates:
        """The newest `limit` updates later than update `after`."""
        raise NotImplementedError

    def samples(
        self,
        *,
        update: int | None = None,
        kind: Literal["best", "worst", "heldout"] | None = None,
        contains: str | None = None,
        limit: int = 20,
    ) -> Samples:
        """The newest samples that fit: of an update, of a kind, with a text in the response, case ignored."""
        raise NotImplementedError

    def events(self, *, after: int = -1, limit: int = MAX_ROWS) -> Events:
        """The newest `limit` events whose number is above `after`."""
        raise NotImplementedError
