"""Who waits for whom, in one sentence that says what to do. Shown by the page and by `minichatgpt top`."""

from deploy.control.run_status import WaitStatus

BUSY = 0.7
"""Share of the learner's wait that workers and replicas, one after the other, fill with work; less is lost between."""
MORE = 1.25
"""So many times as busy as the workers must replicas be to be what the learner waits for: shares of an update swing."""
SHORT, LONG = 0.25, 0.6
"""Shares of an update: a learner that waits less is what limits the run; one that waits longer is not."""


def advice(waits: WaitStatus) -> str:
    """What limits the run, and what would help.

    Generation and learning take turns, so workers are idle while the learner works: what counts is how busy they are
    while it waits.
    """
    wait = waits.learner_wait_fraction
    share = f"{100 * wait:.0f} %"
    if wait < SHORT:
        return (
            f"The learner waits only {share} of the time: it is what limits the run. Give it more CPUs or fewer "
            "epochs; more rollout workers would not help."
        )
    workers, reward = (
        min(1.0, (1.0 - idle) / wait) for idle in (waits.worker_idle_fraction, waits.reward_idle_fraction)
    )
    if workers + reward < BUSY:
        return (
            f"The learner waits {share} of the time, and neither workers nor replicas are busy meanwhile: they wait "
            "for one another. Smaller chunks may help; more workers would not."
        )
    if reward > MORE * workers:
        return (
            f"The learner waits {share} of the time, and the reward replicas work for {100 * reward:.0f} % of that: "
            "add reward replicas."
        )
    if wait < LONG:
        return (
            f"The learner waits {share} of the time: the run is balanced. Workers with CPUs of their own would shorten "
            "the wait."
        )
    return (
        f"The learner waits {share} of the time, and the workers work for {100 * workers:.0f} % of that: add rollout "
        "workers, if there are CPUs for them."
    )
