"""Which curves the report shows, what each one says to a learner, and what would worry. Words only, no drawing."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Layer:
    """One thing drawn in a curve; keys are names in `metrics`, or `seconds.NAME`."""

    label: str
    keys: tuple[str, ...]
    """line: the value; range: lowest and highest; spread: mean and standard deviation."""
    shape: Literal["line", "range", "spread"] = "line"
    colour: int = 1
    """Which of the page's series colours, from 1."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One of the small multiples."""

    slug: str
    title: str
    shows: str
    worry: str
    layers: tuple[Layer, ...]
    is_log: bool = False
    is_stacked: bool = False
    starts_at_zero: bool = False
    rule: float | None = None
    """Height of a dashed line, told in `worry`."""


@dataclass(frozen=True, slots=True)
class Group:
    """Curves that are read together."""

    title: str
    curves: tuple[Curve, ...]


def _one(key: str) -> tuple[Layer, ...]:
    return (Layer("", (key,)),)


EVALUATIONS = Group("Held-out prompts while it learnt", (
    Curve(
        "heldout-rise", "Rise since before PPO (standard deviations)",
        "Reward and judge on the same held-out responses, each in the spread of its own scores before PPO.",
        "the reward rises and the judge does not follow: the policy pleases the reward model alone.",
        (Layer("reward", ("reward_z",)), Layer("judge", ("judge_z",), colour=2)), rule=0.0,
    ),
    Curve(
        "heldout-win", "Win rate over the policy before PPO",
        "Share of prompts on which the judge prefers the new response; a tie counts half, 0.5 (dashed) is even.",
        "a fall after a rise: it was better before.",
        (Layer("95 % interval", ("win_rate_low", "win_rate_high"), "range"), Layer("win rate", ("win_rate",))),
        rule=0.5,
    ),
    Curve(
        "heldout-kl", "KL per response (nats)",
        "Distance from the policy before PPO on held-out prompts: what the rise is paid with.",
        "growth that does not level off while the judge does.",
        _one("kl_seq_sum"),
    ),
    Curve(
        "heldout-distinct", "Distinct words and word pairs",
        "Different words (distinct-1) and word pairs (distinct-2) as a share of all in the responses.",
        "a fall: the policy says the same to everybody.",
        (Layer("distinct-1", ("distinct_1",)), Layer("distinct-2", ("distinct_2",), colour=2)), starts_at_zero=True,
    ),
    Curve(
        "heldout-length", "Response length (tokens)",
        "Mean length of the held-out responses.",
        "a drift to one end: length has become a way to score.",
        _one("response_tokens"), starts_at_zero=True,
    ),
    Curve(
        "heldout-truncated", "Cut off at the length limit",
        "Share of held-out responses that did not end by themselves.",
        "a rise: the policy forgets how to stop.",
        _one("truncated_fraction"), starts_at_zero=True,
    ),
))  # fmt: skip
"""Of `evaluations.jsonl`; the report has them where PPO was evaluated while it learnt."""

