"""Members that only wait: hundreds of virtual workers in one Ray actor, called through the transport of real runs.

What the driver does is what it does in a real run: one remote call for each request, heartbeat and judgement, replies
through futures, payloads by reference. What is simulated is the other end: instead of a process of its own, each worker
is a name in a *host*, which sleeps for the time that generating would take, one call of a worker after the other, and
answers with records of the real size.

    RayTransport ─▶ VirtualMember(slot) ─▶ host.generate(slot, request) ─▶ turn of that slot ─▶ sleep ─▶ RolloutChunk
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import ray.util

from common.ports import Call, MemberKey, Reply, Role, Transport
from common.records import GenerateRequest, JudgementChunk, ReferenceChunk, RolloutChunk, Stats, WeightsHandle
from common.vitals import describe, heartbeat
from deploy.bench.latency import Latency, Worked
from deploy.bench.made_up import generated, judged, referred
from deploy.on_ray.transport import RayTransport
from deploy.preflight.packing import Demand

CALLS_OF_A_HOST = 8192
"""Calls that one host may hold at once: two and a heartbeat of each of its members, and room to spare."""


class Host:
    """Where virtual members live. Calls of one member are answered in their order, heartbeats at once."""

    def __init__(self, latency: Latency) -> None:
        self._latency = latency
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._worked: list[Worked] = []

    async def ready(self, slot: str) -> dict[str, Any]:
        """What a process says of itself; without its number, for nobody may kill the host."""
        node, ip = ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
        return describe(threads=1, node=node, node_ip=ip)

    async def adopt(self, slot: str, handle: WeightsHandle) -> dict[str, str]:
        """Weights are not fetched: their travel is measured by `bench publish`."""
        return {"identity": str(handle.identity)}

    async def prefetch(self, slot: str, handle: WeightsHandle) -> dict[str, str]:
        """As `adopt`."""
        return {"identity": str(handle.identity)}

    async def probe(self, slot: str) -> dict[str, float]:
        """All judges agree."""
        return {"simulated": 0.0}

    @ray.method(num_returns=2)
    async def generate(self, slot: str, request: GenerateRequest) -> tuple[RolloutChunk, Stats]:
        """Wait for the turn of the slot, then for the latency."""
        async with self._turns[slot]:
            planned_s = self._latency.generate_s(request.chunk_index)
            self._worked.append(Worked(time.monotonic(), planned_s))
            await asyncio.sleep(planned_s)
        return generated(request, planned_s)

    @ray.method(num_returns=2)
    async def score(self, slot: str, chunk: RolloutChunk) -> tuple[JudgementChunk, Stats]:
        """Judge alike."""
        async with self._turns[slot]:
            await asyncio.sleep(self._latency.judge_s)
        return judged(chunk, self._latency.judge_s)

    @ray.method(num_returns=2)
    async def reference(self, slot: str, chunk: RolloutChunk) -> tuple[ReferenceChunk, Stats]:
        """The policy's own logprobs."""
        async with self._turns[slot]:
            await asyncio.sleep(self._latency.judge_s)
        return referred(chunk, self._latency.judge_s)

    async def heartbeat(self, slot: str) -> dict[str, Any]:
        """A sign of life."""
        return heartbeat()

    async def worked(self) -> list[Worked]:
        """All generations that have begun."""
        return self._worked


HostActor = ray.remote(max_concurrency=CALLS_OF_A_HOST, num_cpus=0)(Host)


class Remote:
    """A method of one virtual member, called as those of Ray's actors are."""

    def __init__(self, method: Any, slot: str) -> None:
        self._method = method
        self._slot = slot

    def remote(self, *arguments: Any) -> Any:
        """Returns the references that the host's method returns."""
        return self._method.remote(self._slot, *arguments)


class VirtualMember:
    """Takes the place of an actor's handle in RayTransport."""

    def __init__(self, host: Any, slot: str) -> None:
        self._actor_id = host._actor_id
        self.ready = Remote(host.ready, slot)
        self.adopt = Remote(host.adopt, slot)
        self.prefetch = Remote(host.prefetch, slot)
        self.probe = Remote(host.probe, slot)
        self.generate = Remote(host.generate, slot)
        self.score = Remote(host.score, slot)
        self.reference = Remote(host.reference, slot)
        self.heartbeat = Remote(host.heartbeat, slot)


class SimulatedTransport(RayTransport):
    """The transport of real runs, but that no process ends with a member.

    Args:
        hosts: by role, where its members live, in turns.
        demands: by role, what a process needs.
        logs: folder for what is never written here.
    """

    def __init__(self, hosts: Mapping[Role, Sequence[Any]], demands: Mapping[Role, Demand], logs: Any) -> None:
        def member_of(role: Role, slot: str) -> VirtualMember:
            there = hosts[role]
            return VirtualMember(there[int(slot.rpartition("-")[2]) % len(there)], slot)

        super().__init__(
            {
                "rollout": lambda slot, avoid: member_of("rollout", slot),
                "reward": lambda slot, avoid: member_of("reward", slot),
            },
            demands,
            logs,
        )

    def _end(self, member: MemberKey, actor: Any, dump: bool) -> None:
        """What it is at runs out in its host."""


class DispatchTimes:
    """Stands between supervisor and transport, and times how long a worker that has answered is without a request
    although there is one for it.

    Args:
        transport: carries the calls.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.answered = 0
        """Chunks that were generated."""
        self.waits_s: list[float] = []
        """From a reply's arrival in this process, or from when work was queued if that is later, until the next request
        to that worker has left."""
        self.queued_at_s: Callable[[Call], float] = lambda call: 0.0
        """When what a call asks for was queued, by the monotonic clock; called in the thread that sends it."""
        self._asked: dict[int, MemberKey] = {}
        self._answered_at: dict[MemberKey, float] = {}

    def receive(self, receiver: Any) -> None:
        """Name who gets the replies."""

        def arrived(reply: Reply) -> None:
            member = self._asked.pop(reply.call_id, None)
            if member is not None:
                self.answered += 1
                self._answered_at[member] = time.monotonic()
            receiver(reply)

        self.transport.receive(arrived)

    def send(self, call: Call) -> None:
        """Start a call."""
        if call.method == "generate":
            self._asked[call.call_id] = call.member
        self.transport.send(call)
        if call.method == "generate" and (at := self._answered_at.pop(call.member, None)) is not None:
            self.waits_s.append(time.monotonic() - max(at, self.queued_at_s(call)))

    def start(self, member: MemberKey, *, avoid: str) -> None:
        """As the transport does."""
        self.transport.start(member, avoid=avoid)

    def kill(self, member: MemberKey, *, dump: bool) -> None:
        """As the transport does."""
        self.transport.kill(member, dump=dump)

    def draining_nodes(self) -> frozenset[str]:
        """As the transport does."""
        return self.transport.draining_nodes()

    def unplaced(self) -> Mapping[MemberKey, str]:
        """As the transport does."""
        return self.transport.unplaced()

    def fetch(self, ref: Any, timeout_s: float) -> Any:
        """As the transport does."""
        return self.transport.fetch(ref, timeout_s)
