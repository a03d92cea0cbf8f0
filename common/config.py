"""The tree of settings of a run: one frozen pydantic document. Imports pydantic, never torch.

A stage runs if its table is present. The order is always pretrain, sft, reward_model, judge, ppo, evaluate.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.autoscaler_config import AutoscalerConfig
from common.classifier_config import RewardModelConfig
from common.cluster_config import ClusterConfig
from common.config_base import CHANGEABLE, Config
from common.control_config import ControlConfig
from common.data_config import PREFERENCES, READS, DataSource, Weights, check_rows, check_weights
from common.evaluate_config import EvaluateConfig
from common.guards_config import GuardsConfig
from common.model_config import Model
from common.optimizer_config import Optimizer
from common.placement_config import LearnerConfig, RewardServiceConfig, RolloutConfig
from common.ppo_config import PPOConfig
from common.tracker_config import TrackersConfig


class LanguageModelTraining(Config):
    """Next-token cross-entropy over texts: pre-training, and fine-tuning on demonstrations."""

    data: list[str] = Field(min_length=1)
    """Named data sources; their training split is learned, their held-out split measured."""
    weights: Weights = {}
    """How often each source is drawn from, by name, as `{ a = 3, b = 1 }`: each goes through epochs of its own, and
    `epochs` counts as many draws as there are texts in all. None: every text once an epoch."""
    epochs: float = Field(default=1.0, gt=0)
    """Passes over the texts; 0.5 stops half-way."""
    batch_sequences: int = Field(default=128, ge=1)
    """Texts of one optimizer step."""
    max_tokens: int = Field(default=64, ge=2)
    """Longer texts are cut."""
    drop_unknown: bool = False
    """Leave out texts with a word outside of the vocabulary; the share left out is reported."""
    join: Literal["none", "document", "label"] = "none"
    """Put texts that are left, of one document or of one class, one after the other up to max_tokens: passages of
    several sentences that agree with each other."""
    optimizer: Optimizer
    """Optimizer and peak learning rates."""
    warmup_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Share of the steps over which the rates rise linearly."""
    decay_fraction: float = Field(default=0.5, ge=0, le=1)
    """Share of the steps, at the end, over which the rates fall linearly to final_fraction."""
    final_fraction: float = Field(default=0.0, ge=0, le=1)
    """Share of the peak rates at the last step."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm; inf: never."""
    heldout_texts: int = Field(default=1000, ge=1)
    """Held-out texts on which perplexity is measured, per data source."""

    @model_validator(mode="after")
    def _weighs_what_is_there(self) -> "LanguageModelTraining":
        check_weights(self.data, self.weights)
        return self


