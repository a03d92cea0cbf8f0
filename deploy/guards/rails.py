"""Guard rails at work: feeds the machine of `guards/guards.py` with what is recorded, and carries its orders out.

    recorder ─ updated ─┐                                  ┌─ alarms ─▶ events.jsonl, Prometheus, status
    evaluations ────────┴▶ GuardRails ── Guards (pure) ────┤
    loop ───── at(step) ─▶     │                           └─ orders ─▶ Steering.change, RollBack, RunStopped
                               └─▶ Steering.at(step)

Implements `common.ports.Steering` around another one: orders are carried out between two updates and nowhere else.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from common.config import RunConfig
from common.errors import RollBack, RunStopped
from common.metric_labels import GUARDS
from common.metrics import RunMetrics
from common.run_settings import RunSettings
from deploy.control.run_status import SettingsRequest
from deploy.exit_codes import GUARDED
from deploy.guards.guards import Alarm, Guards, Notice, Order
from deploy.guards.history import read_updates, replayed, see_update
from deploy.ppo.steering import Steering
from deploy.run_folder.contents import UpdateLine
from deploy.run_folder.evaluation_file import EvaluationLine, read_evaluations


class GuardRails:
    """The guard rails of a run that is alive.

    Args:
        config: the run.
        folder: of the run, whose files are the memory.
        steering: what they stand before; it knows the settings and earlier rollbacks.
        metrics: the Prometheus registry's.
        note: told what an operator wants to read.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        *,
        steering: Steering,
        metrics: RunMetrics,
        note: Callable[[str, str], None],
    ) -> None:
        self._config = config
        self._folder = folder
        self._steering = steering
        self._metrics = metrics
        self._note = note
        self._guards = Guards(config)
        self._show()

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """Those that are raised now; from any thread."""
        return self._guards.alarms

    def at(self, step: int) -> RunSettings:
        """Do what an alarm wants done, then as the port says.

        Raises:
            RollBack: a guard wants to go back to a checkpoint.
            RunStopped: a guard ends the run, or somebody else does.
        """
        order = self._guards.decide(step)
        if order is not None:
            self._carry_out(order, step)
        return self._steering.at(step)

    def updated(self, row: Mapping[str, Any]) -> None:
        """An update was recorded: its line of metrics.jsonl."""
        self._tell(see_update(self._guards, UpdateLine.model_validate(row)))

    def evaluated(self, row: Mapping[str, Any]) -> None:
        """An evaluation was recorded: its line of evaluations.jsonl."""
        self._tell(self._guards.see_evaluation(EvaluationLine.model_validate(row)))

    def go_back_to(self, step: int) -> None:
        """Training goes on after an update to which the run's files were cut back: all is as it was then."""
        updates = (row for row in read_updates(self._folder) if row.step <= step)
        evaluations = [line for line in read_evaluations(self._folder) if line.step <= step]
        rollbacks, before = self._steering.journal.rollbacks, self._guards.alarms
        self._guards, _ = replayed(self._config, updates, evaluations, rollbacks, undecided=step)
        for guard in {alarm.guard for alarm in before} - {alarm.guard for alarm in self._guards.alarms}:
            self._note("guard_cleared", f"guard {guard} was not raised at update {step}, where training goes on")
        self._show()

    def _show(self) -> None:
        raised = {alarm.guard for alarm in self._guards.alarms}
        for guard in GUARDS:
            self._metrics.guard_alarm(guard, guard in raised)

    def _tell(self, notices: Iterable[Notice]) -> None:
        for kind, step, alarm in notices:
            self._metrics.guard_alarm(alarm.guard, kind == "raised")
            if kind == "cleared":
                self._note("guard_cleared", f"guard {alarm.guard} is well again after update {step}")
                continue
            self._note("guard_alarm", f"guard {alarm.guard} since update {alarm.since_step}: {alarm.text}")
            if getattr(self._config.guards, alarm.guard).action == "warn":
                self._metrics.guard_action(alarm.guard, "warn")

    def _carry_out(self, order: Order, step: int) -> None:
        match order.deed:
            case "lower_learning_rate":
                self._lower(order, step)
            case "roll_back":
                self._metrics.guard_action(order.guard, "roll_back")
                raise RollBack(order.text, before_step=order.before_step)
            case "stop":
                self._metrics.guard_action(order.guard, "stop")
                text = f"{order.text}. Change guards.{order.guard} before going on, or it stops here again"
                self._note("guard_stop", text)
                raise RunStopped(text, reason=text, exit_code=GUARDED)

    def _lower(self, order: Order, step: int) -> None:
        """Once: a run that was cut off afterwards finds it in the journal."""
        if any(change.who == "guard" and change.at_step == step for change in self._steering.journal.changes):
            return
        rate = self._steering.settings.learning_rate * self._config.guards.lower_factor
        self._steering.change(SettingsRequest(learning_rate=rate), who="guard", reason=order.text)
        self._metrics.guard_action(order.guard, "lower_learning_rate")
