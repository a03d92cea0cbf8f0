"""Where the processes of each role run, how many there are, and how long anybody waits for them.

Imports pydantic only.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from common.config_base import CHANGEABLE, Config
from common.label_selector import LabelSelector
from common.scorer_config import ModelScorerConfig, ScorerConfig, check_scorers

Device = Literal["auto", "cpu", "cuda"]
DType = Literal["auto", "float32", "bfloat16", "float16"]
EngineKind = Literal["auto", "generic"]


class Placement(Config):
    """What one process of a role holds."""

    num_cpus: Annotated[float, CHANGEABLE] = Field(default=1.0, gt=0)
    """Logical CPUs that Ray sets aside; above 0, so that an autoscaler sees the role. `threads` follows unless set."""
    num_gpus: float = Field(default=0.0, ge=0)
    """GPUs; fractions share one, more than 1 are whole."""
    memory_bytes: Annotated[int, CHANGEABLE] = Field(default=0, ge=0)
    """Memory that Ray sets aside, in bytes; 0 asks for none."""
    resources: Annotated[dict[str, Annotated[float, Field(gt=0)]], CHANGEABLE] = {}
    """Custom Ray resources that a node must have, as in `{ spot = 1 }`."""
    label_selector: Annotated[LabelSelector, CHANGEABLE] = {}
    """Labels that a node must have, as in `{ market-type = "spot" }`; also `"!spot"`, `"in(a, b)"`, `"!in(a, b)"`."""
    threads: Literal["cpus"] | Annotated[int, Field(ge=1)] = "cpus"
    """CPU threads of a process; `cpus` takes the whole CPUs of num_cpus, at least 1. Part of the recipe:
    another number changes the last bits of results."""
    device: Device = "auto"
    """`auto` takes CUDA where num_gpus > 0, else the CPU."""
    start_timeout_s: Annotated[float, CHANGEABLE] = Field(default=180.0, gt=0)
    """Longest time from when a node has room for the process to its first answer."""
    room_timeout_s: Annotated[float, CHANGEABLE] = Field(default=900.0, gt=0)
    """Longest time until a node has room: until others leave it, or an autoscaler adds one. No restart is counted."""
    heartbeat_every_s: Annotated[float, CHANGEABLE] = Field(default=2.0, gt=0)
    """Time between two signs of life; they are answered beside the work, not after it. Longer in a pool of more than
    100, which asks for 50 a second, but half of heartbeat_timeout_s at most."""
    heartbeat_timeout_s: Annotated[float, CHANGEABLE] = Field(default=20.0, gt=0)
    """A process that gives no sign of life for so long is killed and replaced; Ray itself takes up to 65 s."""
    max_restarts: Annotated[int, CHANGEABLE] = Field(default=3, ge=0)
    """Times that one process may be replaced within restart_window_s; after that it is given up."""
    restart_window_s: Annotated[float, CHANGEABLE] = Field(default=600.0, gt=0)
    """Window over which restarts are counted."""

    @property
    def num_threads(self) -> int:
        """CPU threads of a process, as a number."""
        return max(1, int(self.num_cpus)) if self.threads == "cpus" else self.threads

    def resolved(self) -> Self:
        """With threads as a number: results depend on it, and not on num_cpus."""
        return self.model_copy(update={"threads": self.num_threads})

    @field_validator("threads", mode="before")
    @classmethod
    def _threads_are_a_number(cls, threads: object) -> object:
        """One message instead of one for each legal form."""
        if threads == "cpus" or (isinstance(threads, int) and not isinstance(threads, bool) and threads >= 1):
            return threads
        raise ValueError(f'must be a whole number of at least 1, or "cpus" to follow num_cpus (got {threads!r})')

    @model_validator(mode="after")
    def _gpus_are_whole(self) -> "Placement":
        if self.num_gpus > 1 and self.num_gpus % 1:
            raise ValueError(
                f"num_gpus={self.num_gpus:g}: a process has a fraction of one GPU, or whole ones; try "
                f"{int(self.num_gpus)} or {int(self.num_gpus) + 1}"
            )
        return self

    @model_validator(mode="after")
    def _heartbeats_fit(self) -> "Placement":
        if self.heartbeat_timeout_s <= self.heartbeat_every_s:
            raise ValueError(
                f"heartbeat_timeout_s={self.heartbeat_timeout_s:g} must be longer than "
                f"heartbeat_every_s={self.heartbeat_every_s:g}; try {5 * self.heartbeat_every_s:g}"
            )
        return self


class PoolPlacement(Placement):
    """A role of which there are several processes, that come and go."""

    strategy: Annotated[Literal["pack", "spread"], CHANGEABLE] = "pack"
    """`pack` fills a node, up to half of what it has, before the next is used; `spread` takes the nodes in turn."""

    request_timeout_s: Annotated[float, CHANGEABLE] = Field(default=600.0, gt=0)
    """Longest time of one call on one process, waiting behind its other call included; after that it counts as hung."""
    sync_timeout_s: Annotated[float, CHANGEABLE] = Field(default=120.0, gt=0)
    """Longest time in which a new process must hold the current weights, or answer its first probe."""
    drain_timeout_s: Annotated[float, CHANGEABLE] = Field(default=60.0, gt=0)
    """When scaled down: longest time to finish what a process holds before it is killed and the work moves."""
    max_attempts: Annotated[int, CHANGEABLE] = Field(default=3, ge=1)
    """Times that one request may fail with an error, or pass its deadline, before it is given up."""


class RolloutConfig(PoolPlacement):
    """The processes that generate."""

    workers: Annotated[int, CHANGEABLE] = Field(default=2, ge=1)
    """Rollout workers."""
    min_workers: Annotated[int, CHANGEABLE] = Field(default=1, ge=1)
    """Where fewer can be kept alive, the run writes a checkpoint and stops."""
    chunk_sequences: int = Field(default=64, ge=1)
    """Samples of one dispatch, whole groups of ppo.samples_per_prompt: the unit of work, whatever the number of
    workers."""
    batch_sequences: int | None = Field(default=None, ge=1)
    """Samples of a dispatch that are generated at a time, for less memory; None: all. With ppo.max_staleness of 1 or
    more the others join one by one as samples are done, where the engine can; else batch after batch."""
    engine: EngineKind = "auto"
    """`auto` decodes models of the Llama family (Llama, Mistral, Qwen2) by a decoder of our own, with a copy of the
    weights, packed where oneDNN packs; `generic` takes every model's own forward."""
    dtype: DType = "auto"
    """Precision of the weights that generate; `auto` is bfloat16 on a GPU that computes in it, else float32."""

    @model_validator(mode="after")
    def _enough_workers(self) -> "RolloutConfig":
        if self.min_workers > self.workers:
            raise ValueError(f"min_workers={self.min_workers} is more than workers={self.workers}; lower it")
        return self


