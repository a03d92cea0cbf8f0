"""Who publishes and who receives in `publish.py`: the learner's and the workers' own parts, each in an actor."""

import time
from typing import Any

import ray
import torch

from actors.engine import SamplingEngine
from actors.ray_actor import fetch
from actors.worker import RolloutWorker
from common.flat_parameters import Buffer
from common.records import Identity, WeightsHandle
from common.weights import detached
from deploy.bench.shapes import model_of
from learner.flat_policy import FlatPolicy


class Publisher:
    """The learner's side, without learning."""

    def __init__(self, model: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self._model = model_of(model)
        self._flat = FlatPolicy(self._model)
        self._step = 0
        self._apart = {name: p.detach().clone() for name, p in self._model.named_parameters()}

    def size_bytes(self) -> int:
        """What one publish sends."""
        return self._flat.lend().buffer.nbytes

    @ray.method(num_returns=2)
    def weights(self) -> tuple[Buffer, tuple[WeightsHandle, dict[str, float]]]:
        """As LearnerActor.weights, and the seconds of hash and take."""
        start = time.perf_counter()
        self._flat.renew()
        hashed = time.perf_counter()
        flat = self._flat.lend()
        seconds = {"hash": hashed - start, "take": time.perf_counter() - hashed}
        self._step += 1
        buffer, handle = detached(WeightsHandle(Identity(0, self._step), flat.buffer, flat.hash, flat.manifest))
        return buffer, (handle, seconds)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What one would write without thinking of it, of parameters that lie where torch puts them."""
        return self._apart


class Subscriber:
    """A rollout worker."""

    def __init__(self, model: str) -> None:
        torch.set_num_threads(1)
        self._model = model_of(model)
        self._worker = RolloutWorker(SamplingEngine(self._model, frozenset({0})), fetch=fetch)

    def ready(self) -> None:
        """The model is there."""

    def adopt(self, handle: WeightsHandle) -> dict[str, Any]:
        """Seconds by phase."""
        seconds: dict[str, Any] = self._worker.adopt(handle)["seconds"]
        return seconds

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """The other end of `Publisher.tensors`."""
        self._model.load_state_dict(tensors, strict=False)


PublisherActor = ray.remote(Publisher)
SubscriberActor = ray.remote(Subscriber)
