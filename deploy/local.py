"""Everything in one process, without Ray: for debugging, and to show that Ray changes nothing but where things run.

Calls are carried out one after the other by one thread, so that results do not depend on its pace. An object cannot
be killed or hang apart from the rest: deadlines hold only between calls, and there are no heartbeats.

Where generation runs ahead of learning (`ppo.max_staleness`), members and learner take turns all the same, for they
would fight for the same threads: samples are as old as elsewhere, and nothing is faster.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import torch

from actors.build import build_worker
from actors.worker import RolloutWorker
from common.checkpoint import ShardFiles
from common.config import RunConfig
from common.errors import CorruptWeightsError, LearnerLostError
from common.ports import WORK, Call, MemberKey, Reply, Role
from common.records import ChunkHandle, Identity, ModelPaths, Progress, StageResult, UpdateReport, WeightsHandle
from common.run_settings import RunSettings
from common.vitals import describe
from common.weights import weights_of
from deploy.preflight.runtime_facts import RuntimeFacts
from deploy.runtime import Members
from deploy.scorer_secrets import scorer_secrets
from deploy.stop_signal import StopSignal
from deploy.stopwatch import Stopwatch
from learner.service import LearnerService, Payload, build_learner
from learner.stages import StageRequest, run_stage
from reward_service.build import build_service
from reward_service.service import RewardService


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Run a role with the threads that it would have as a process of its own: results depend on them."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class OneProcess:
    """What every transport within one process has in common: no nodes, and payloads that are their own references."""

    def draining_nodes(self) -> frozenset[str]:
        """One process is on no node."""
        return frozenset()

    def unplaced(self) -> Mapping[MemberKey, str]:
        """There is always room."""
        return {}

    def fetch(self, ref: Any, timeout_s: float) -> Any:
        """The payload itself."""
        return ref


class LocalTransport(OneProcess):
    """Builds members as objects and carries out their calls, in the order in which they were sent.

    Args:
        build: by role, makes the object of a slot.
        num_threads: by role.
        turn: held by whoever works; None: nobody else does.
    """

    def __init__(
        self,
        build: Mapping[Role, Callable[[str], Any]],
        num_threads: Mapping[Role, int],
        turn: "threading.Lock | None" = None,
    ) -> None:
        self._build = build
        self._threads = num_threads
        self._turn = turn or threading.Lock()
        self._members: dict[MemberKey, Any] = {}
        self._receiver: Callable[[Reply], None] = lambda reply: None
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="members")
        self._closing = threading.Event()

    def receive(self, receiver: Callable[[Reply], None]) -> None:
        """Name who gets the replies."""
        self._receiver = receiver

    def start(self, member: MemberKey, *, avoid: str) -> None:
        """Nothing yet: the object is built when it is asked whether it is ready."""

    def send(self, call: Call) -> None:
        """Queue a call."""
        self._executor.submit(self._carry_out, call).add_done_callback(lambda future: self._arrived(call, future))

    def _carry_out(self, call: Call) -> Any:
        if self._closing.is_set():
            return None
        with self._turn, threads(self._threads[call.member.role]):
            if call.method == "ready":
                self._members[call.member] = self._build[call.member.role](call.member.slot)
                return describe(threads=torch.get_num_threads(), node="")
            method = getattr(self._members[call.member], call.method)
            return method() if call.argument is None else method(call.argument)

    def _arrived(self, call: Call, future: "Future[Any]") -> None:
        if self._closing.is_set():
            return
        error = future.exception()
        if error is not None:
            self._receiver(Reply(call.call_id, error=error))
        elif call.method in WORK:
            self._receiver(Reply(call.call_id, *future.result()))
        else:
            self._receiver(Reply(call.call_id, future.result()))

    def kill(self, member: MemberKey, *, dump: bool) -> None:
        """Forget an object; what it is at goes on to its end."""
        self._executor.submit(self._forget, member)

    def _forget(self, member: MemberKey) -> None:
        gone = self._members.pop(member, None)
        if isinstance(gone, RewardService):
            gone.close()

    def close(self) -> None:
        """Let the running call end, and carry out no other."""
        self._closing.set()
        self._executor.shutdown(wait=True, cancel_futures=True)


class LocalLearner:
    """A learner in this process: implements `common.ports.Learner`.

    Args:
        build: makes one that starts from the policy before PPO.
        num_threads: CPU threads of its work.
        watch: told how long calls take.
        turn: held by whoever works; None: nobody else does.
    """

    def __init__(
        self,
        build: Callable[[], LearnerService],
        num_threads: int,
        watch: Stopwatch,
        turn: "threading.Lock | None" = None,
    ) -> None:
        self._build = build
        self._watch = watch
        self._turn = turn or threading.Lock()
        self._threads = num_threads
        with threads(num_threads):
            self._service = build()
        self._payloads: list[Payload] = []
        self._saver = ThreadPoolExecutor(1, thread_name_prefix="save")

    @property
    def step(self) -> int:
        """Updates done."""
        return self._service.step

    @property
    def described(self) -> dict[str, Any]:
        """What a process would say of itself."""
        return describe(threads=self._threads, node="")

    def restart(self) -> None:
        """Another one in its place: its weights may be corrupt."""
        with self._turn, threads(self._threads):
            self._service = self._build()

    def load(self, url: str | None, *, lineage: int) -> None:
        """Go on from a checkpoint, or from the weights before PPO where there is none, as a new lineage."""
        with self._turn, threads(self._threads):
            self._service.load(url, lineage=lineage)

    def weights(self) -> WeightsHandle:
        """A copy of the policy as it is now."""
        with self._turn, threads(self._threads), self._watch.phase("publish"):
            return self._service.weights()

    def prepare(self, chunks: Sequence[ChunkHandle]) -> list[int]:
        """Nothing is ever lost within a process."""
        self._payloads = [(c.rollouts, c.judgements, c.reference, c.draw_indices) for c in chunks]
        return []

    def update(self, settings: RunSettings) -> UpdateReport:
        """Train on what was prepared."""
        payloads, self._payloads = self._payloads, []
        with self._turn, threads(self._threads), self._watch.phase("update"):
            try:
                return self._service.update(payloads, settings)
            except CorruptWeightsError as error:
                raise LearnerLostError(f"the learner in update: {error}") from error

    def begin_save(self, url: str) -> "Future[ShardFiles]":
        """Copy the state now, write it in the background."""
        with self._watch.phase("snapshot"):
            self._service.snapshot()
        return self._saver.submit(self._service.write_snapshot, url)

    def export(self, folder: Path) -> None:
        """Leave the policy in Hugging Face's format."""
        self._service.export(folder)

    def close(self) -> None:
        """Wait for a save that is being written."""
        self._saver.shutdown(wait=True)