class RewardServiceConfig(PoolPlacement):
    """The processes that score and compute reference logprobs."""

    scorers: list[ScorerConfig] = Field(default=[ModelScorerConfig()], min_length=1)
    """What scores a response: the score is the sum of weight times number."""
    replicas: Annotated[int, CHANGEABLE] = Field(default=1, ge=1)
    """Reward replicas."""
    min_replicas: Annotated[int, CHANGEABLE] = Field(default=1, ge=1)
    """Where fewer can be kept alive, the run writes a checkpoint and stops."""
    budget_s: Annotated[float, CHANGEABLE] = Field(default=900.0, gt=0)
    """Longest time in which a chunk must be judged, all attempts included; after that its samples are dropped."""
    batch_sequences: int = Field(default=64, ge=1)
    """Texts of one forward pass."""

    @model_validator(mode="after")
    def _enough_replicas(self) -> "RewardServiceConfig":
        if self.min_replicas > self.replicas:
            raise ValueError(f"min_replicas={self.min_replicas} is more than replicas={self.replicas}; lower it")
        return self

    @property
    def has_model(self) -> bool:
        """Whether the classifier of [reward_model] is among the scorers."""
        return any(scorer.type == "model" for scorer in self.scorers)

    @property
    def scoring_budget_s(self) -> float:
        """Time in which a replica answers one call: it may hold two, and both count from when they were sent."""
        return self.request_timeout_s / 2

    @model_validator(mode="after")
    def _scorers_fit(self) -> "RewardServiceConfig":
        check_scorers(self.scorers)
        for scorer in self.scorers:
            if scorer.type != "model" and 2 * scorer.timeout_s > self.scoring_budget_s:
                raise ValueError(
                    f"scorer {scorer.name!r} has timeout_s={scorer.timeout_s:g}, and two tries must fit into half of "
                    f"request_timeout_s={self.request_timeout_s:g}; lower timeout_s to {self.scoring_budget_s / 2:g}, "
                    f"or raise request_timeout_s to {4 * scorer.timeout_s:g}"
                )
        return self


class LearnerConfig(Placement):
    """The process that takes gradients."""

    dtype: DType = "auto"
    """Precision of the trained weights and of the reference; `auto` is float32, below which updates may round to
    zero."""
    update_timeout_s: Annotated[float, CHANGEABLE] = Field(default=3600.0, gt=0)
    """Longest time that one update may take."""
    save_timeout_s: Annotated[float, CHANGEABLE] = Field(default=600.0, gt=0)
    """Longest time in which a checkpoint must be written, in the background."""
    stage_timeout_s: Annotated[float, CHANGEABLE] = Field(default=600.0, gt=0)
    """Longest silence of a supervised stage."""
