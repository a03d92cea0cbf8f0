"""Lets the loop stand still between two updates, until somebody lets it go on or wants the run to end.

    control channel ── pause, release ──▶ Brake ◀── hold ── loop

The pools live on meanwhile: members stay, come and go. A checkpoint that is asked for is written, for the loop, which
would do it after an update, is what stands still. Called by `steering.py`; a pause does not outlive the process.
"""

import threading
from collections.abc import Callable
from typing import Literal

from deploy.stop_signal import StopSignal
from deploy.stopwatch import Stopwatch

LOOK_EVERY_S = 0.1
"""Time between two looks at whether somebody wants the end, or a checkpoint."""
Pause = Literal["none", "asked", "paused"]


class Brake:
    """Whether the loop shall stand still, and whether it does. Orders come on any thread.

    Args:
        watch: told how long it stands.
        stop: looked at while it does.
        is_asked: whether somebody wants a checkpoint.
        save: begins it.
        told: told when it begins to stand, and when it ends.
    """

    def __init__(
        self,
        *,
        watch: Stopwatch,
        stop: StopSignal,
        is_asked: Callable[[], bool],
        save: Callable[[], None],
        told: Callable[[bool], None],
    ) -> None:
        self._watch = watch
        self._stop = stop
        self._is_asked = is_asked
        self._save = save
        self._told = told
        self._changed = threading.Condition()
        self._state: Pause = "none"
        self._is_standing = False
        """Known to the loop's thread alone: whoever releases and pulls at once changes nothing of it."""

    @property
    def state(self) -> Pause:
        """`asked`: the loop stands still at the next chance. `paused`: it does."""
        return self._state

    def pause(self) -> bool:
        """Stand still at the next chance; False where this is wanted already."""
        with self._changed:
            is_new, self._state = self._state == "none", "asked" if self._state == "none" else self._state
        return is_new

    def release(self) -> bool:
        """Go on; False where nobody wanted a pause."""
        with self._changed:
            was_wanted, self._state = self._state != "none", "none"
            self._changed.notify_all()
        return was_wanted

    def hold(self) -> None:
        """Return once nobody wants a pause; called by the loop, between two updates.

        Raises:
            RunStopped: somebody wants the run to end. The pause is still wanted then, as after any other error: a loop
                that begins again stands still again.
            CheckpointError, LearnerLostError: a checkpoint that was asked for could not be written.
        """
        if self._state == "none":
            return
        try:
            while self._stands():
                self._save()
        finally:
            self._leave()

    def _stands(self) -> bool:
        """Stand still; returns whether a checkpoint is to be written, before standing still goes on."""
        with self._watch.phase("paused"):
            while self._is_wanted():
                self._stop.raise_if_requested()
                if self._is_asked():
                    return True
                with self._changed:
                    if self._state == "paused":
                        self._changed.wait(LOOK_EVERY_S)
        return False

    def _is_wanted(self) -> bool:
        with self._changed:
            if self._state == "none":
                return False
            self._state = "paused"
        if not self._is_standing:
            self._is_standing = True
            self._told(True)
        return True

    def _leave(self) -> None:
        with self._changed:
            if self._state == "paused":
                self._state = "asked"
        if self._is_standing:
            self._is_standing = False
            self._told(False)
