"""Exactly what crosses a process boundary: frozen records of compact numpy arrays. No logits, no torch tensors, and no
text but `Prompt.text`.

    Prompt ─▶ actors ─▶ Rollout ─▶ reward_service ─▶ Judgement ─▶ learner ─▶ UpdateReport
       ▲                                                            │
       └──────────── WeightsHandle rides on every request ◀─────────┘

A *chunk* is the unit of dispatch: a fixed number of samples in draw order; the samples of one prompt, its *group*, are
never parted. The driver holds references to the
payloads of a chunk (`RolloutChunk`, `JudgementChunk`, `ReferenceChunk`) and reads only the small `Stats` beside them.

Legend: P prompt tokens, R response tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
Logprobs = npt.NDArray[np.float32]
Finish = Literal["stop", "length"]
EnginePath = Literal["generic", "llama", "llama_packed"]


class Identity(NamedTuple):
    """Which weights: a lineage (a new one after a rewind) and the number of updates behind them."""

    lineage: int
    step: int

    def __str__(self) -> str:
        return f"{self.lineage}.{self.step}"

    @classmethod
    def of(cls, text: str) -> "Identity":
        """What `str` gave."""
        lineage, _, step = text.partition(".")
        return cls(int(lineage), int(step))


@dataclass(frozen=True, slots=True)
class Prompt:
    """The beginning of a text, at one position of the prompt stream.

    Example: `Prompt(draw_index=7, prompt_id=3021, token_ids=[12, 9], max_new_tokens=16)`
    """

    draw_index: int
    """Position in the prompt stream; never reset."""
    prompt_id: int
    """Index of the text that it begins, among the tokenised texts that the prompt stream was given."""
    token_ids: Ids
    """[P] token ids, without padding."""
    max_new_tokens: int
    """Most response tokens; drawn with the prompt, so that it does not depend on who generates."""
    text: str | None = None
    """What scorers read as the prompt where a chat template wrote `token_ids`; None: `token_ids`, decoded. The one text
    in these records, for a template cannot be undone from ids: role names are left where special tokens are skipped."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response."""

    draw_index: int
    sample_index: int
    """Which of a prompt's samples this is."""
    attempt: int
    """How often the chunk was dispatched before; the tokens do not depend on it."""
    seed: int
    """Seed of this sample's noise: f(run seed, draw_index, sample_index)."""
    response_ids: Ids
    """[R] sampled ids, the EOS token included where one was sampled."""
    logprobs: Logprobs
    """[R] natural logarithms of the probabilities under the distribution that was sampled from."""
    identity: Identity
    """Weights that generated it."""
    finish: Finish
    """`stop`: ended by an EOS token; `length`: cut at max_new_tokens."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the reward service says of one rollout."""

    draw_index: int
    sample_index: int
    score: float
    """What PPO maximises, before scaling and clipping."""
    parts: Mapping[str, float]
    """The scorers' own numbers, by name, as in `{"reward_model": 1.3, "prompt": -0.2}`."""
    scorer_version: str
    """Hash of the scorers' names, weights in the mixture and, of classifiers, their own weights."""


@dataclass(frozen=True, slots=True)
class Unscored:
    """A rollout that the reward service could not judge: it is dropped and replaced, never given a made-up score."""

    draw_index: int
    sample_index: int
    reason: str
    """A short word for metrics and ledger: `reward_nonfinite`, `reward_error`, `reward_timeout`, `reward_shape`."""
    detail: str = ""
    """What happened, for the log."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """All of one sample: what the learner trains on and what is recorded."""

    prompt: Prompt
    rollout: Rollout
    judgement: Judgement
    ref_logprobs: Logprobs | None
    """[R] logprobs of the same tokens under the frozen reference; None where the learner computes them, or nobody."""


@dataclass(frozen=True, slots=True)
class Stats:
    """The small half of every result: all that the driver reads."""

    samples: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0
    stops: int = 0
    """Responses that ended with an EOS token."""
    response_lengths: tuple[int, ...] = ()
    """Tokens of each response, for the histogram."""
    score_sum: float = 0.0
    scores: tuple[float, ...] = ()
    """Of those that have one, for the histogram."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall seconds by phase, as in `{"fetch": 0.01, "load": 0.002, "generate": 0.8}`."""
    beside: Mapping[str, float] = field(default_factory=dict)
    """Of weights that were prefetched for this: wall seconds by phase that passed beside earlier work."""
    identity: Identity | None = None
    weights_hash: int = 0
    """64-bit hash of the weights buffer in use."""
    probe_gap: float = 0.0
    """Largest difference from the learner's logprobs on the probe prompts, in nats."""
    unscored: tuple[Unscored, ...] = ()
    """Rollouts of the chunk that have no score."""
    engine: EnginePath | None = None
    """Which way of the sampling engine generated: the model's own forward, our decoder, or that with packed weights."""


