"""Every Prometheus metric of a run, declared once, on an injected registry. Base units; counters end in _total."""

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from common.records import Stats, UpdateReport
from common.run_settings import RunSettings
from common.supervision import Ledger

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)

UPDATE_GAUGES = {
    "score_mean": ("score_mean", "Mean score of the last update's samples, in the scorer's logits."),
    "score_std": ("score_std", "Standard deviation of the last update's scores."),
    "kl_seq_sum": ("kl_seq_sum_nats", "KL to the reference, summed over a response, mean over the last update."),
    "kl_token_mean": ("kl_token_mean_nats", "KL to the reference per response token, mean over the last update."),
    "kl_coef": ("kl_coefficient", "Weight of the KL penalty."),
    "entropy": ("entropy_nats", "Entropy of the policy per response token."),
    "policy_loss": ("policy_loss", "Clipped surrogate, per token."),
    "value_loss": ("value_loss", "Half the squared error of the values, per token."),
    "approx_kl": ("approx_kl_nats", "KL between the policy before and during the update, per token (k3)."),
    "clip_fraction": ("clip_fraction", "Share of tokens whose gradient the ratio clip took."),
    "value_clip_fraction": ("value_clip_fraction", "Share of tokens whose gradient the value clip took."),
    "explained_variance": ("explained_variance", "Share of the returns' variance that the values foresaw."),
    "grad_norm": ("gradient_norm", "Norm of the gradient before clipping, mean over optimizer steps."),
    "learning_rate": ("learning_rate", "Learning rate of the last update."),
    "response_tokens_mean": ("response_length_tokens", "Mean response length of the last update."),
    "truncated_fraction": ("truncated_fraction", "Share of responses cut by their length limit."),
    "zero_std_group_share": (
        "zero_std_group_share",
        "Share of prompts whose samples all have one score; 0 where there is one sample per prompt.",
    ),
    "logprob_gap_max": ("logprob_gap_max_nats", "Largest gap between the workers' and the learner's logprobs."),
}
"""UpdateReport.metrics name to Prometheus name (without prefix) and meaning."""


EVALUATION_GAUGES = {
    "reward": ("reward_mean", "Mean score of the last evaluation's responses, without a prompt baseline."),
    "judge": ("judge_mean", "Mean logit of the judge, which training never sees."),
    "judge_p_positive": ("judge_positive_ratio", "Mean probability of the positive class by the judge."),
    "reward_z": (
        "reward_rise_ratio",
        "Rise of the reward over before PPO, in standard deviations of then.",
    ),
    "judge_z": ("judge_rise_ratio", "Rise of the judge over before PPO, in standard deviations of then."),
    "gap": ("gap_ratio", "Rise of the reward less that of the judge: how far the policy pleases the reward alone."),
    "win_rate": ("win_ratio", "Share of prompts on which the judge prefers the response to the one before PPO."),
    "kl_seq_sum": ("kl_seq_sum_nats", "KL to the policy before PPO, summed over a response, mean over the responses."),
    "kl_token_mean": ("kl_token_mean_nats", "KL to the policy before PPO per response token."),
    "response_tokens": ("response_length_tokens", "Mean response length."),
    "truncated_fraction": ("truncated_fraction", "Share of responses cut by their length limit."),
    "distinct_2": ("distinct_2_ratio", "Distinct word pairs over all word pairs."),
}
"""Number of an evaluation to Prometheus name (without prefix `minichatgpt_evaluation_`) and meaning."""


