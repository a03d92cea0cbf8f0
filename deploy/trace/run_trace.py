"""What a run does, as spans and counters of a trace, from what reaches the driver anyway.

    supervisor ── calls that are sent, replies ──▶ ┌──────────┐
    loop       ── phases, updates ───────────────▶ │ RunTrace │ ──▶ TraceFile
    tick       ── pools and ledger ──────────────▶ └──────────┘

A row is a worker slot, a reward replica, the learner or the driver's loop. Members say how long they worked, not when:
their spans end where the reply arrived, so what Ray needs to bring it looks like time before the work. Memory is
bounded by the calls that are on their way.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from common.pool_actions import Action, Kill, Send
from common.ports import MemberKey, Reply
from common.records import GenerateRequest, Stats, UpdateReport, WeightsHandle
from deploy.ppo.conductor import Conductor
from deploy.trace.trace_file import TraceFile

LEARNER_PHASES = {"update": "update", "publish": "publish", "snapshot": "checkpoint"}
"""Phases of the loop in which the learner works, and what they are called in its row."""
PREFETCH = "prefetch"
"""The one call that a member answers beside its work: it has a row of its own."""
MAX_CHUNKS = 4096
"""Payloads whose chunk is remembered until they are judged."""


@dataclass(frozen=True, slots=True)
class _OnItsWay:
    """A call without a reply."""

    member: MemberKey
    method: str
    sent: float
    args: Mapping[str, Any]


class RunTrace:
    """Draws one stage with pools; safe to use from the loop's and the supervisor's thread.

    Args:
        file: where events go.
    """

    def __init__(self, file: TraceFile) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._calls: dict[int, _OnItsWay] = {}
        self._chunks: OrderedDict[int, int] = OrderedDict()
        """Chunk by the id() of its payload, which lives until it is judged."""
        self._ends: dict[str, float] = {}
        """Where the last span of a row ends."""
        self._counted: dict[str, dict[str, float]] = {}
        self._update: tuple[float, float] | None = None
        """From when to when the learner's update took whose report is not here yet."""

    # --- told by the supervisor

    def see(self, action: Action) -> None:
        """What the conductor asks for."""
        match action:
            case Send(call) if call.method != "heartbeat":
                args = self._describe(call.argument)
                self._calls[call.call_id] = _OnItsWay(call.member, call.method, self.file.clock(), args)
            case Kill(member, _):
                for call_id in [i for i, call in self._calls.items() if call.member == member]:
                    del self._calls[call_id]

    def replied(self, reply: Reply) -> None:
        """A call is answered."""
        call = self._calls.pop(reply.call_id, None)
        if call is None:
            return
        now, slot = self.file.clock(), call.member.slot
        if reply.error is not None:
            self._span(slot, f"{call.method} failed", call.sent, now, {**call.args, "error": str(reply.error)})
        elif reply.stats is None:
            row = f"{slot} {PREFETCH}" if call.method == PREFETCH else slot
            self._span(row, "start" if call.method == "ready" else call.method, call.sent, now, call.args)
        else:
            if "chunk" in call.args:
                self._remember(reply.payload, call.args["chunk"])
            self._work(call, reply.stats, now)

    def look(self, conductor: Conductor) -> None:
        """Queues and buffer, where they have changed."""
        ledger = conductor.ledger
        self._count("queued", {pool.role: float(pool.num_queued) for pool in (conductor.rollout, conductor.reward)})
        self._count("samples", {"in flight": float(ledger.in_flight), "buffered": float(ledger.buffered)})

    # --- told by the loop

    @contextmanager
    def starting(self, name: str) -> Iterator[None]:
        """A part of the start, in the driver's row."""
        start = self.file.clock()
        try:
            yield
        finally:
            self.file.span("driver", name, start, self.file.clock(), {})

    def phase(self, name: str, start: float, end: float) -> None:
        """The loop waited for something, or a learner's call took that time."""
        self.file.span("driver", name, start, end, {})
        if name == "collect":
            self._update = None  # of an attempt that has no report: payloads, or the learner, were lost in it
        elif name == "update":  # two calls: the payloads are fetched, then trained on
            self._update = (self._update[0] if self._update else start, end)
        elif name in LEARNER_PHASES:
            self._span("learner", LEARNER_PHASES[name], start, end, {})

    def updated(self, report: UpdateReport) -> None:
        """What the update did whose phase has just ended."""
        if self._update is None:
            return
        (start, end), self._update = self._update, None
        args = {"step": report.step, "weights": str(report.identity), "samples": len(report.trained)}
        seconds = {name: round(value, 6) for name, value in report.seconds.items()}
        self._span("learner", "update", start, end, args | {"seconds": seconds})

    # --- inside

    def _describe(self, argument: Any) -> dict[str, Any]:
        match argument:
            case GenerateRequest():
                return {
                    "chunk": argument.chunk_index,
                    "weights": str(argument.weights.identity),
                    "samples": argument.num_samples,
                }
            case WeightsHandle():
                return {"weights": str(argument.identity)}
            case _:
                chunk = self._chunks.get(id(argument))
                return {} if chunk is None else {"chunk": chunk}

    def _remember(self, payload: Any, chunk: int) -> None:
        self._chunks.pop(id(payload), None)
        self._chunks[id(payload)] = chunk
        while len(self._chunks) > MAX_CHUNKS:
            self._chunks.popitem(last=False)

    def _work(self, call: _OnItsWay, stats: Stats, now: float) -> None:
        """Phases one after the other up to now, shortened where they would reach into the work before."""
        slot, seconds = call.member.slot, dict(stats.seconds) or {call.method: 0.0}
        took = sum(seconds.values())
        start = max(now - took, call.sent, self._ends.get(slot, now - took))
        scale = (now - start) / took if took > 0 else 0.0
        args = {**call.args, "samples": stats.samples, "tokens": stats.response_tokens}
        for name, part in seconds.items():
            end = min(now, start + part * scale)
            self._span(slot, call.method if name == "score" else name, start, end, args)
            start = end

    def _span(self, row: str, name: str, start: float, end: float, args: Mapping[str, Any]) -> None:
        with self._lock:
            start = min(end, max(start, self._ends.get(row, start)))
            self._ends[row] = end
        self.file.span(row, name, start, end, args)

    def _count(self, name: str, values: dict[str, float]) -> None:
        if self._counted.get(name) != values:
            self._counted[name] = values
            self.file.count(name, values)
