"""What a run says of itself and what it can be asked for: the JSON of the control channel. Imports pydantic only.

`deploy/control/app.py` sends it, `deploy/control/client.py` reads it, `deploy/control/run_controls.py` makes it.
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from common.config_base import Config

MemberState = Literal["starting", "syncing", "active", "draining", "given_up"]
KLMeasure = Literal["kl_seq_sum", "kl_token_mean"]
MAX_MEMBERS = 10_000
"""Most processes of a role that may be asked for: a slip of the finger must not ask a cluster for a million."""


class Status(BaseModel):
    """Frozen; keys of a newer run that this version does not know are left out."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class MemberStatus(Status):
    """One rollout worker or reward replica."""

    slot: str
    """Name, as in worker-0; whoever replaces a dead member has the same."""
    state: MemberState
    """`starting`: the process loads its models. `syncing`: it fetches the weights, or answers its probe. `active`: it
    gets work. `draining`: it finishes what it holds, then goes. `given_up`: it failed too often."""
    is_waiting: bool = False
    """It has had no node for 10 s: none has room for it, or processes start slowly there."""
    node: str | None = None
    """Node on which it runs."""
    pid: int | None = None
    """Process."""
    weights: str | None = None
    """Identity of the weights that it holds, lineage and step."""
    calls_held: int = 0
    """Calls that it works on."""
    restarts: int = 0
    """Times that the slot was filled anew within the restart window."""
    heartbeat_age_s: float | None = None
    """Seconds since its last sign of life."""
    last_error: str | None = None
    """Why its predecessor went, or why it was given up."""
    weights_age_s: float | None = None
    """Seconds since its weights were published."""
    busy_fraction: float | None = None
    """Share of the last update's time in which it worked."""
    tokens_per_s: float | None = None
    """Response tokens generated per second of work, in its last call."""
    rss_bytes: int | None = None
    """Memory that its process holds in RAM."""


class PoolStatus(Status):
    """The members of one role."""

    target: int
    """How many there shall be."""
    active: int
    """How many get work."""
    members: tuple[MemberStatus, ...] = ()
    """All, those that come and go included."""
    queued: int = 0
    """Requests that wait for a member with room."""
    queue_age_s: float = 0.0
    """Seconds that the oldest of them has waited."""
    queue_wait_p95_s: float = 0.0
    """Seconds that 19 of 20 of the last requests waited at most until a member got them."""


class LearnerStatus(Status):
    """The learner."""

    state: str
    """What it is doing, or that it is being replaced."""
    pid: int | None = None
    """Process."""
    restarts: int = 0
    """Times that it was started anew."""


class CheckpointInfo(Status):
    """A checkpoint that is written and verified."""

    step: int
    """Updates done when it was taken."""
    url: str
    """Where it lies."""
    age_s: float
    """Seconds since it was written."""


class SettingsStatus(Status):
    """The settings that may change at run time, as they are in force, or will be from the next update on."""

    temperature: float
    """Of sampling."""
    learning_rate: float
    """Peak rate, as `ppo.optimizer.lr`; a schedule multiplies it."""
    kl_target: float | None = None
    """Nats; None where the KL coefficient is fixed."""
    kl_coef: float | None = None
    """None where the KL coefficient is adaptive."""


class WaitStatus(Status):
    """Who waited for whom in the last update, as shares of its time."""

    update_s: float
    """Seconds of the last update, collecting and publishing included."""
    learner_wait_fraction: float
    """The learner waited for samples."""
    worker_idle_fraction: float
    """Active rollout workers had nothing to do, mean over the workers."""
    reward_idle_fraction: float
    """Active reward replicas had nothing to do, mean over the replicas."""
    advice: str = ""
    """What limits the run, and what would help, in a sentence."""


class AutoscalerStatus(Status):
    """What asks for more or fewer rollout workers of itself."""

    min_workers: int
    """Fewest that it asks for."""
    max_workers: int
    """Most that it asks for: as configured, and no more than an update has chunks."""
    direction: Literal["up", "down", "hold"]
    """What it decided last."""
    reason: str
    """Why, in words."""


class AlarmStatus(Status):
    """A guard rail that is raised."""

    guard: str
    """Which, as in `kl`."""
    since_step: int
    """First update that it is about."""
    text: str
    """What it saw, what is legal, what was done."""


class StageProgress(Status):
    """How far a stage is that has no updates: a supervised one, or an evaluation."""

    step: int
    """Steps done."""
    total: int
    """Steps in all."""
    message: str = ""
    """What it does or the newest figure, as in `loss 3.61`."""
    left_s: float | None = None
    """Seconds that the rest takes at the pace so far; None where there is none yet."""