class LocalRuntime:
    """One process."""

    name = "local"
    are_processes = False

    def facts(self) -> RuntimeFacts:
        """For the preflight: there is no cluster."""
        return RuntimeFacts()

    def run_stage(self, request: StageRequest, stop: StopSignal) -> Iterator[Progress | StageResult]:
        """Run a supervised stage here."""
        with threads(request.config.learner.num_threads):
            for item in run_stage(request):
                stop.raise_if_requested()
                yield item

    @contextmanager
    def members(
        self, config: RunConfig, paths: ModelPaths, folder: Path, stop: StopSignal, *, with_learner: bool = True
    ) -> Iterator[Members]:
        """Objects instead of processes."""
        watch, secrets, turn = Stopwatch(), scorer_secrets(config, os.environ), threading.Lock()
        loading = threading.Lock()  # transformers cannot load two models at once in one process
        learner = None
        with ExitStack() as stack:

            def worker(slot: str) -> RolloutWorker:
                with loading:
                    return build_worker(config, paths, fetch=lambda handle: handle.ref, name=slot)

            def replica(slot: str) -> RewardService:
                with loading:
                    return stack.enter_context(closing(build_service(config, paths, secrets)))

            def service() -> LearnerService:
                with loading:
                    return build_learner(config, paths, folder)

            def published(path: str, identity: Identity) -> WeightsHandle:
                with loading:
                    return weights_of(path, identity)

            transport = LocalTransport(
                {"rollout": worker, "reward": replica},
                {"rollout": config.rollout.num_threads, "reward": config.reward_service.num_threads},
                turn,
            )
            if with_learner:
                learner = LocalLearner(service, config.learner.num_threads, watch, turn)
                stack.callback(learner.close)
            try:
                yield Members(transport, learner, published, watch)
            finally:
                transport.close()

    def close(self) -> None:
        """Nothing was started."""