class RunMetrics:
    """The metrics of one run.

    Args:
        registry: where they are declared; a fresh one per run.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        prefix = "minichatgpt_"

        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(prefix + name, meaning, labels, registry=registry)

        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(prefix + name, meaning, labels, registry=registry)

        self._updates = counter("updates", "PPO updates done.")
        self._samples = gauge("samples", "Samples by fate; the fates add up to those dispatched.", "fate", "reason")
        self._dispatched = gauge("samples_dispatched", "Samples dispatched since the start.")
        self._generated = counter("tokens_generated", "Response tokens generated.", "worker")
        self._trained = counter("tokens_trained", "Response tokens trained on, each counted once.")
        self._nonfinite = counter(
            "nonfinite_steps", "Optimizer steps left out for a loss or gradient that was not finite."
        )
        self._seconds = Histogram(
            prefix + "phase_seconds",
            "Seconds by role and phase.",
            ("role", "phase"),
            buckets=SECONDS,
            registry=registry,
        )
        self._events = counter(
            "events", "What events.jsonl holds: members lost, replaced, resized; losses of the learner.", "event"
        )
        self._duplicates = gauge("samples_duplicate", "Samples that were answered a second time.")
        self._weights_step = gauge("weights_step", "Update behind the weights that a worker last used.", "worker")
        self._probe_gap = gauge("probe_gap_nats", "Gap to the learner's logprobs on the probe prompts.", "worker")
        self._setting = gauge("setting", "A setting that may be changed at run time, as it is in force.", "setting")
        self._changes = counter("setting_changes", "Changes of such a setting.", "setting")
        self._paused = gauge("paused", "1 while the run stands still because somebody paused it.")
        self._evaluated = gauge("evaluation_step", "Update behind the last evaluation on held-out prompts.")
        self._over_optimised = gauge(
            "over_optimised", "1 while the reward of held-out prompts rises without the judge."
        )
        self._evaluation_gauges = {
            key: gauge(f"evaluation_{name}", meaning) for key, (name, meaning) in EVALUATION_GAUGES.items()
        }
        self._update_gauges = {key: gauge(name, meaning) for key, (name, meaning) in UPDATE_GAUGES.items()}

    def member(self, role: str, member: str, stats: Stats) -> None:
        """What a pool's member says of one call."""
        for phase, seconds in stats.seconds.items():
            self._seconds.labels(role, phase).observe(seconds)
        if stats.response_tokens and member:
            self._generated.labels(member).inc(stats.response_tokens)
        if stats.identity is not None and member:
            self._weights_step.labels(member).set(stats.identity.step)
            self._probe_gap.labels(member).set(stats.probe_gap)

    def departed(self, slot: str) -> None:
        """A member has left for good: its series go with it."""
        for family in (self._generated, self._weights_step, self._probe_gap):
            family.remove(slot)

    def event(self, name: str) -> None:
        """Something happened that an operator wants to know."""
        self._events.labels(name).inc()

    def phases(self, role: str, seconds: Mapping[str, float]) -> None:
        """Seconds that driver or learner spent."""
        for phase, value in seconds.items():
            self._seconds.labels(role, phase).observe(value)

    def update(self, report: UpdateReport) -> None:
        """What the learner says of an update."""
        self._nonfinite.inc(report.metrics.get("nonfinite_steps", 0.0))
        if not report.is_finite:
            return
        self._updates.inc()
        self._trained.inc(report.metrics.get("response_tokens", 0.0))
        for key, gauge in self._update_gauges.items():
            if key in report.metrics:
                gauge.set(report.metrics[key])

    def evaluation(self, step: int, numbers: Mapping[str, float], *, over_optimised: bool) -> None:
        """What the policy did on held-out prompts after an update."""
        self._evaluated.set(step)
        self._over_optimised.set(over_optimised)
        for key, gauge in self._evaluation_gauges.items():
            if key in numbers:
                gauge.set(numbers[key])

    def settings(self, settings: RunSettings) -> None:
        """These are in force."""
        for name, value in settings.present().items():
            self._setting.labels(name).set(value)

    def setting_changed(self, name: str) -> None:
        """Somebody changed one."""
        self._changes.labels(name).inc()

    def paused(self, stands: bool) -> None:
        """The run stands still, or goes on."""
        self._paused.set(stands)

    def ledger(self, ledger: Ledger) -> None:
        """Where every sample is."""
        self._dispatched.set(ledger.dispatched)
        self._duplicates.set(ledger.duplicates)
        for fate in ("trained", "rolled_back", "buffered", "in_flight"):
            self._samples.labels(fate, "").set(getattr(ledger, fate))
        self._samples.labels("dropped", "").set(0)
        for reason, samples in ledger.dropped.items():
            self._samples.labels("dropped", reason).set(samples)
