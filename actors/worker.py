"""The rollout worker: a plain class that turns a GenerateRequest into a RolloutChunk. No Ray, no queue, no thread.

It is called by its shell (`actors/ray_actor.py`) or directly (`deploy/local.py`); both give it its parts built. One
thread may call `prefetch` while another generates:

    prefetch   ─ fetch ─ verify ─┐               the buffer is kept, the model untouched
    generate   ──────────────────┴─ load ─ pack ─ probe ─ sample …     waits where its weights are on their way
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from actors.engine import SamplingEngine
from actors.weights_ahead import Arrived, WeightsAhead
from common.errors import WeightsMismatchError
from common.flat_parameters import Buffer, FlatParameters, can_lie_on, lay_on
from common.records import GenerateRequest, Identity, Probe, Rollout, RolloutChunk, Stats, TensorSpec, WeightsHandle
from common.seeds import sample_seed
from common.weights import buffer_hash, distinct_parameters, rest_hash

PROBE_TOLERANCE = 1e-3
"""Nats by which a worker's logprobs may differ from the learner's at equal weights in float32."""


class RolloutWorker:
    """Generates with the weights that a request names, fetching them first where it holds others.

    Args:
        engine: sampling engine over this worker's own copy of the policy.
        fetch: brings the flat buffer of a handle: identity in one process, the object store under Ray.
        name: for error messages.
    """

    def __init__(
        self, engine: SamplingEngine, *, fetch: Callable[[WeightsHandle], Buffer], name: str = "worker"
    ) -> None:
        self.engine = engine
        self.fetch = fetch
        self.name = name
        self.identity: Identity | None = None
        self.weights_hash = 0
        self.probe_gap = 0.0
        self._ahead = WeightsAhead()
        self._parameters: FlatParameters | None = None
        self._rest_hash: int | None = None
        """Of the tensors that never came, once it was compared; None: not yet, or all came since."""

    def prefetch(self, handle: WeightsHandle) -> dict[str, float]:
        """Fetch and verify weights beside the work, so that only the copy is left when a request names them.

        Which of several are kept, and for how long, says actors/weights_ahead.py. Returns seconds by phase.

        Raises:
            WeightsMismatchError: the weights that arrived are not those that were published.
        """
        return dict(self._ahead.bring(handle, self._arrive).seconds)

    def adopt(self, handle: WeightsHandle) -> dict[str, Any]:
        """Make the handle's weights this worker's own before its first prompt; says which, and seconds by phase.

        Raises:
            WeightsMismatchError: the weights that arrived are not those that were published.
        """
        seconds, _ = self._adopt(handle)
        return {"identity": str(self.identity), "seconds": seconds}

    def describe(self) -> dict[str, str]:
        """How it generates, and why not by the faster way."""
        why = f": {self.engine.reason}" if self.engine.reason else ""
        return {"engine": f"{self.engine.path}{why}"}

    def generate(self, request: GenerateRequest) -> tuple[RolloutChunk, Stats]:
        """Sample `samples_per_prompt` responses to each prompt of the request.

        Returns:
            The rollouts in the order of the prompts and, for each, of sample_index; and what the driver needs to know.

        Raises:
            WeightsMismatchError: the weights that arrived are not those that were published.
        """
        seconds, beside = self._adopt(request.weights)
        start = time.perf_counter()
        samples = [(p, k) for p in request.prompts for k in range(request.samples_per_prompt)]
        prompts = tuple(p for p, _ in samples)
        seeds = [sample_seed(request.run_seed, p.draw_index, k) for p, k in samples]
        rows = prompts + prompts[:1] * request.fill
        sampled = self.engine.sample(
            [p.token_ids for p in rows],
            max_new_tokens=[p.max_new_tokens for p in rows],
            seeds=seeds + seeds[:1] * request.fill,
            temperature=request.temperature,
            top_p=request.top_p,
        )[: len(samples)]
        seconds["generate"] = time.perf_counter() - start
        rollouts = tuple(
            Rollout(
                draw_index=prompt.draw_index,
                sample_index=sample_index,
                attempt=request.attempt,
                seed=seed,
                response_ids=one.ids,
                logprobs=one.logprobs,
                identity=request.weights.identity,
                finish=one.finish,
            )
            for (prompt, sample_index), seed, one in zip(samples, seeds, sampled, strict=True)
        )
        chunk = RolloutChunk(prompts, rollouts, request.temperature)
        return chunk, self._stats(chunk, seconds, beside)

    def _stats(self, chunk: RolloutChunk, seconds: Mapping[str, float], beside: Mapping[str, float]) -> Stats:
        return Stats(
            samples=len(chunk.rollouts),
            prompt_tokens=sum(len(p.token_ids) for p in chunk.prompts),
            response_tokens=sum(len(r.response_ids) for r in chunk.rollouts),
            response_lengths=tuple(len(r.response_ids) for r in chunk.rollouts),
            stops=sum(r.finish == "stop" for r in chunk.rollouts),
            seconds=seconds,
            beside=beside,
            identity=self.identity,
            weights_hash=self.weights_hash,
            probe_gap=self.probe_gap,
            engine=self.engine.path,
        )

    def _adopt(self, handle: WeightsHandle) -> tuple[dict[str, float], Mapping[str, float]]:
        """Make the handle's weights this worker's own; returns seconds by phase, and those that passed beside work."""
        if handle.identity == self.identity and handle.hash == self.weights_hash:
            self._ahead.pass_by()
            return {}, {}
        start = time.perf_counter()
        ahead = self._ahead.take(handle)
        waited = time.perf_counter()
        arrived = ahead or self._arrive(handle)
        taken = self._take_in(arrived, handle)
        if ahead is None:
            return {**arrived.seconds, **taken}, {}
        return {"wait": waited - start, **taken}, arrived.seconds

    def _arrive(self, handle: WeightsHandle) -> Arrived:
        """Fetch and verify; the model is not touched."""
        start = time.perf_counter()
        buffer = self.fetch(handle)
        fetched = time.perf_counter()
        found = buffer_hash(buffer)
        if found != handle.hash:
            raise WeightsMismatchError(
                f"{self.name}: weights {handle.identity} arrived with hash {found:016x}, "
                f"but {handle.hash:016x} was published; the buffer changed on its way"
            )
        seconds = {"fetch": fetched - start, "verify": time.perf_counter() - fetched}
        return Arrived(handle.identity, handle.hash, buffer, seconds)

    def _take_in(self, arrived: Arrived, handle: WeightsHandle) -> dict[str, float]:
        """Copy into the model, let the engine prepare itself, compare; returns seconds by phase."""
        start = time.perf_counter()
        self._check_rest(handle)
        checked = time.perf_counter()
        self.identity = None  # until all is copied and has passed the probe, the model is of no version
        self._load(arrived.buffer, handle.manifest)
        loaded = time.perf_counter()
        self.engine.renew()
        packed = time.perf_counter()
        if handle.probe is not None:
            self._check_probe(handle.probe, handle)
        self.identity, self.weights_hash = handle.identity, handle.hash
        return {
            "load": loaded - checked,
            "pack": packed - loaded,
            "probe": time.perf_counter() - packed + checked - start,
        }

    def _load(self, buffer: Buffer, manifest: Sequence[TensorSpec]) -> None:
        """Make the model a view of the buffer where that can be, for here it is only read; else copy the values."""
        parameters = distinct_parameters(self.engine.policy)
        if can_lie_on(parameters, buffer, manifest):
            self._parameters = None
            lay_on(parameters, buffer, manifest)
            return
        if self._parameters is None:
            self._parameters = FlatParameters(parameters)
        self._parameters.load(buffer, manifest)

    def _check_rest(self, handle: WeightsHandle) -> None:
        """The tensors that do not travel must be the learner's: looked at once, for nothing here changes them."""
        policy = self.engine.policy
        sent = {spec.name for spec in handle.manifest}
        missing = [name for name, _ in distinct_parameters(policy) if name not in sent]
        if not missing:
            self._rest_hash = None
            return
        if not handle.rest_hashes:
            raise WeightsMismatchError(f"published weights lack {missing[0]!r} ({len(missing)} tensors missing)")
        dtype = str(policy.get_parameter(missing[0]).dtype).removeprefix("torch.")
        expected = handle.rest_hashes.get(dtype)
        if self._rest_hash is None:
            self._rest_hash = rest_hash(policy, sent)
        if self._rest_hash != expected:
            raise WeightsMismatchError(
                f"{self.name}: weights {handle.identity} leave out {len(missing)} frozen tensors, as {missing[0]!r}, "
                f"which must be those that the learner started from; here ({dtype}) they differ. Let all nodes read "
                "the same model folder: was it changed or replaced while the run went on?"
            )

    def _check_probe(self, probe: Probe, handle: WeightsHandle) -> None:
        """Compare the engine's logprobs with the learner's: catches what a hash cannot, and copies that are stale."""
        self.probe_gap = float(np.abs(self.engine.logprobs(probe.token_ids) - probe.logprobs).max())
        precisions = {spec.dtype for spec in handle.manifest} | {str(p.dtype) for p in self.engine.policy.parameters()}
        reduced = not precisions <= {"float32", "torch.float32"}  # then the gap is reported and not judged
        if not reduced and not self.probe_gap <= PROBE_TOLERANCE:
            raise WeightsMismatchError(
                f"{self.name}: at weights {handle.identity} the probe prompt's logprobs differ from the learner's by "
                f"{self.probe_gap:.2g} nats (at most {PROBE_TOLERANCE:g}); the model was not loaded as it was sent"
            )
