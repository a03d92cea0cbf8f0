"""What an operator or a guard rail changes between two updates: settings, and whether the run stands still.

    control channel, guard rails ── change, pause, resume ──▶ Steering ◀── at(step) ── loop
                                                                 └── journal ──▶ steering.json

Implements `common.ports.Steering`. Orders come on any thread and count from the next update on. They are written down
at once, with the update from which they count, so that a run that is cut off and goes on from an older checkpoint meets
the same settings at the same updates.
"""

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Protocol

from common.errors import ConfigError
from common.kl_config import FixedKL, check_kl
from common.ppo_config import PPOConfig
from common.run_settings import RunSettings
from deploy.control.run_status import SettingsRequest
from deploy.ppo.brake import Brake, Pause
from deploy.ppo.settings_journal import FILE, Change, Journal, Rollback, Who, differing, read_journal
from deploy.run_folder.files import write_json

Kind = Literal["settings", "pause", "resume", "control"]
"""`control`: of an order that changes nothing."""


class Told(Protocol):
    """Hears of settings, as Prometheus does."""

    def settings(self, settings: RunSettings) -> None:
        """These are in force."""

    def setting_changed(self, name: str) -> None:
        """This one was changed."""


class Steering:
    """Settings of every update, and the brake.

    Args:
        config: of the stage.
        journal: every change so far; `open_journal` reads it.
        path: where it is kept.
        brake: lets the loop stand still.
        step: updates behind the weights that the loop begins with.
        draw: says how many prompts were used up before the update that is to come.
        lineage: says which lineage the weights are of.
        told: hears of settings.
        note: told what an operator wants to read.
    """

    def __init__(
        self,
        config: PPOConfig,
        journal: Journal,
        path: Path,
        *,
        brake: Brake,
        step: int,
        draw: Callable[[], int],
        lineage: Callable[[], int],
        told: Told,
        note: Callable[[Kind, str], None],
    ) -> None:
        self._config = config
        self._path = path
        self._brake = brake
        self._draw = draw
        self._lineage = lineage
        self._told = told
        self._note = note
        self._lock = threading.Lock()
        self._journal = journal
        self._next = (step, 0)
        """Updates and prompts before the first batch to which an order of now applies."""
        self._in_force = journal.in_force(step)

    # --- for the loop

    def at(self, step: int) -> RunSettings:
        """The settings of the update that follows; returns once the run is not paused."""
        with self._lock:
            self._next = (step, self._draw())
        self._brake.hold()
        return self._begin(step)

    def go_back_to(self, step: int) -> None:
        """The learner was lost, and training goes on from a checkpoint: an order of now applies to its next update."""
        with self._lock:
            self._next = (step, 0)

    def _begin(self, step: int) -> RunSettings:
        """The update begins; orders apply to the one after it."""
        draw = self._draw()
        with self._lock:
            self._keep(self._journal.reach(step, draw))
            self._in_force = self._journal.in_force(step, draw)
            self._next = (step + 1, draw + 1)
        self._told.settings(self._in_force)
        return self._in_force

    # --- for who watches

    @property
    def in_force(self) -> RunSettings:
        """Settings of the update that began last."""
        return self._in_force

    @property
    def settings(self) -> RunSettings:
        """Settings of the next update."""
        with self._lock:
            return self._journal.in_force(*self._next)

    def settings_at(self, step: int) -> RunSettings:
        """Settings of the update after `step` updates, as far as they are known now."""
        with self._lock:
            return self._journal.in_force(step)

    @property
    def journal(self) -> Journal:
        """Every change so far."""
        return self._journal

    @property
    def pause_state(self) -> Pause:
        """Whether the run stands still."""
        return self._brake.state

    # --- orders

    def pause(self, reason: str) -> None:
        """Stand still once the running update is done."""
        if self._brake.pause():
            self._note("pause", f"pause after the running update: {reason}")
        else:
            self._note("control", "nothing changes: a pause is asked already")

    def resume(self) -> None:
        """Go on."""
        if self._brake.release():
            self._note("resume", "resumed")
        else:
            self._note("control", "nothing changes: the run is not paused")

    def change(self, wanted: SettingsRequest, *, who: Who = "operator", reason: str = "") -> None:
        """Change settings from the next update on; by a guard rail between two updates, of the update that follows.

        Raises:
            ConfigError: a setting that this run does not have, or a value that contradicts its configuration.
            DataError: it cannot be written down; nothing is changed.
        """
        check_change(self._config, wanted)
        changes = wanted.changes()
        with self._lock:
            step, draw = self._next
            before = self._journal.newest
            after = replace(before, **changes)
            changed = differing(before, after)
            if changed:
                self._keep(
                    self._journal.add(
                        Change(at_step=step, from_draw=draw, settings=after, who=who, reason=reason,
                               time=datetime.now(UTC), lineage=self._lineage())
                    )
                )  # fmt: skip
        if not changed:
            held = ", ".join(f"{name} is {value:g}" for name, value in changes.items())
            self._note("control", f"nothing changes: {held} already")
            return
        for name, _, _ in changed:
            self._told.setting_changed(name)
        words = ", ".join(f"{name} {old:g} to {new:g}" for name, old, new in changed)
        self._note("settings", f"from update {step + 1} on: {words} ({who}{f': {reason}' if reason else ''})")

    def roll_back_to(self, step: int, reason: str, *, next_draw_index: int) -> None:
        """A guard rail goes back to a checkpoint, and on with the prompts from `next_draw_index`: the settings of now
        stay in force.

        Raises:
            DataError: it cannot be written down.
        """
        with self._lock:
            rollback = Rollback(
                to_step=step, from_step=self._next[0], next_draw_index=next_draw_index, reason=reason,
                time=datetime.now(UTC), lineage=self._lineage(),
            )  # fmt: skip
            self._keep(self._journal.roll_back_to(rollback))
            self._next = (step, rollback.next_draw_index)

    # --- inside

    def _keep(self, journal: Journal) -> None:
        """Written down first, so that nothing is in force that is not."""
        if journal is not self._journal:
            write_json(self._path, journal.model_dump(mode="json"))
            self._journal = journal