@dataclass(frozen=True, slots=True)
class RolloutChunk:
    """Payload of `generate`, in order of (position of the prompt, sample_index)."""

    prompts: tuple[Prompt, ...]
    """That of each rollout: a prompt with K samples stands here K times."""
    rollouts: tuple[Rollout, ...]
    temperature: float
    """At which they were sampled: the reference and the learner temper their own logprobs likewise."""


@dataclass(frozen=True, slots=True)
class JudgementChunk:
    """Payload of `score`, in the order of the chunk's rollouts; None for what could not be judged."""

    judgements: tuple[Judgement | None, ...]


@dataclass(frozen=True, slots=True)
class ReferenceChunk:
    """Payload of `reference`, in the order of the chunk's rollouts."""

    logprobs: tuple[Logprobs, ...]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Where one tensor lies in the flat buffer."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    """In elements, from the start of the buffer."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A fixed prompt and the learner's own logprobs of it, by which a worker checks what it loaded."""

    token_ids: Ids
    """[N, T] ids, equal lengths."""
    logprobs: Logprobs
    """[N, T-1] logprobs of the ids 1 … T-1."""


@dataclass(frozen=True, slots=True)
class WeightsHandle:
    """A published policy: small; the buffer itself stays where `ref` points."""

    identity: Identity
    ref: Any
    """The flat numpy buffer, or an object reference to it; nested here, so that Ray does not resolve it."""
    hash: int
    """xxh3-64 of the buffer's bytes."""
    manifest: tuple[TensorSpec, ...]
    """The tensors in the buffer: all, or those that a run trains."""
    probe: Probe | None = None
    rest_hashes: Mapping[str, int] = field(default_factory=dict)
    """Of the tensors that are not in the buffer, by the precision of the values, as in `{"bfloat16": 81…}`: a worker's
    own, from the model folder, must have it. Empty where all tensors are in the buffer."""

    @property
    def size_bytes(self) -> int:
        """Of the buffer, which is float32: what travels to each node."""
        return 4 * max((spec.offset + math.prod(spec.shape) for spec in self.manifest), default=0)


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One chunk of work for a rollout worker."""

    chunk_index: int
    attempt: int
    prompts: tuple[Prompt, ...]
    fill: int
    """Rows at the end that only bring the chunk to its fixed size and are thrown away."""
    run_seed: int
    temperature: float
    weights: WeightsHandle
    samples_per_prompt: int = 1
    """K; sample_index goes from 0 to K - 1 for each prompt."""
    top_p: float = 1.0
    """Nucleus; below 1 outside of training only."""

    @property
    def num_samples(self) -> int:
        """Rows that are not thrown away."""
        return len(self.prompts) * self.samples_per_prompt


@dataclass(frozen=True, slots=True)
class ChunkHandle:
    """A chunk that is generated and judged: references to payloads, and the draws that it holds."""

    chunk_index: int
    draw_indices: tuple[int, ...]
    """Draws all of whose samples have a score."""
    rollouts: Any
    judgements: Any
    reference: Any | None
    """None where the learner computes reference logprobs, or nobody does."""
    rollout_stats: Stats
    judge_stats: Stats
    samples_per_prompt: int = 1

    @property
    def num_samples(self) -> int:
        """Samples of its draws."""
        return len(self.draw_indices) * self.samples_per_prompt


@dataclass(frozen=True, slots=True)
class Sample:
    """One text worth showing."""

    kind: Literal["best", "worst"]
    draw_index: int
    prompt_ids: Ids
    response_ids: Ids
    score: float
    kl_seq_sum: float | None
    """None where the reward service does not compute reference logprobs."""


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """What one update did."""

    step: int
    """Updates done, this one included."""
    identity: Identity
    trained: tuple[tuple[int, int], ...]
    """(draw_index, sample_index) of every sample that was trained on, sorted."""
    metrics: Mapping[str, float]
    """By name; those that Prometheus shows are in common/metric_catalogue.py, all are in docs/runs.md. No times."""
    seconds: Mapping[str, float]
    """Wall seconds by phase."""
    samples: tuple[Sample, ...] = ()
    """Best and worst texts of the update."""
    is_finite: bool = True
    """False: no optimizer step had a finite loss and gradient; the weights are as they were and `trained` is empty."""
    weights_hash: str = ""
    """Of the policy that the update made: `WeightsHandle.hash` in 16 hexadecimal digits; empty where it made none."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a supervised stage is."""

    step: int
    total: int
    message: str = ""
    """What is being done or the latest figure, as in `loss 3.61`."""


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a supervised stage measured, and what it left in its folder."""

    metrics: Mapping[str, Any]
    """JSON-able, by name."""
    seconds: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ModelPaths:
    """Folders or hub names of the models that a PPO or evaluation stage starts from."""

    policy: str
    """The policy before PPO, which is also the reference."""
    reward_model: str | None
    """None where no scorer is the reward model."""
    judge: str | None = None
    """Set where held-out prompts are judged: no score of training comes from it."""
