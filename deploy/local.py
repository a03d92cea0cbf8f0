"""Everything in one process, without Ray: for debugging, and to show that Ray changes nothing but where things run."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from actors.build import build_worker
from common.config import RunConfig
from common.errors import MiniChatGPTError
from common.ports import Call, Reply
from common.records import ChunkHandle, ModelPaths, Progress, StageResult, UpdateReport, WeightsHandle
from common.weights import weights_of
from deploy.runtime import Members
from deploy.runtime_facts import RuntimeFacts
from deploy.stopwatch import Stopwatch
from learner.service import LearnerService, build_learner
from learner.stages import StageRequest, run_stage
from reward_service.build import build_service


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Run a role with the threads that it would have as a process of its own: results depend on them."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class LocalTransport:
    """Carries out calls one after the other, when somebody waits for them.

    Args:
        members: by role and name, the object whose methods are called.
        num_threads: by role.
    """

    def __init__(self, members: dict[tuple[str, str], Any], num_threads: dict[str, int]) -> None:
        self._members = members
        self._threads = num_threads
        self._calls: deque[Call] = deque()

    def send(self, call: Call) -> None:
        """Queue a call."""
        self._calls.append(call)

    def wait(self, timeout_s: float) -> list[Reply]:
        """Carry out the oldest call; it may take longer than `timeout_s`, for nothing else could go on meanwhile."""
        call = self._calls.popleft()
        member = self._members[call.role, call.member]
        with threads(self._threads[call.role]):
            try:
                payload, stats = getattr(member, call.method)(call.argument)
            except MiniChatGPTError as error:
                return [Reply(call.call_id, error=error)]
        return [Reply(call.call_id, payload, stats)]

    def fetch(self, ref: Any, timeout_s: float) -> Any:
        """The payload itself."""
        return ref


class LocalLearner:
    """A learner in this process: implements `common.ports.Learner`."""

    def __init__(self, service: LearnerService, num_threads: int, watch: Stopwatch) -> None:
        self._service = service
        self._watch = watch
        self._threads = num_threads

    @property
    def step(self) -> int:
        """Updates done."""
        return self._service.step

    def weights(self) -> WeightsHandle:
        """A copy of the policy as it is now."""
        with threads(self._threads), self._watch.phase("publish"):
            return self._service.weights()

    def update(self, chunks: Sequence[ChunkHandle]) -> UpdateReport:
        """Train on the chunks once."""
        with threads(self._threads), self._watch.phase("update"):
            return self._service.update([(c.rollouts, c.judgements, c.reference) for c in chunks])

    def save(self, folder: Path) -> None:
        """Write a checkpoint."""
        with threads(self._threads):
            self._service.save(folder)

    def export(self, folder: Path) -> None:
        """Leave the policy in Hugging Face's format."""
        self._service.export(folder)


class LocalRuntime:
    """One process."""

    name = "local"

    def facts(self) -> RuntimeFacts:
        """For the preflight: there is no cluster."""
        return RuntimeFacts()

    def run_stage(self, request: StageRequest) -> Iterator[Progress | StageResult]:
        """Run a supervised stage here."""
        with threads(request.config.learner.threads):
            yield from run_stage(request)

    @contextmanager
    def members(self, config: RunConfig, paths: ModelPaths, folder: Path) -> Iterator[Members]:
        """Build workers and reward replicas as objects, and a learner for training."""
        workers = [f"worker-{i}" for i in range(config.rollout.workers)]
        replicas = [f"replica-{i}" for i in range(config.reward_service.replicas)]
        built: dict[tuple[str, str], Any] = {}
        for name in workers:
            built["rollout", name] = build_worker(config, paths, fetch=lambda handle: handle.ref, name=name)
        for name in replicas:
            built["reward", name] = build_service(config, paths)
        learner, watch = None, Stopwatch()
        if paths.judge is None:
            with threads(config.learner.threads):
                learner = LocalLearner(build_learner(config, paths, folder), config.learner.threads, watch)
        transport = LocalTransport(built, {"rollout": config.rollout.threads, "reward": config.reward_service.threads})
        described: dict[str, dict[str, object]] = {name: {} for name in workers + replicas}
        yield Members(transport, workers, replicas, learner, weights_of, watch, described)

    def close(self) -> None:
        """Nothing was started."""