def open_journal(config: PPOConfig, folder: Path, note: Callable[[Kind, str], None]) -> Journal:
    """The journal that an earlier attempt left; a new one where there is none, or it is of other settings and goes.

    Raises:
        DataError: it cannot be understood; names file and line.
    """
    start = RunSettings.of(config)
    journal = read_journal(folder)
    if journal is not None and journal.start == start:
        return journal
    if journal is not None:
        (folder / FILE).unlink()
        note("settings", f"{len(journal.changes)} changes of another configuration do not count any more")
    return Journal(start=start)


def check_change(config: PPOConfig, wanted: SettingsRequest) -> None:
    """Raise ConfigError if a run of this configuration cannot take these settings."""
    kind = config.kl.type
    if wanted.temperature is not None and config.max_staleness > 0:
        raise ConfigError(
            f"temperature={wanted.temperature:g} cannot be changed while ppo.max_staleness={config.max_staleness}: "
            f"samples for later updates are on their way at {config.temperature:g}; begin a run with that temperature"
        )
    if wanted.kl_target is not None and kind != "adaptive":
        raise ConfigError(
            f'kl_target={wanted.kl_target:g} is of ppo.kl.type = "adaptive", and this run has "fixed"; change kl_coef'
        )
    if wanted.kl_coef is None:
        return
    if kind != "fixed":
        raise ConfigError(
            f'kl_coef={wanted.kl_coef:g} is of ppo.kl.type = "fixed"; this run has "adaptive", and moves it itself; '
            "change kl_target"
        )
    try:
        check_kl(
            FixedKL(coef=wanted.kl_coef),
            config.kl_loss_coef,
            config.kl_estimator,
            reference=config.reference,
            advantage=config.advantage,
        )
    except ValueError as error:
        raise ConfigError(f"kl_coef={wanted.kl_coef:g} must stay 0 in this run: {error}") from error
