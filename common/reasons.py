"""What went wrong with a member, in words. Pure; said by common/roster.py and common/pool.py."""

import numpy as np

from common.errors import LearnerLostError, MiniChatGPTError

PROBE_TOLERANCE = 1e-3
"""By how much a new replica's score of the probe text may differ from the first replica's."""


def weights_lost(error: BaseException) -> LearnerLostError:
    """The published weights were in the store of a node that is gone: the learner must publish anew."""
    return LearnerLostError(f"the published weights are lost, with the learner's node as it seems: {words(error)}")


def words(error: BaseException) -> str:
    """An error in words; errors of ours say all in their message."""
    return str(error) if isinstance(error, MiniChatGPTError) else f"{type(error).__name__}: {error}"


def differs(numbers: dict[str, float], first: dict[str, float]) -> str:
    """Empty if a new replica scores the probe text as the first one did."""
    if numbers.keys() != first.keys():
        return f"scores the probe text by {sorted(numbers)}, the first replica by {sorted(first)}"
    for name, value in numbers.items():
        if not np.isclose(value, first[name], rtol=PROBE_TOLERANCE, atol=PROBE_TOLERANCE):
            return f"scores the probe text {value:g} by {name}, the first replica {first[name]:g}"
    return ""
