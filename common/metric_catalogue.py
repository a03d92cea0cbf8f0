"""Every Prometheus metric of a run, declared once: name, type, labels, unit, meaning, when to worry.

`common/metrics.py` makes them, `docs/metrics.md` is written from them, and tests hold dashboards and alerts to them.
Base units. Labels take few values: role (`rollout`, `reward`, `learner`, `driver`), slot (`worker-0`, …; whoever
replaces a dead member has the same), phase, reason. Never a process, a node or a text.
"""

from dataclasses import dataclass
from typing import Final, Literal

PREFIX: Final = "minichatgpt_"
SECONDS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
SAMPLES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
TOKENS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0)
SCORES: Final = (-10.0, -5.0, -3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
UPDATES: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric."""

    name: str
    """Without prefix and, of a counter, without `_total`."""
    type: Literal["counter", "gauge", "histogram"]
    unit: str
    """Base unit: seconds, bytes, nats, tokens, samples, …; `1` for shares and flags."""
    meaning: str
    worry: str
    """When to worry; empty where one never has to."""
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram."""
    report: str = ""
    """Of a gauge that an update sets: its name in UpdateReport.metrics. Of one that an evaluation sets: its name there,
    after `evaluation.`."""

    @property
    def full_name(self) -> str:
        """As it is scraped."""
        return PREFIX + self.name + ("_total" if self.type == "counter" else "")


# One metric is a paragraph here, not a column.
# fmt: off
RUN: Final = (
    Metric("build_info", "gauge", "1", "Always 1; versions are its labels.",
           "Versions differ between runs that are compared.", labels=("version", "python", "torch", "ray")),
    Metric("run_info", "gauge", "1", "Always 1; what runs is in its labels.", "", labels=("run", "runtime")),
    Metric("start_time_seconds", "gauge", "seconds", "When the driver's PPO stage began, Unix time.",
           "It moves: the driver was started anew."),
    Metric("updates", "counter", "updates", "PPO updates done by this process.",
           "It stands still while the run is not paused."),
    Metric("step", "gauge", "updates", "Updates behind the weights.",
           "It goes back: the learner was lost, or a guard rail went back to a checkpoint."),
    Metric("updates_planned", "gauge", "updates", "Updates in all.", ""),
    Metric("lineage", "gauge", "1", "Lineage of the weights: one higher after each start from a checkpoint.",
           "It grows again and again."),
    Metric("last_update_time_seconds", "gauge", "seconds",
           "When the last update was recorded, Unix time; the start of the stage before the first.",
           "Much longer ago than an update takes."),
    Metric("paused", "gauge", "1", "1 while the run stands still because somebody paused it.",
           "Nobody remembers why."),
    Metric("loop_seconds", "counter", "seconds",
           "Seconds of the main loop by phase: collect (the learner waits for samples), update, publish, "
           "snapshot, evaluate, paused.",
           "The share of collect is near 1: more rollout workers help; near 0: they do not.", labels=("phase",)),
    Metric("phase_seconds", "histogram", "seconds", "Seconds of one call by role and phase.",
           "A phase takes much longer than it did.", labels=("role", "phase"), buckets=SECONDS),
    Metric("update_seconds", "histogram", "seconds", "Seconds of one update, collecting and publishing included.",
           "It grows.", buckets=SECONDS),
    Metric("setting", "gauge", "1", "A setting that may be changed at run time, as it is in force.",
           "It is not what you set: a guard rail has changed it.", labels=("setting",)),
    Metric("setting_changes", "counter", "changes", "Changes of such a setting.", "More than you made.",
           labels=("setting",)),
    Metric("events", "counter", "events",
           "Lines of events.jsonl by kind: members lost, replaced, resized; losses of the learner.", "",
           labels=("event",)),
    Metric("control_requests", "counter", "requests", "Requests to the control channel by route and HTTP status.",
           "Many are refused (401, 403, 429).", labels=("route", "status")),
    Metric("metrics_seconds", "counter", "seconds",
           "Seconds that the driver spent on these metrics, locks included, answering scrapes left out.",
           "More than 1 % of the time."),
)

SAMPLES_AND_TOKENS: Final = (
    Metric("samples", "gauge", "samples",
           "Samples by fate: trained, rolled_back, dropped (by reason), buffered, in_flight. The fates add up to"
           " those dispatched.", "Dropped grows: the reward service fails.", labels=("fate", "reason")),
    Metric("samples_dispatched", "gauge", "samples", "Samples dispatched since the start of the run.", ""),
    Metric("samples_duplicate", "gauge", "samples",
           "Samples that were answered a second time; none is trained twice.",
           "It grows fast: workers are taken for dead that are not."),
    Metric("ledger_mismatch_samples", "gauge", "samples", "Samples dispatched less the sum of the fates.",
           "Not 0: a sample was lost or counted twice, which is a bug of ours."),
    Metric("unscored_samples", "counter", "samples", "Samples that could not be judged, by reason.", "It grows.",
           labels=("reason",)),
    Metric("generated_tokens", "counter", "tokens", "Response tokens generated.",
           "A slot's rate is below that of the others.", labels=("slot",)),
    Metric("engine_tokens", "counter", "tokens",
           "Response tokens by the way of the sampling engine that generated them: generic, the model's own forward; "
           "llama, our decoder; llama_packed, that with packed weights.",
           "generic, or llama on a CPU, where the family has a faster way: runs/…/run.json tells why.",
           labels=("path",)),
    Metric("prompt_tokens", "counter", "tokens", "Prompt tokens that were read in generating.", "", labels=("slot",)),
    Metric("trained_tokens", "counter", "tokens", "Response tokens trained on, each counted once.", ""),
    Metric("staleness_updates", "histogram", "updates",
           "Updates by which the weights that generated a sample were older than those it was trained on.",
           "Far above minichatgpt_max_staleness: some responses take much longer than others.", buckets=UPDATES),
)

MEMBERS: Final = (
    Metric("members", "gauge", "members",
           "Rollout workers and reward replicas by state: starting, syncing, active, draining, given_up.",
           "None is active.", labels=("role", "state")),
    Metric("members_target", "gauge", "members", "How many there shall be.", "More than are active, for long.",
           labels=("role",)),
    Metric("restarts", "counter", "restarts", "Times that a member, or the learner, was started anew.", "It grows.",
           labels=("role",)),
    Metric("timeouts", "counter", "timeouts", "Deadlines passed, by role and what was waited for.", "It grows.",
           labels=("role", "phase")),
    Metric("resizes", "counter", "resizes", "Times that the wanted number of members was changed.", "",
           labels=("role",)),
    Metric("autoscaler_target", "gauge", "members",
           "Rollout workers that the autoscaler wants; absent where it is off.",
           "It goes up and down again and again.", labels=("role",)),
    Metric("autoscaler_decisions", "counter", "decisions",
           "What the autoscaler decided after an update: up, down or hold; absent where it is off.",
           "up and down take turns.", labels=("direction",)),
    Metric("rollbacks", "counter", "rollbacks", "Times that a guard rail went back to a checkpoint.", "Any."),
    Metric("busy_seconds", "counter", "seconds",
           "Seconds of work, by member; of the learner, those of its calls; of the driver, CPU time of its process.",
           "",
           labels=("role", "slot")),
    Metric("busy_ratio", "gauge", "1",
           "Share of the last update's time in which a role worked, mean over its active members.",
           "rollout near 1 and learner near 0: add workers.", labels=("role",)),
    Metric("calls_held", "gauge", "calls", "Calls that a member works on.", "", labels=("role", "slot")),
    Metric("heartbeat_age_seconds", "gauge", "seconds", "Since a member's last sign of life.",
           "Near heartbeat_timeout_s.", labels=("role", "slot")),
    Metric("memory_bytes", "gauge", "bytes",
           "Memory in RAM of a member, the learner and the driver; of the driver alone where all is one process.",
           "It grows without end.", labels=("role", "slot")),
    Metric("queue_length", "gauge", "requests", "Requests that wait for a member with room.",
           "reward: it grows, so add replicas.", labels=("role",)),
    Metric("queue_age_seconds", "gauge", "seconds", "Since the oldest of them was queued.",
           "Longer than a call takes.", labels=("role",)),
    Metric("request_queue_seconds", "histogram", "seconds", "From queueing a request until a member got it.",
           "More than the call itself.", labels=("role", "method"), buckets=SECONDS),
    Metric("request_seconds", "histogram", "seconds", "From handing a request to a member until its answer.",
           "Near request_timeout_s.", labels=("role", "method"), buckets=SECONDS),
    Metric("reward_batch_samples", "histogram", "samples", "Samples of one scoring call.", "", buckets=SAMPLES),
)

WEIGHTS: Final = (
    Metric("published_step", "gauge", "updates", "Update behind the published weights.", ""),
    Metric("published_time_seconds", "gauge", "seconds", "When they were published, Unix time.", ""),
    Metric("published_bytes", "gauge", "bytes", "Size of the published weights.", ""),
    Metric("publish_seconds", "histogram", "seconds",
           "Publishing by part. take: the learner hashes its weights and hands them to the object store; fetch: a "
           "worker gets the buffer; verify: it hashes it; load: it is in its model; pack: it renews the "
           "copies of the weights that its engine decodes with; probe: it compares logprobs, where there is a probe, "
           "and once the frozen rest; pause: all the time in which it does not generate for that. With "
           "ppo.max_staleness above 0 it fetches and verifies beside its work, and wait is what it still waits for "
           "that.",
           "Pause is a large share of an update.", labels=("part",), buckets=SECONDS),
    Metric("weights_step", "gauge", "updates", "Update behind the weights that a worker holds.",
           "It stays behind published_step while the worker is active.", labels=("slot",)),
    Metric("weights_lineage", "gauge", "1", "Lineage of those weights.", "Not that of the run.", labels=("slot",)),
    Metric("weights_age_seconds", "gauge", "seconds", "Since a worker's weights were published.",
           "Longer than some updates.", labels=("slot",)),
    Metric("weights_lag_updates", "gauge", "updates",
           "Updates by which a worker's weights are behind the published ones; one that has no work stays behind.",
           "Above 1 + 3 * minichatgpt_max_staleness while it is busy.", labels=("slot",)),
    Metric("max_staleness", "gauge", "updates",
           "ppo.max_staleness: updates by which generation may run ahead of learning; 0 in synchronous mode.", ""),
    Metric("probe_gap_nats", "gauge", "nats",
           "Largest gap between a worker's and the learner's logprobs of the probe prompts.",
           "Above 0.001 in float32.", labels=("slot",)),
)

LEARNING: Final = (
    Metric("sample_score", "histogram", "score", "Scores of judged samples.", "All in one bucket.", buckets=SCORES),
    Metric("sample_response_tokens", "histogram", "tokens", "Length of generated responses.", "", buckets=TOKENS),
    Metric("score_mean", "gauge", "score", "Mean score of the last update's samples.",
           "It falls, or rises while the judge's does not.", report="score_mean"),
    Metric("score_std", "gauge", "score", "Standard deviation of the last update's scores.",
           "Near 0: nothing to learn from.", report="score_std"),
    Metric("score_min", "gauge", "score", "Lowest score of the last update.", "", report="score_min"),
    Metric("score_max", "gauge", "score", "Highest score of the last update.", "", report="score_max"),
    Metric("kl_seq_sum_nats", "gauge", "nats",
           "KL to the reference, summed over a response, mean over the last update.",
           "Several times the target, or it grows without end.", report="kl_seq_sum"),
    Metric("kl_token_mean_nats", "gauge", "nats",
           "KL to the reference per response token, mean over the last update.", "Above about 0.5; below 0 for long.",
           report="kl_token_mean"),
    Metric("kl_target_ratio", "gauge", "1",
           "KL over its target, in the measure of an adaptive coefficient; NaN where there is no target.",
           "Above about 3.", report="kl_target_ratio"),
    Metric("kl_coefficient", "gauge", "1", "Weight of the KL penalty.",
           "It grows without end: the policy runs away all the same.", report="kl_coef"),
    Metric("entropy_nats", "gauge", "nats", "Entropy of the policy per response token.",
           "It falls to a fraction of what it was.", report="entropy"),
    Metric("policy_loss", "gauge", "1", "Clipped surrogate, per token.", "", report="policy_loss"),
    Metric("value_loss", "gauge", "1", "Half the squared error of the values, per token.", "It grows.",
           report="value_loss"),
    Metric("approx_kl_nats", "gauge", "nats", "KL between the policy before and during the update, per token (k3).",
           "Above about 0.05: the steps are too large.", report="approx_kl"),
    Metric("clip_ratio", "gauge", "1", "Share of tokens whose gradient the ratio clip took.", "Above about 0.3.",
           report="clip_fraction"),
    Metric("value_clip_ratio", "gauge", "1", "Share of tokens whose gradient the value clip took.",
           "Above about 0.3.", report="value_clip_fraction"),
    Metric("explained_variance_ratio", "gauge", "1", "Share of the returns' variance that the values foresaw.",
           "Below 0 for long.", report="explained_variance"),
    Metric("gradient_norm", "gauge", "1", "Norm of the gradient before clipping, mean over optimizer steps.",
           "Always far above max_grad_norm.", report="grad_norm"),
    Metric("learning_rate", "gauge", "1", "Learning rate of the last update.", "", report="learning_rate"),
    Metric("response_length_tokens", "gauge", "tokens", "Mean response length of the last update.",
           "It drifts, above all while the score rises.", report="response_tokens_mean"),
    Metric("ended_ratio", "gauge", "1", "Share of responses that ended with an EOS token.", "It falls to 0.",
           report="ended_fraction"),
    Metric("truncated_ratio", "gauge", "1", "Share of responses cut by their length limit.", "It rises to 1.",
           report="truncated_fraction"),
    Metric("repetition_ratio", "gauge", "1",
           "Share of a response's word triples, as token ids, that it has said before, mean over the responses.",
           "Above about 0.3.", report="repetition"),
    Metric("zero_std_group_ratio", "gauge", "1",
           "Share of prompts whose samples all have one score; 0 where there is one sample per prompt.",
           "Near 1: nothing to learn from.", report="zero_std_group_share"),
    Metric("logprob_gap_max_nats", "gauge", "nats",
           "Largest gap between the workers' and the learner's logprobs of the same tokens.",
           "Above 0.001 in float32 at staleness 0.", report="logprob_gap_max"),
    Metric("importance_weight_mean", "gauge", "1",
           "Weight of a token where samples may be of older weights, after the cut at ppo.importance_cap; mean over the"
           " last update, NaN in synchronous mode.", "Far from 1.", report="importance_mean"),
    Metric("importance_weight_max", "gauge", "1", "Largest such weight before it was cut.",
           "Far above ppo.importance_cap, and it grows.", report="importance_max"),
    Metric("importance_cut_ratio", "gauge", "1", "Share of tokens whose weight was cut.", "Above about 0.05.",
           report="importance_truncated_fraction"),
    Metric("fresh_kl_nats", "gauge", "nats",
           "KL between sampling policy and learner per token (k3), of samples of the weights that were trained: what "
           "workers compute otherwise than the learner.", "Above 0.0001 in float32.", report="fresh_kl"),
    Metric("stale_kl_nats", "gauge", "nats",
           "The same of samples of older weights: how far the policy has moved since they were sampled.",
           "Above about 0.1: lower the learning rate or ppo.max_staleness.", report="stale_kl"),
    Metric("early_stopped", "gauge", "1",
           "1 if the last update left out epochs because its KL passed ppo.early_stop_kl.",
           "Often: lower the learning rate.", report="early_stopped"),
    Metric("nonfinite_steps", "counter", "steps",
           "Optimizer steps left out for a loss or gradient that was not finite.", "Any."),
    Metric("guard_alarm", "gauge", "1", "1 while a guard rail is raised.", "It is 1.", labels=("guard",)),
    Metric("guard_actions", "counter", "actions", "What guard rails did: warn, lower_learning_rate, roll_back, stop.",
           "Any but warn.", labels=("guard", "action")),
)

CHECKPOINTS: Final = (
    Metric("checkpoint_step", "gauge", "updates", "Update of the newest verified checkpoint.", "Far behind step."),
    Metric("checkpoint_time_seconds", "gauge", "seconds",
           "When it was written, Unix time; the start of the stage before the first.",
           "Much longer ago than checkpoint_every updates take."),
    Metric("checkpoint_bytes", "gauge", "bytes", "Its size.", ""),
    Metric("checkpoint_seconds", "histogram", "seconds",
           "Saving by part. snapshot: training waits; write: in the background.",
           "write is longer than checkpoint_every updates.", labels=("part",), buckets=SECONDS),
    Metric("checkpoint_failures", "counter", "failures", "Saves that failed.", "Any; two in a row end the run."),
)

EVALUATION: Final = (
    Metric("evaluation_step", "gauge", "updates", "Update behind the last evaluation on held-out prompts.", ""),
    Metric("over_optimised", "gauge", "1", "1 while the reward of held-out prompts rises without the judge.",
           "It is 1."),
    Metric("evaluation_reward_mean", "gauge", "score",
           "Mean score of the last evaluation's responses, without a prompt baseline.", "",
           report="evaluation.reward"),
    Metric("evaluation_judge_mean", "gauge", "score", "Mean logit of the judge, which training never sees.",
           "It falls while the reward rises.", report="evaluation.judge"),
    Metric("evaluation_judge_positive_ratio", "gauge", "1", "Mean probability of the positive class by the judge.",
           "", report="evaluation.judge_p_positive"),
    Metric("evaluation_reward_rise_ratio", "gauge", "1",
           "Rise of the reward over before PPO, in standard deviations of then.", "", report="evaluation.reward_z"),
    Metric("evaluation_judge_rise_ratio", "gauge", "1",
           "Rise of the judge over before PPO, in standard deviations of then.", "", report="evaluation.judge_z"),
    Metric("evaluation_gap_ratio", "gauge", "1",
           "Rise of the reward less that of the judge: how far the policy pleases the reward alone.", "It grows.",
           report="evaluation.gap"),
    Metric("evaluation_win_ratio", "gauge", "1",
           "Share of prompts on which the judge prefers the response to the one before PPO.", "Below 0.5.",
           report="evaluation.win_rate"),
    Metric("evaluation_kl_seq_sum_nats", "gauge", "nats",
           "KL to the policy before PPO, summed over a response, mean over the responses.", "",
           report="evaluation.kl_seq_sum"),
    Metric("evaluation_kl_token_mean_nats", "gauge", "nats", "KL to the policy before PPO per response token.", "",
           report="evaluation.kl_token_mean"),
    Metric("evaluation_response_length_tokens", "gauge", "tokens", "Mean response length.", "",
           report="evaluation.response_tokens"),
    Metric("evaluation_truncated_ratio", "gauge", "1", "Share of responses cut by their length limit.", "",
           report="evaluation.truncated_fraction"),
    Metric("evaluation_distinct_2_ratio", "gauge", "1", "Distinct word pairs over all word pairs.",
           "It falls: the policy repeats itself.", report="evaluation.distinct_2"),
)

# fmt: on

GROUPS: Final = {
    "Run": RUN,
    "Samples and tokens": SAMPLES_AND_TOKENS,
    "Members, queues and requests": MEMBERS,
    "Weights": WEIGHTS,
    "Learning": LEARNING,
    "Checkpoints": CHECKPOINTS,
    "Evaluation on held-out prompts": EVALUATION,
}
"""By heading of docs/metrics.md."""
CATALOGUE: Final = {metric.name: metric for group in GROUPS.values() for metric in group}
"""By name without prefix."""
