"""What single routes of the control channel take and answer, beyond `run_status.py`. Imports pydantic only."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, StringConstraints

from common.config_base import Config
from deploy.control.run_status import PoolStatus, Status
from deploy.run_folder.history import MAX_ROWS

MAX_INT = 2**53 - 1
"""Largest whole number that all readers of JSON agree on."""


def _one_line(reason: str) -> str:
    if not reason.isprintable():
        raise ValueError("reason must be one line of printable characters")
    return reason


class Readiness(Status):
    """That the run does its work."""

    status: Literal["ready"] = "ready"
    """The only value; else the answer is a Problem with status 503."""


class Workers(Status):
    """The members of both pools."""

    pools: dict[str, PoolStatus]
    """By role, `rollout` and `reward`; empty while the stage that runs has none."""


class LedgerStatus(Status):
    """Where the dispatched samples are."""

    ledger: dict[str, int | dict[str, int]]
    """Samples by fate; `dropped` by reason. Empty while the stage that runs has none."""
    mismatch: int
    """Dispatched less the sum of the fates: 0, or a sample was lost or counted twice."""


class PauseRequest(Config):
    """Why the run shall stand still."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_one_line)] = (
        "over the control channel"
    )
    """Goes to the log."""


class UpdatesQuery(Config):
    """Which updates."""

    after: int = Field(default=0, ge=0, le=MAX_INT)
    """Only updates later than this one."""
    limit: int = Field(default=MAX_ROWS, ge=1, le=MAX_ROWS)
    """At most so many, the newest."""
    thinned: bool = False
    """The newest half of these in full, before them every second, fourth, ..., so that they reach back to `after`."""


class EventsQuery(Config):
    """Which events."""

    after: int = Field(default=-1, ge=-1, le=MAX_INT)
    """Only events with a higher number."""
    limit: int = Field(default=MAX_ROWS, ge=1, le=MAX_ROWS)
    """At most so many, the newest."""
    thinned: bool = False
    """The newest half of these in full, before them every second, fourth, ..., so that they reach back to `after`."""


class SamplesQuery(Config):
    """Which samples."""

    update: int | None = Field(default=None, ge=1, le=MAX_INT)
    """Only of this update."""
    kind: Literal["best", "worst", "heldout"] | None = None
    """Only of this kind."""
    contains: Annotated[str, StringConstraints(min_length=1, max_length=200)] | None = None
    """Only with this text in the response, case ignored."""
    limit: int = Field(default=20, ge=1, le=MAX_ROWS)
    """At most so many, the newest."""
