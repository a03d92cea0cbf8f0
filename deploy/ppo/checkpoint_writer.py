"""Writes the checkpoints of a run in the background: implements `common.ports.Checkpoints`.

    training thread     save: place ─▶ the learner copies ─▶ goes on training
    learner             writes its shard, reads it back
    writer's thread     commit: state.json, manifest.json, rename, prune

The training thread waits only where a save is due and the one before is not done. A save that fails is told in the
training thread, at the next call: one is a warning, for the run may outlive a bad moment of its storage; two in a row
end the run. Who asks for a checkpoint from elsewhere (the control channel) calls `request`, from any thread.
"""

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from math import isfinite

from pydantic import JsonValue

from common.checkpoint import Checkpoint, ShardFiles
from common.checkpoint_store import CheckpointStore
from common.errors import CheckpointError, LearnerLostError, MiniChatGPTError
from common.metrics import RunMetrics
from common.ports import Learner, Rollouts
from common.ppo_config import PPOConfig
from common.records import UpdateReport

COMMIT_GRACE_S = 10.0
"""Longest time that a late save is waited for where it is being committed."""
MAX_FAILURES_IN_A_ROW = 2
"""Failed saves after which a run ends."""


@dataclass(slots=True)
class _Save:
    """A save on its way."""

    step: int
    state: Mapping[str, JsonValue]
    score: float | None
    requests: list["Future[Checkpoint]"]
    """Of those who asked for it and were not answered yet."""
    began: float = field(default_factory=time.monotonic)
    outcome: "Future[Checkpoint]" = field(default_factory=Future)
    copied_at: float = 0.0
    """When the learner went on training."""
    is_given_up: bool = False


