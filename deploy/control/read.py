"""Routes of the control channel that only look: whether the run works, how it is, what it has written down."""

from typing import Annotated

from fastapi import Query, Request, Response
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException

from deploy.control.calls import Calls
from deploy.control.models import (
    EventsQuery,
    LedgerStatus,
    Readiness,
    SamplesQuery,
    UpdatesQuery,
    Workers,
)
from deploy.control.run_controls import Controls
from deploy.control.run_status import Health, RunStatus
from deploy.run_folder.history import Events, RunHistory, Samples, Updates


class ReadRoutes:
    """The endpoints.

    Args:
        controls: the run.
        asking: calls of the run.
        history: what the run has written down.
        reading: calls of the history, which goes on answering where the run hangs.
        registry: what GET /metrics shows.
    """

    def __init__(
        self, controls: Controls, asking: Calls, history: RunHistory, reading: Calls, registry: Collector
    ) -> None:
        self._controls = controls
        self._asking = asking
        self._history = history
        self._reading = reading
        self._registry = registry

    async def healthz(self) -> Health:
        """Whether the driver's process answers, whatever the run does; needs no token."""
        return Health()

    async def readyz(self) -> Readiness:
        """Whether the run is in a state in which it does its work; 503 with the reason where it is not."""
        if (reason := not_ready(await self.status())) is not None:
            raise HTTPException(503, reason)
        return Readiness()

    async def metrics(self, request: Request) -> Response:
        """All metrics of the run, in the format that the scraper asks for; docs/metrics.md says what they are."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), headers={"Content-Type": content_type})

    async def status(self) -> RunStatus:
        """The run as it is now."""
        return await self._asking.ask(self._controls.status)

    async def workers(self) -> Workers:
        """The rollout workers and reward replicas."""
        return Workers(pools=(await self.status()).pools)

    async def ledger(self) -> LedgerStatus:
        """Where the dispatched samples are."""
        return ledger_status((await self.status()).ledger)

    async def updates(self, wanted: Annotated[UpdatesQuery, Query()]) -> Updates:
        """What updates have reported, oldest first."""
        return await self._reading.ask(
            lambda: self._history.updates(after=wanted.after, limit=wanted.limit, thinned=wanted.thinned)
        )

    async def samples(self, wanted: Annotated[SamplesQuery, Query()]) -> Samples:
        """Texts that the model wrote, newest update first. Whoever shows them must escape them."""
        return await self._reading.ask(
            lambda: self._history.samples(
                update=wanted.update, kind=wanted.kind, contains=wanted.contains, limit=wanted.limit
            )
        )

    async def events(self, wanted: Annotated[EventsQuery, Query()]) -> Events:
        """What an operator wants to know: members lost and replaced, settings changed; oldest first."""
        return await self._reading.ask(
            lambda: self._history.events(after=wanted.after, limit=wanted.limit, thinned=wanted.thinned)
        )


def not_ready(status: RunStatus) -> str | None:
    """Why the run does not do its work now; None where it does."""
    if status.stopping is not None:
        return f"the run is ending: {status.stopping}"
    if status.stage is None:
        return "no stage runs: the run is about to start one, or to end"
    if status.pause == "paused":
        return "the run is paused; `minichatgpt resume` lets it go on"
    if status.stage == "ppo" and not status.pools:
        return "the pools of stage ppo are about to start"
    for role, pool in status.pools.items():
        if pool.active == 0:
            return f"no member of the {role} pool is active; there shall be {pool.target}"
    if status.learner is not None and status.learner.state == "starting":
        return "the learner is starting"
    return None


def ledger_status(ledger: dict[str, int | dict[str, int]]) -> LedgerStatus:
    """The ledger, and whether it adds up."""
    fates = {name: value for name, value in ledger.items() if name not in ("dispatched", "duplicates")}
    dispatched = ledger.get("dispatched", 0)
    assert isinstance(dispatched, int), "only drops have reasons"
    found = sum(sum(value.values()) if isinstance(value, dict) else value for value in fates.values())
    return LedgerStatus(ledger=ledger, mismatch=dispatched - found)
