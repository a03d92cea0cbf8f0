"""What follows when the learner is lost, or a guard rail wants to go back: training goes on from a verified checkpoint,
as a new lineage.

Rollout workers and reward replicas stay as they are. Ledger and the run's files go back to the same step, so that every
sample counts once along the ancestry of the weights. The prompt cursor goes back too where a learner was lost: the same
samples come again. Over a rollback it stays, for the same batch could do the same harm again:

    learner lost   newest checkpoint                       same prompts    learner.max_restarts
    rollback       newest one before what went wrong;      new prompts     guards.max_rollbacks (counted by guards.py)
                   later ones are removed

A rollback happens at one stroke, when the journal of settings has it: whoever is killed before comes to it again, and
whoever is killed afterwards goes on from there, for the journal keeps the cursor.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common.checkpoint import Checkpoint
from common.checkpoint_store import CheckpointStore
from common.errors import LearnerLostError, LearnerTimeoutError, RollBack
from common.metrics import RunMetrics
from common.records import Identity
from common.supervision import Ledger, RestartBudget
from deploy.ppo.beginning import newest_whole
from deploy.ppo.checkpoint_writer import CheckpointWriter
from deploy.ppo.resume import rewind
from deploy.ppo.steering import Steering
from deploy.ppo.supervisor import Supervisor
from deploy.run_folder.files import write_json
from deploy.runtime import HostedLearner
from deploy.stop_signal import StopSignal

START: dict[str, Any] = {"next_draw_index": 0, "ledger": Ledger().as_dict()}
"""State of the rollouts before the first update."""


@dataclass(slots=True)
class Lineages:
    """Which lineage the weights are of, and the latest ledger: `ledger.json` of the run folder, never out of date.

    Weights of a step that was reached twice differ in their lineage, so that no sample of dead weights is taken for
    one of living weights. The file is written before each dispatch, so that even after kill -9 nothing is uncounted.
    """

    path: Path
    lineage: int = 0
    newest: Callable[[], Checkpoint | None] = lambda: None
    """The newest checkpoint, so that it is missed where it is gone."""

    def keep(self, ledger: Ledger) -> None:
        """Write down lineage, ledger, and where the newest checkpoint is."""
        newest = self.newest()
        checkpoint = None if newest is None else {"step": newest.step, "url": newest.url}
        write_json(self.path, {"lineage": self.lineage, "ledger": ledger.as_dict(), "checkpoint": checkpoint})


class Recovery:
    """Brings learner, rollouts and files back to one checkpoint.

    Args:
        learner: the one that may be lost.
        supervisor: source of samples.
        steering: keeps the journal of rollbacks.
        store: checkpoints.
        writer: of checkpoints, which forgets what was after the one that is gone back to.
        lineages: a new one begins at each restart and each rollback.
        budget: how often the learner may be started again.
        folder: of the run, whose files are cut back.
        went_back: told to which update, once the run's files are cut back.
        note: told what an operator wants to read.
        metrics: told of losses, rollbacks, and of the weights that are gone back to.
        stop: looked at while waiting.
        first: where an earlier attempt was cut off.
        first_checkpoint: update of the first one that is written by itself; 0: none is.
    """

    def __init__(
        self,
        *,
        learner: HostedLearner,
        supervisor: Supervisor,
        steering: Steering,
        store: CheckpointStore,
        writer: CheckpointWriter,
        lineages: Lineages,
        budget: RestartBudget,
        folder: Path,
        metrics: RunMetrics,
        went_back: Callable[[int], None],
        note: Callable[[str, str], None],
        stop: StopSignal,
        first: Checkpoint | None,
        first_checkpoint: int,
    ) -> None:
        self.learner = learner
        self.supervisor = supervisor
        self.steering = steering
        self.store = store
        self.writer = writer
        self.lineages = lineages
        self.budget = budget
        self.folder = folder
        self.metrics = metrics
        self.went_back = went_back
        self.note = note
        self.stop = stop
        self._first = first
        self._first_checkpoint = first_checkpoint
        self._lost_at = 0 if first is None else first.step

    def train(self, train: Callable[[], None]) -> None:
        """Run the loop to its end, through losses of the learner and rollbacks.

        Raises:
            LearnerLostError: it was lost too often; names the last cause.
            CheckpointError: there are checkpoints, and none is whole.
        """
        begin: Callable[[], None] = self._begin
        while True:
            try:
                begin()
                train()
                return
            except RollBack as order:
                begin = partial(self._roll_back, order)
            except LearnerLostError as error:
                begin = self._start_again
                pause = self.budget.take(time.monotonic(), progressed=self._has_progressed())
                if pause is None:
                    raise LearnerLostError(
                        f"{error}. It was started again {self.budget.max_restarts} times within "
                        f"{self.budget.window_s:g} s (learner.max_restarts, learner.restart_window_s)"
                    ) from error
                self.metrics.learner_lost(error.phase if isinstance(error, LearnerTimeoutError) else "")
                self.note("learner_lost", f"{error}. Another one starts" + (f" in {pause:g} s" if pause else ""))
                self._pause(pause)

    def _begin(self) -> None:
        """Where an earlier attempt was cut off; nothing at the very start."""
        if self._first is not None or self.supervisor.ledger().dispatched:
            self._go_back_to(self._first)

    def _has_progressed(self) -> bool:
        """Whether a checkpoint was written since the last loss: else the same comes again and again."""
        newest = self.writer.newest
        step = 0 if newest is None else newest.step
        progressed, self._lost_at = step > self._lost_at, step
        return progressed

    def _start_again(self) -> None:
        """A new learner; everything goes back to the newest checkpoint, or to the start."""
        self.supervisor.abandon()
        self.learner.restart()  # first, so that a save of the lost one fails at once
        self.writer.settle()
        checkpoint = newest_whole(self.store, lambda message: self.note("checkpoint_damaged", message))
        self._go_back_to(checkpoint)

    def _roll_back(self, order: RollBack) -> None:
        """To the newest checkpoint of before what went wrong; where there was none yet, to the start; where it is kept
        no longer, to the oldest.
        """
        self.supervisor.abandon()
        self.writer.settle()  # one of the weights that are given up may be on its way
        checkpoint = newest_whole(
            self.store, lambda message: self.note("checkpoint_damaged", message), before_step=order.before_step
        )
        if checkpoint is not None and order.before_step <= checkpoint.step <= self._first_checkpoint:
            checkpoint = None  # nothing was pruned: what is from before the harm is the policy before PPO
        left = self.learner.step
        if checkpoint is None:  # first, so that nobody misses the ones that are removed
            self.writer.go_back_to(None)
            self.lineages.keep(self.supervisor.ledger())
        self.store.remove_after(0 if checkpoint is None else checkpoint.step)
        if checkpoint is None:
            self.learner.restart()
        self._go_back_to(checkpoint, because=order, left=left)

    def _go_back_to(self, checkpoint: Checkpoint | None, *, because: RollBack | None = None, left: int = 0) -> None:
        """Learner, rollouts and files as they were after the checkpoint's update; None: before the first one.

        Args:
            checkpoint: where to.
            because: of a rollback.
            left: update at which that was asked for.
        """
        lineage, step = self.lineages.lineage + 1, 0 if checkpoint is None else checkpoint.step
        self.learner.load(None if checkpoint is None else checkpoint.url, lineage=lineage)
        self.writer.go_back_to(checkpoint)
        self._lost_at = min(self._lost_at, step)
        if because is not None:  # once the learner has other weights, for the old ones must not be saved after this
            cursor = int(self.supervisor.state_dict()["next_draw_index"])
            self.steering.roll_back_to(step, str(because), next_draw_index=cursor)
            self.metrics.rolled_back()
            self.note("rolled_back", f"{because}: back from update {left} to {step}, and on with other prompts")
        self.lineages.lineage = lineage
        rewind(self.folder, step)
        self.went_back(step)
        self.supervisor.roll_back(self._rollouts_at(checkpoint))
        self.metrics.went_back(Identity(lineage, step))
        where = "from the start" if checkpoint is None else f"from {checkpoint.name}"
        self.note("resumed", f"training goes on {where}, as lineage {self.lineages.lineage}")

    def _rollouts_at(self, checkpoint: Checkpoint | None) -> dict[str, Any]:
        """State of the rollouts; the prompts that a rollback has left behind do not come again, neither those that were
        trained on after the checkpoint nor those that were on their way then.
        """
        state: Any = START if checkpoint is None else self.store.read_state(checkpoint)["rollouts"]
        left_behind = max((rollback.next_draw_index for rollback in self.steering.journal.rollbacks), default=0)
        if left_behind < state["next_draw_index"] or not left_behind:
            return dict(state)
        return {name: value for name, value in state.items() if name != "undelivered"} | {
            "next_draw_index": left_behind
        }

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.stop.raise_if_requested()
            time.sleep(min(0.1, max(0.0, end - time.monotonic())))