class RunConfig(Config):
    """One run: its data, its model, its stages and its processes."""

    name: Annotated[str, CHANGEABLE] = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its folder."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed from which every random number of the run follows."""
    data: dict[str, DataSource] = {}
    """Data sources by name; the stages refer to them."""
    heldout_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the documents that no stage trains on, by a stable hash of the text."""
    model: Model
    """The policy before training."""
    pretrain: LanguageModelTraining | None = None
    """Pre-training of a fresh model."""
    sft: LanguageModelTraining | None = None
    """Supervised fine-tuning on demonstrations."""
    reward_model: RewardModelConfig | None = None
    """The classifier that scores for PPO, if `reward_service.scorers` names one of type `model`, as by default."""
    judge: RewardModelConfig | None = None
    """An independent classifier that PPO never sees and that scores the evaluations."""
    ppo: PPOConfig | None = None
    """PPO."""
    evaluate: EvaluateConfig | None = None
    """Evaluation before and after PPO, and while it learns."""
    guards: Annotated[GuardsConfig, CHANGEABLE] = GuardsConfig()
    """Guard rails while PPO learns."""
    rollout: RolloutConfig = RolloutConfig()
    """Rollout workers."""
    autoscaler: Annotated[AutoscalerConfig, CHANGEABLE] = AutoscalerConfig()
    """Changes the number of rollout workers while PPO learns; off unless it is enabled."""
    reward_service: RewardServiceConfig = RewardServiceConfig()
    """Reward replicas."""
    learner: LearnerConfig = LearnerConfig()
    """The learner."""
    cluster: Annotated[ClusterConfig, CHANGEABLE] = ClusterConfig()
    """The Ray cluster that the run joins."""
    trackers: Annotated[TrackersConfig, CHANGEABLE] = TrackersConfig()
    """TensorBoard and Weights & Biases."""
    control: Annotated[ControlConfig, CHANGEABLE] = ControlConfig()
    """Watching and steering."""
    stop_timeout_s: Annotated[float, CHANGEABLE] = Field(default=60.0, gt=0)
    """After Ctrl-C, SIGTERM or `stop`: longest time for the running update to finish before it is abandoned."""

    def data_of_language_models(self) -> list[str]:
        """Data sources of pre-training and fine-tuning: perplexity is measured on all, so that forgetting is seen."""
        tables = [table for table in (self.pretrain, self.sft) if table is not None]
        return list(dict.fromkeys(name for table in tables for name in table.data))

    @model_validator(mode="after")
    def _names_resolve(self) -> "RunConfig":
        for stage, names in self.data_used().items():
            for name in names:
                if name not in self.data:
                    raise ValueError(
                        f"{stage}.data names {name!r}, which is no data source; "
                        f"defined are: {', '.join(self.data) or 'none'} (add [data.{name}])"
                    )
                check_rows(stage, name, self.data[name], self._reads(stage))
        return self

    def data_used(self) -> dict[str, list[str]]:
        """Names of the data sources that each stage reads, by stage."""
        used: dict[str, list[str]] = {}
        for stage in ("pretrain", "sft", "ppo"):
            table = getattr(self, stage)
            if table is not None:
                used[stage] = table.data
        for stage in ("reward_model", "judge"):
            table = getattr(self, stage)
            if table is not None and table.training is not None:
                used[f"{stage}.training"] = table.training.data
        return used

    def _reads(self, stage: str) -> Sequence[str]:
        """The kinds of rows that a stage, as `data_used` names it, can read."""
        table = getattr(self, stage.removesuffix(".training"))
        ranks = stage.endswith(".training") and table.training.type == "preferences"
        return PREFERENCES if ranks else READS[stage]

    @model_validator(mode="after")
    def _labels_where_needed(self) -> "RunConfig":
        for stage in ("reward_model", "judge"):
            table = getattr(self, stage)
            if table is None or table.training is None or table.training.type != "labels":
                continue
            for name in table.training.data:
                source = self.data[name]
                labelled = source.labels if source.type == "inline" else source.label_column
                if labelled is None:
                    key = "labels" if source.type == "inline" else "label_column"
                    raise ValueError(f"{stage} trains on data.{name}, which has no labels; set data.{name}.{key}")
        return self

    @model_validator(mode="after")
    def _stages_fit_together(self) -> "RunConfig":
        if self.model.type == "fresh" and self.pretrain is None:
            raise ValueError("a fresh model knows nothing; add a [pretrain] table or choose a pretrained model")
        if self.model.type != "fresh" and self.pretrain is not None:
            raise ValueError("[pretrain] is for fresh models; remove the table, or use [sft]")
        if self.ppo is not None:
            self._check_reward(self.ppo)
            self._check_groups(self.ppo)
            is_evaluated = self.evaluate is not None and self.evaluate.every_updates > 0
            self.guards.check(has_reference=self.ppo.reference != "none", is_evaluated=is_evaluated)
        if self.evaluate is not None and self.ppo is None:
            raise ValueError("[evaluate] compares before and after PPO; add a [ppo] table")
        if self.evaluate is not None and self.judge is None:
            raise ValueError("[evaluate] needs a judge that PPO never sees; add a [judge] table")
        self.autoscaler.check(self.rollout)
        self._check_independent_judge()
        self._check_lengths()
        return self

    def _check_reward(self, ppo: PPOConfig) -> None:
        if self.reward_service.has_model and self.reward_model is None:
            raise ValueError(
                "[ppo] has nothing to maximise; add a [reward_model] table, or list other scorers in "
                "reward_service.scorers"
            )
        if ppo.score_baseline == "prompt" and not self.reward_service.has_model:
            raise ValueError(
                'ppo.score_baseline="prompt" is the reward model\'s score of the prompt, but reward_service.scorers '
                'has no { type = "model" }; add it, or set score_baseline = "none"'
            )

    def _check_groups(self, ppo: PPOConfig) -> None:
        chunk, k = self.rollout.chunk_sequences, ppo.samples_per_prompt
        if chunk % k:
            raise ValueError(
                f"rollout.chunk_sequences={chunk} counts samples, and must divide by ppo.samples_per_prompt={k}, for "
                f"the samples of a prompt stay together; try rollout.chunk_sequences={max(1, round(chunk / k)) * k}"
            )

    def _check_independent_judge(self) -> None:
        a, b = self.reward_model, self.judge
        if a is None or b is None or a.training is None or b.training is None:
            return
        learned = {self._origin(name) for name in a.training.data}
        shared = {name for name in b.training.data if self._origin(name) in learned}
        halves = {a.training.half, b.training.half}
        if shared and (len(halves) == 1 or "all" in halves):
            raise ValueError(
                f"reward_model and judge train on the same labels of {', '.join(sorted(shared))} "
                f"(halves {a.training.half!r} and {b.training.half!r}); set half to 'a' in one and 'b' in the other"
            )

    def _origin(self, name: str) -> str:
        """What a source's documents are, however they are cut."""
        return self.data[name].model_dump_json(exclude={"prepare", "install", "rows"})

    def _check_lengths(self) -> None:
        if self.model.type != "fresh":
            return
        for stage in ("pretrain", "sft"):
            table = getattr(self, stage)
            if table is not None and table.max_tokens > self.model.max_tokens:
                raise ValueError(
                    f"{stage}.max_tokens={table.max_tokens} exceeds model.max_tokens={self.model.max_tokens}; "
                    f"set it to {self.model.max_tokens} or less"
                )
        for stage in ("reward_model", "judge"):
            table = getattr(self, stage)
            if table is not None and table.classifier.type == "policy" and table.max_tokens > self.model.max_tokens:
                raise ValueError(
                    f"{stage}.max_tokens={table.max_tokens} exceeds model.max_tokens={self.model.max_tokens}, and its "
                    f"classifier is the policy; set it to {self.model.max_tokens} or less"
                )
        if self.ppo is None:
            return
        longest = self.ppo.prompt_tokens.max + self.ppo.response_tokens.max
        if longest > self.model.max_tokens:
            raise ValueError(
                f"prompts of {self.ppo.prompt_tokens.max} and responses of {self.ppo.response_tokens.max} tokens "
                f"exceed model.max_tokens={self.model.max_tokens}; set it to {longest} or more"
            )
