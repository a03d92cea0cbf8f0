"""How far a stage without updates of its own is, and how long it will take at the pace so far: arithmetic over a clock.

A stage says what it has done; `deploy/control/run_controls.py` keeps it here, and shows it in the status of the run.
"""

import time
from collections.abc import Callable

from deploy.control.run_status import StageProgress


class Pace:
    """What one stage has said of itself.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[int, float] | None = None
        """Step and time from which the pace counts."""
        self._newest: tuple[StageProgress, float] | None = None

    def show(self, step: int, total: int, message: str) -> None:
        """Steps done, of how many, and what there is to say; another total is other work, with a pace of its own."""
        now = self._clock()
        if self._first is None or self._newest is None or self._newest[0].total != total or step < self._first[0]:
            self._first = (step, now)
        begun, at = self._first
        left_s = (now - at) / (step - begun) * (total - step) if step > begun else None
        self._newest = (StageProgress(step=step, total=total, message=message, left_s=left_s), now)

    def progress(self) -> StageProgress | None:
        """As it is now; None before the stage has said anything."""
        if self._newest is None:
            return None
        progress, at = self._newest
        if progress.left_s is None:
            return progress
        return progress.model_copy(update={"left_s": max(0.0, progress.left_s - (self._clock() - at))})
