"""How long an update would take with another number of rollout workers: pure arithmetic on one update.

    collect(w) = max(ceil(chunks / w) · chunk, judging) + rest          update(w) = collect(w) + everything else

An update is cut into chunks of a fixed size, and a worker generates one after the other: so workers shorten collecting
in steps, and more workers than chunks have nothing to do. What reward replicas need does not shrink with workers, nor
does what is left over (waits for the last chunk's judgement, for weights). The learner's own work comes on top, for it
and the workers take turns.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Observation:
    """What is known once an update is recorded. Shares are of its time without pauses."""

    now_s: float
    """When, of any clock that only goes forward."""
    step: int
    """Updates done."""
    update_s: float
    """Since the update before, without pauses."""
    learner_wait_fraction: float
    """In which the learner waited for samples."""
    evaluate_fraction: float
    """In which workers and replicas answered held-out prompts."""
    worker_busy_fraction: float
    """In which a rollout worker worked, mean over the active ones."""
    reward_busy_fraction: float
    """In which a reward replica worked, mean over the active ones."""
    reward_queue_s: float
    """How long a chunk waited for a replica with room, mean over the chunks."""
    active: int
    """Rollout workers that take work."""
    starting: int
    """Those on their way: nodes may have to come first."""
    target: int
    """How many there shall be."""

    @property
    def training_s(self) -> float:
        """The update without evaluations, which not every update has."""
        return self.update_s * (1.0 - self.evaluate_fraction)


@dataclass(frozen=True, slots=True)
class Forecast:
    """An update, taken apart; times in seconds."""

    num_chunks: int
    chunk_s: float
    """One chunk on one worker."""
    judge_s: float
    """All chunks on the reward replicas that there are."""
    rest_s: float
    """Of collecting, that neither explains."""
    other_s: float
    """Learning, publishing, evaluating, saving."""

    @classmethod
    def of(cls, seen: Observation, num_chunks: int) -> "Forecast":
        """What an update with a steady number of workers tells; work for evaluations is left out by its share."""
        collect_s = seen.learner_wait_fraction * seen.update_s
        asked_s = collect_s + seen.evaluate_fraction * seen.update_s
        for_training = collect_s / asked_s if asked_s > 0 else 0.0
        work_s = seen.worker_busy_fraction * seen.update_s * seen.active * for_training
        rounds = rounds_of(num_chunks, seen.active)
        chunk_s = min(work_s / num_chunks, collect_s / rounds)
        judge_s = min(seen.reward_busy_fraction * seen.update_s * for_training, collect_s)
        return cls(
            num_chunks=num_chunks,
            chunk_s=chunk_s,
            judge_s=judge_s,
            rest_s=collect_s - max(rounds * chunk_s, judge_s),
            other_s=seen.update_s - collect_s,
        )

    def collect_s(self, workers: int) -> float:
        """The learner's wait with so many workers."""
        return max(rounds_of(self.num_chunks, workers) * self.chunk_s, self.judge_s) + self.rest_s

    def update_s(self, workers: int) -> float:
        """The whole update."""
        return self.collect_s(workers) + self.other_s

    def wait_fraction(self, workers: int) -> float:
        """The learner's wait as a share of it."""
        whole = self.update_s(workers)
        return self.collect_s(workers) / whole if whole > 0 else 0.0


def rounds_of(num_chunks: int, workers: int) -> int:
    """Chunks that the worker with most of them generates."""
    return -(-num_chunks // workers)