class CheckpointWriter:
    """Decides when a checkpoint is due, and sees it through.

    Args:
        store: where checkpoints are.
        config: when they are due.
        settings: gives what identifies the run, for `deploy.ppo.resume.refuse_changes`.
        save_timeout_s: longest time from the beginning of a save to its commit; after that it counts as failed.
        warn: told of a failed save, in the training thread.
        metrics: told of every save.
        newest: the checkpoint that the run was resumed from.
        before_commit: brings the run's files, which are cut back to a checkpoint, at least as far; a CheckpointError of
            it is one of the save.
    """

    def __init__(
        self,
        store: CheckpointStore,
        config: PPOConfig,
        *,
        settings: Callable[[], Mapping[str, JsonValue]],
        save_timeout_s: float,
        warn: Callable[[str], None],
        metrics: RunMetrics,
        newest: Checkpoint | None = None,
        before_commit: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._config = config
        self._settings = settings
        self._save_timeout_s = save_timeout_s
        self._warn = warn
        self._metrics = metrics
        self._newest = newest
        self._before_commit = before_commit
        self._show(newest)
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._lock = threading.Lock()
        self._requests: list[Future[Checkpoint]] = []
        self._is_closed = False
        self._committing = threading.Lock()
        self._running: _Save | None = None
        self._score: tuple[int, float | None] = (0, None)
        self._failures_in_a_row = 0
        self.failures = 0
        """Saves that failed."""

    @property
    def newest(self) -> Checkpoint | None:
        """The last checkpoint that was committed, or that the run was resumed from."""
        return self._newest

    def request(self) -> "Future[Checkpoint]":
        """Ask for a checkpoint after the current update, or at once while the run is paused, from any thread; `close`
        fails what was not served.
        """
        future: Future[Checkpoint] = Future()
        with self._lock:
            if not self._is_closed:
                self._requests.append(future)
                return future
        future.set_exception(CheckpointError(f"training has ended; {self._describe_newest()}"))
        return future

    def saw(self, report: UpdateReport) -> None:
        """Remember an update's score_mean: the score of a checkpoint that is written right after it."""
        score = report.metrics.get("score_mean")
        if report.is_finite:
            self._score = (report.step, score if score is not None and isfinite(score) else None)

    def due(self, step: int) -> bool:
        """After every `ppo.checkpoint_every` updates, after the last one, and when asked for; see the port."""
        every = self._config.checkpoint_every
        return self.is_asked() or step == self._config.updates or (every > 0 and step % every == 0)

    def is_asked(self) -> bool:
        """Whether somebody waits for a checkpoint that is not begun; raises as `due` does."""
        self._take_note(raise_at=MAX_FAILURES_IN_A_ROW)
        with self._lock:
            return bool(self._requests)

    def save(self, learner: Learner, rollouts: Rollouts) -> None:
        """Begin a checkpoint of the learner as it is now; see the port.

        Raises:
            CheckpointError: two saves in a row have failed.
            MiniChatGPTError: the learner could not copy what is to be saved.
        """
        self._settle(raise_at=MAX_FAILURES_IN_A_ROW)
        with self._lock:
            requests = [future for future in self._requests if future.set_running_or_notify_cancel()]
            self._requests = []
        step, (scored_step, score) = learner.step, self._score
        state = {"settings": dict(self._settings()), "rollouts": rollouts.state_dict()}
        save = _Save(step, state, score if scored_step == step else None, requests)
        save.outcome.add_done_callback(lambda outcome: self._answer(save, outcome))
        try:
            shard = learner.begin_save(self._store.place(step))
            save.copied_at = time.monotonic()
            self._metrics.saved("snapshot", save.copied_at - save.began)
        except MiniChatGPTError as error:
            save.outcome.set_exception(error)
            if not isinstance(error, CheckpointError):  # the learner is gone, or its weights are: no matter of storage
                self._store.discard(step)
                raise
        else:
            shard.add_done_callback(lambda written: self._commit_soon(save, written))
        self._running = save

    def wait(self) -> None:
        """Return once the last save is a checkpoint; raises CheckpointError if it failed, or LearnerLostError."""
        self._settle(raise_at=1)

    def settle(self) -> None:
        """Return once nothing is being written; a save that failed is warned of and counted, and no more.

        For a driver whose learner died, before it looks for the checkpoint to go on from.
        """
        self._settle(raise_at=None)

    def go_back_to(self, checkpoint: Checkpoint | None) -> None:
        """Training goes back to this checkpoint, or to the start: what was due after it is due again."""
        self._newest = checkpoint
        self._show(checkpoint)
        self._score = (0, None)

    def close(self) -> None:
        """Fail the requests that nobody will serve, and end the thread."""
        with self._lock:
            unserved, self._requests, self._is_closed = self._requests, [], True
        for future in unserved:
            if future.set_running_or_notify_cancel():
                future.set_exception(CheckpointError(f"training has ended; {self._describe_newest()}"))
        self._executor.shutdown(wait=False)

    def _commit_soon(self, save: _Save, written: "Future[ShardFiles]") -> None:
        """The learner is done; called by a thread that must not be held up."""
        if self._is_closed:
            save.outcome.set_exception(CheckpointError(f"training has ended; {self._describe_newest()}"))
            return
        committed = self._executor.submit(self._commit, save, written)
        committed.add_done_callback(lambda done: _hand_on(done, save.outcome))

    def _commit(self, save: _Save, written: "Future[ShardFiles]") -> Checkpoint:
        error = written.exception()
        with self._committing:
            if save.is_given_up:  # what it left is cleared by the next `place`
                raise CheckpointError(f"step {save.step} was written too late")
            if error is not None:
                self._store.discard(save.step)
                if isinstance(error, LearnerLostError):
                    raise error
                raise CheckpointError(f"{type(error).__name__}: {error}") from error
            self._before_commit()
            checkpoint = self._store.commit(save.step, written.result(), save.state, save.score)
            self._newest = checkpoint
        self._metrics.saved("write", time.monotonic() - save.copied_at)
        self._show(checkpoint)
        return checkpoint

    def _show(self, checkpoint: Checkpoint | None) -> None:
        if checkpoint is not None:
            size = sum(file.size_bytes for file in checkpoint.files.values())
            self._metrics.checkpoint(checkpoint.step, checkpoint.written_at, size)

    def _answer(self, save: _Save, outcome: "Future[Checkpoint]") -> None:
        """Tell those who asked how it ended, once."""
        with self._lock:
            waiting, save.requests = save.requests, []
        for future in waiting:
            _hand_on(outcome, future)

    def _settle(self, *, raise_at: int | None) -> None:
        """Wait for the running save, until its deadline."""
        save = self._running
        if save is not None:
            wait_for([save.outcome], timeout=max(0.0, save.began + self._save_timeout_s - time.monotonic()))
        self._take_note(raise_at=raise_at, is_late=True)

    def _take_note(self, *, raise_at: int | None, is_late: bool = False) -> None:
        """Count how the running save ended, if it has or if it is late; warn or raise if it failed."""
        save = self._running
        if save is None:
            return
        outcome = save.outcome
        if not outcome.done():
            if not is_late and time.monotonic() - save.began < self._save_timeout_s:
                return
            if self._committing.acquire(timeout=COMMIT_GRACE_S):  # one that is just being committed may end
                self._committing.release()
            save.is_given_up = True
            outcome = Future()
            outcome.set_exception(
                CheckpointError(f"it was not written within {self._save_timeout_s:g} s (learner.save_timeout_s)")
            )
            self._answer(save, outcome)
        self._running = None
        error = outcome.exception()
        if error is None:
            self._failures_in_a_row = 0
            return
        if isinstance(error, LearnerLostError):  # no matter of storage
            if raise_at is not None:
                raise error
            return
        self.failures += 1
        self._metrics.save_failed()
        self._failures_in_a_row += 1
        message = f"checkpoint of step {save.step} failed: {error}; {self._describe_newest()}"
        if raise_at is not None and self._failures_in_a_row >= raise_at:
            raise CheckpointError(message) from error
        self._warn(message)

    def _describe_newest(self) -> str:
        return f"the newest checkpoint is {self._newest.url if self._newest is not None else 'none at all'}"


def _hand_on(done: "Future[Checkpoint]", waiting: "Future[Checkpoint]") -> None:
    """Give the outcome of one future to another."""
    error = done.exception()
    if error is None:
        waiting.set_result(done.result())
    else:
        waiting.set_exception(error)