class RunStatus(Status):
    """A run as it is now. What only PPO has is None or empty while another stage runs."""

    run: str
    """Name."""
    pid: int
    """Process of the driver."""
    started_at: datetime
    """When the driver started."""
    stage: str | None = None
    """Stage that runs; None before the first and after the last."""
    progress: StageProgress | None = None
    """How far that stage is; None in PPO, which counts updates, and where it has not said yet."""
    stopping: str | None = None
    """Why the run is ending; None while it goes on."""
    step: int | None = None
    """Updates done."""
    updates: int | None = None
    """Updates in all."""
    lineage: int | None = None
    """Of the weights; one higher after each start from a checkpoint."""
    phase: str | None = None
    """What the loop waits for: `collect`, `update`, `publish`, ..."""
    phase_s: float | None = None
    """Seconds in that phase."""
    ledger: dict[str, int | dict[str, int]] = {}
    """Where the dispatched samples are."""
    newest_checkpoint: CheckpointInfo | None = None
    """The newest that is verified."""
    pools: dict[str, PoolStatus] = {}
    """By role: `rollout`, `reward`."""
    learner: LearnerStatus | None = None
    """The learner."""
    pause: Literal["none", "asked", "paused"] = "none"
    """`asked`: the run pauses once the running update is done. `paused`: it does nothing until it is resumed."""
    settings: SettingsStatus | None = None
    """What may change at run time."""
    kl_measure: KLMeasure = "kl_seq_sum"
    """What `settings.kl_target` is about: KL per response, or per token; a name of `latest`."""
    latest: dict[str, float] = {}
    """Metrics of the last update, by the names of metrics.jsonl."""
    tokens_per_s: float | None = None
    """Response tokens per second of wall time over the last update."""
    waits: WaitStatus | None = None
    """Who waited for whom in the last update."""
    autoscaler: AutoscalerStatus | None = None
    """None where the number of workers is changed by people alone."""
    alarms: tuple[AlarmStatus, ...] = ()
    """Guard rails that are raised now."""
    rollbacks: int = 0
    """Times that a guard rail went back to a checkpoint."""


Count = Annotated[int, Field(ge=1, le=MAX_MEMBERS, strict=True)]
Amount = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class ScaleRequest(Config):
    """How many processes there shall be; what is left out stays."""

    rollout_workers: Count | None = None
    """Rollout workers."""
    reward_replicas: Count | None = None
    """Reward replicas."""

    @model_validator(mode="after")
    def _asks_for_something(self) -> "ScaleRequest":
        if self.rollout_workers is None and self.reward_replicas is None:
            raise ValueError("nothing to change; give rollout_workers, reward_replicas or both")
        return self


class SettingsRequest(Config):
    """Settings to change from the next update on; what is left out stays."""

    temperature: Amount | None = Field(default=None, gt=0, le=10)
    """Of sampling."""
    learning_rate: Amount | None = Field(default=None, gt=0, le=10)
    """Peak rate, as `ppo.optimizer.lr`; all other rates move by the same factor."""
    kl_target: Amount | None = Field(default=None, gt=0, le=1000)
    """Nats; only where the KL coefficient is adaptive."""
    kl_coef: Amount | None = Field(default=None, ge=0, le=1000)
    """Only where the KL coefficient is fixed."""
    reason: Annotated[str, StringConstraints(max_length=200)] = ""
    """Goes to the log and the report."""

    def changes(self) -> dict[str, float]:
        """What shall change, by name."""
        return self.model_dump(exclude_none=True, exclude={"reason"})

    @model_validator(mode="after")
    def _asks_for_something(self) -> "SettingsRequest":
        if not self.changes():
            raise ValueError("nothing to change; give temperature, learning_rate, kl_target or kl_coef")
        if not self.reason.isprintable():
            raise ValueError("reason must be one line of printable characters")
        return self


class CheckpointRequest(Config):
    """How long to wait for the checkpoint."""

    wait_s: float = Field(default=600.0, gt=0, le=3600, strict=True, allow_inf_nan=False)
    """Longest time until the answer; the checkpoint is written all the same."""


class StopRequest(Config):
    """Why the run shall end."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=200)] = "minichatgpt stop"
    """Goes to the log, and to whoever asks how the run ended."""

    @model_validator(mode="after")
    def _is_one_line(self) -> "StopRequest":
        if not self.reason.isprintable():
            raise ValueError("reason must be one line of printable characters")
        return self


class Health(Status):
    """That the driver answers."""

    status: Literal["ok"] = "ok"
    """The only value."""


class Problem(Status):
    """Why a request was refused."""

    error: str
    """Kind."""
    message: str
    """What was got, what is legal, what to change."""
