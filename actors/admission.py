"""Staleness as arithmetic: how many samples may be asked for ahead of learning.

Bound by admission, never by throwing old samples away: that would starve slow, long responses and bias the batch. Were
samples trained in the order in which they are asked for, none would be older than `max_staleness`. The conductor trains
those first that come first, so that one slow response holds up no others: it is then older than that when it comes, and
others are younger. So what is bounded is how much is on its way.
Source of the formula: AReaL (arXiv:2505.24298, section 5.1).
"""


def capacity(*, step: int, submitted: int, batch: int, max_staleness: int) -> int:
    """Samples that may be dispatched now.

    In the order of asking the sample of index s is trained in update s // batch, so weights of update `step` may still
    serve samples of the updates step … step + max_staleness.

    Args:
        step: updates done.
        submitted: samples dispatched since the start and not given up.
        batch: samples of one update.
        max_staleness: updates by which weights may be older than the learner's; 0 is strictly on-policy.

    Returns:
        0 or more.
    """
    return max(0, (step + max_staleness + 1) * batch - submitted)


def staleness(*, trained_at: int, generated_at: int) -> int:
    """Updates between the weights that generated a sample and the update that trains on it."""
    if generated_at > trained_at:
        raise ValueError(f"a sample of weights {generated_at} cannot be trained by update {trained_at}: it is newer")
    return trained_at - generated_at