GROUPS = (
    Group("What is gained, and at what price", (
        Curve(
            "score", "Score",
            "What the reward model gives to the responses of each update; this is to rise.",
            "a jump together with a jump in KL: a trick was found, not better text.",
            (
                Layer("lowest–highest", ("score_min", "score_max"), "range"),
                Layer("± 1 std", ("score_mean", "score_std"), "spread"),
                Layer("mean", ("score_mean",)),
            ),
        ),
        Curve(
            "kl-seq", "KL per response (nats)",
            "Distance from the model before PPO, summed over a response: what the score is paid with.",
            "growth that does not level off while the score does.",
            _one("kl_seq_sum"),
        ),
        Curve(
            "kl-token", "KL per token (nats)",
            "The same per token, so that runs with other lengths compare; k3 is a second, always positive estimate.",
            "above 1 a token is nearly 3 times as likely as the old model finds it; below 0 it is noise or a bug.",
            (Layer("mean", ("kl_token_mean",)), Layer("k3", ("kl_k3_token_mean",), colour=2)),
        ),
    )),
    Group("The policy's steps", (
        Curve(
            "policy-loss", "Policy loss",
            "The clipped objective, negated. With centred advantages it stays near 0; it is no measure of success.",
            "large swings or a drift: steps too large, or samples too old.",
            _one("policy_loss"),
        ),
        Curve(
            "clip", "Clip fractions",
            "Share of tokens whose probability ratio (or value) moved beyond the clip range and counts no further.",
            "0 throughout: steps could be larger; above about 0.3: too large.",
            (Layer("policy", ("clip_fraction",)), Layer("value", ("value_clip_fraction",), colour=2)),
            starts_at_zero=True,
        ),
        Curve(
            "approx-kl", "Step size (approximate KL, nats)",
            "How far one update moves the policy from the one that sampled.",
            "above about 0.05: the samples no longer speak of the policy that learns from them.",
            _one("approx_kl"), starts_at_zero=True,
        ),
    )),
    Group("The value head and the optimizer", (
        Curve(
            "value-loss", "Value loss",
            "Error of the value head's forecast of the return; it falls, then follows a reward that moves.",
            "growth without end.",
            _one("value_loss"), starts_at_zero=True,
        ),
        Curve(
            "explained-variance", "Explained variance",
            "How much of the returns the value head foresees: 1 is all, 0 (dashed) no more than their mean.",
            "staying below 0: the value head harms more than it helps.",
            _one("explained_variance"), rule=0.0,
        ),
        Curve(
            "grad-norm", "Gradient norm",
            "Length of the gradient before it is clipped.",
            "spikes, or a gap in the line: a step was not finite and was not taken.",
            _one("grad_norm"), starts_at_zero=True,
        ),
    )),
    Group("The dials", (
        Curve(
            "kl-coef", "KL coefficient",
            "Price of one nat of KL in the reward; moves only with the adaptive controller.",
            "running off in one direction: the target cannot be met.",
            _one("kl_coef"), starts_at_zero=True,
        ),
        Curve(
            "lr", "Learning rate",
            "As the schedule has it: warm-up, then constant or falling.",
            "anything that the config did not ask for.",
            _one("learning_rate"), starts_at_zero=True,
        ),
        Curve(
            "entropy", "Entropy (nats)",
            "How undecided the policy is about the next token; falls as it makes up its mind.",
            "a fall towards 0: it says the same to everybody.",
            _one("entropy"),
        ),
    )),
    Group("The text and the arithmetic", (
        Curve(
            "length", "Response length (tokens)",
            "Tokens of the sampled responses.",
            "a drift to one end: length has become a way to score.",
            (Layer("mean", ("response_tokens_mean",)), Layer("longest", ("response_tokens_max",), colour=2)),
            starts_at_zero=True,
        ),
        Curve(
            "groups", "Prompts that teach nothing",
            "Share of prompts whose samples all have one score, so that none is better than the others.",
            "above 0.8: prompts too easy or too hard, or a policy that says the same each time.",
            _one("zero_std_group_share"), starts_at_zero=True,
        ),
        Curve(
            "truncated", "Cut off at the length limit",
            "Share of responses that did not end by themselves; 1 where lengths are fixed.",
            "a rise: the policy forgets how to stop.",
            _one("truncated_fraction"), starts_at_zero=True,
        ),
        Curve(
            "repetition", "Repeated trigrams",
            "Share of a response's runs of three tokens that it held before.",
            "above about 0.3, or a steady rise: it says the same again and again.",
            _one("repetition"), starts_at_zero=True,
        ),
        Curve(
            "gap", "Largest logprob gap (nats)",
            "Where sampling and learning compute the same logprob with the same weights, how far they differ at most.",
            "above 0.0001 (dashed) in float32: the two do not run the same model.",
            _one("logprob_gap_max"), is_log=True, rule=1e-4,
        ),
    )),
    Group("Time", (
        Curve(
            "seconds-wall", "Seconds of an update",
            "Wall time, phase on phase: collect, then the update (prepare, train, rest), then publish.",
            "growth over the run, or a publish that is not small.",
            (
                Layer("collect", ("seconds.collect",)),
                Layer("prepare", ("seconds.prepare",), colour=2),
                Layer("train", ("seconds.train",), colour=3),
                Layer("rest", ("seconds.update_rest",), colour=4),
                Layer("publish", ("seconds.publish",), colour=5),
            ),
            is_stacked=True, starts_at_zero=True,
        ),
        Curve(
            "seconds-members", "Seconds of the workers, summed",
            "What collecting is made of; workers run side by side, so this may exceed the wall time.",
            "fetch and load (new weights arriving) that are not small.",
            (
                Layer("generate", ("seconds.generate",)),
                Layer("score", ("seconds.score",), colour=2),
                Layer("reference", ("seconds.reference",), colour=3),
                Layer("fetch", ("seconds.fetch",), colour=4),
                Layer("load", ("seconds.load",), colour=5),
            ),
            is_stacked=True, starts_at_zero=True,
        ),
    )),
)  # fmt: skip
