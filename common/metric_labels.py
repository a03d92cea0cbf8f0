"""Which values the labels of metrics take: those that are known have a series from the start, at 0, and of a word that
nobody foresaw only `other` is left. So the number of series is bounded, whatever a scorer or a client says.
"""

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Final

OTHER: Final = "other"
ROUTES_AT_MOST: Final = 48
"""Routes of the control channel that are told apart; it has fewer."""
WORD_AT_MOST: Final = 40
"""Characters of a label's value that is a word of our own, as the name of an event."""

STATES: Final = ("starting", "syncing", "active", "draining", "given_up")
LOOP_PHASES: Final = ("collect", "update", "publish", "snapshot", "evaluate", "paused")
PUBLISH_PARTS: Final = ("wait", "fetch", "verify", "load", "pack", "probe")
"""What a worker does with weights that it does not hold; fetch and verify perhaps beside its work, the rest instead."""
ENGINES: Final = ("generic", "llama", "llama_packed")
"""Ways of the sampling engine."""
METHODS: Final[Mapping[str, tuple[str, ...]]] = {
    "rollout": ("generate",),
    "reward": ("score", "evaluate", "reference"),
}
PHASES: Final[Mapping[str, tuple[str, ...]]] = {
    "rollout": (*PUBLISH_PARTS, "generate"),
    "reward": ("score", "reference"),
    "learner": ("prepare", "train"),
}
WAITS: Final[Mapping[str, tuple[str, ...]]] = {
    "rollout": ("start", "adopt", "drain", "heartbeat", *METHODS["rollout"]),
    "reward": ("start", "probe", "drain", "heartbeat", "budget", *METHODS["reward"]),
    "learner": ("start", "load", "weights", "prepare", "update", "snapshot", "export", "heartbeat"),
}
"""What is waited for with a deadline."""
UNSCORED: Final = (
    "reward_nonfinite", "reward_error", "reward_timeout", "reward_shape", "reference_timeout", "reference_error",
)  # fmt: skip
"""Why a sample has no score, or no logprobs of the reference."""
DROPPED: Final = (*UNSCORED, "group_incomplete", "nonfinite_update")
SETTINGS: Final = ("temperature", "learning_rate", "kl_target", "kl_coef")
GUARDS: Final = ("kl", "entropy", "clip_fraction", "repetition", "length", "judge_gap")
"""Names of the guard rails, in the order in which they look: those of the tables in `[guards]`."""
GUARD_ACTIONS: Final = ("warn", "lower_learning_rate", "roll_back", "stop")
EVENTS: Final = (
    "active", "waiting", "restart", "given_up", "lost", "drain", "error", "regenerate", "scale", "autoscale", "pause",
    "resume",
    "settings", "resumed", "rolled_back", "guard_alarm", "guard_cleared", "guard_stop", "control",
    "learner_lost", "nonfinite_update", "checkpoint_failed", "checkpoint_damaged", "over_optimisation",
)  # fmt: skip
"""Those that are counted from 0; others appear once they happen."""


def _by_role(values: Mapping[str, Iterable[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple((role, value) for role, those in values.items() for value in those)


def _each(values: Iterable[str]) -> tuple[tuple[str, ...], ...]:
    return tuple((value,) for value in values)


KNOWN: Final[Mapping[str, tuple[tuple[str, ...], ...]]] = {
    "loop_seconds": _each(LOOP_PHASES),
    "phase_seconds": _by_role(PHASES),
    "events": _each(EVENTS),
    "samples": (
        *((fate, "") for fate in ("trained", "rolled_back", "buffered", "in_flight", "dropped")),
        *product(("dropped",), (*DROPPED, OTHER)),
    ),
    "unscored_samples": _each((*UNSCORED, OTHER)),
    "members": tuple(product(METHODS, STATES)),
    "members_target": _each(METHODS),
    "restarts": _each((*METHODS, "learner")),
    "resizes": _each(METHODS),
    "timeouts": _by_role(WAITS),
    "queue_length": _each(METHODS),
    "queue_age_seconds": _each(METHODS),
    "request_queue_seconds": _by_role(METHODS),
    "request_seconds": _by_role(METHODS),
    "publish_seconds": _each(("take", *PUBLISH_PARTS, "pause")),
    "engine_tokens": _each(ENGINES),
    "guard_alarm": _each(GUARDS),
    "guard_actions": tuple(product(GUARDS, GUARD_ACTIONS)),
    "checkpoint_seconds": _each(("snapshot", "write")),
    "busy_seconds": (("learner", "learner"), ("driver", "driver")),
}
"""By metric: label values whose series exist from the start."""


def bounded(value: str, known: Iterable[str]) -> str:
    """The value if it is known, else `other`."""
    return value if value in known else OTHER


def word(value: str) -> str:
    """A word of our own code, as the name of an event or a guard rail; whatever looks like a text is `other`."""
    return value if value.isidentifier() and value.isascii() and len(value) <= WORD_AT_MOST else OTHER
