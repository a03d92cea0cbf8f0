"""What an operator changes between two updates: settings, and whether the run stands still.

    control channel ── change, pause, resume ──▶ Steering ◀── at(step) ── loop

Implements `common.ports.Steering`. Orders come on any thread, and count from the next update on.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from common.errors import ConfigError
from common.ppo_config import PPOConfig
from common.run_settings import RunSettings
from deploy.run_status import SettingsRequest
from deploy.stop_signal import StopSignal
from deploy.stopwatch import Stopwatch

LOOK_EVERY_S = 0.1
"""Time between two looks at what is wanted, while the run is paused."""
Pause = Literal["none", "asked", "paused"]


class Steering:
    """Settings in force and the wish to pause.

    Args:
        config: the settings at the start.
        watch: told how long the run stood still.
        stop: looked at while it does.
        note: told what an operator wants to read.
    """

    def __init__(
        self, config: PPOConfig, *, watch: Stopwatch, stop: StopSignal, note: Callable[[str, str], None]
    ) -> None:
        self._config = config
        self._watch = watch
        self._stop = stop
        self._note = note
        self._lock = threading.Lock()
        self._settings = RunSettings.of(config)
        self._pause: Pause = "none"

    # --- for the loop

    def at(self, step: int) -> RunSettings:
        """The settings of the update that follows; returns once the run is not paused."""
        if self._pause != "none":
            self._stand_still()
        return self._settings

    def _stand_still(self) -> None:
        with self._watch.phase("paused"):
            while True:
                with self._lock:
                    if self._pause == "none":
                        return
                    self._pause = "paused"
                time.sleep(LOOK_EVERY_S)
                self._stop.raise_if_requested()

    # --- for the control channel

    @property
    def settings(self) -> RunSettings:
        """In force, or from the next update on."""
        return self._settings

    @property
    def pause_state(self) -> Pause:
        """Whether the run stands still."""
        return self._pause

    def pause(self, reason: str) -> None:
        """Stand still once the running update is done."""
        with self._lock:
            if self._pause != "none":
                return
            self._pause = "asked"
        self._note("pause", f"pause after the running update: {reason}")

    def resume(self) -> None:
        """Go on."""
        with self._lock:
            if self._pause == "none":
                return
            self._pause = "none"
        self._note("resume", "resumed")

    def change(self, wanted: SettingsRequest) -> None:
        """Change settings from the next update on; raises ConfigError for those that this run does not have."""
        kind = self._config.kl.type
        if wanted.kl_target is not None and kind != "adaptive":
            raise ConfigError('kl_target is of ppo.kl.type = "adaptive", and this run has "fixed"; change kl_coef')
        if wanted.kl_coef is not None and kind != "fixed":
            raise ConfigError(
                'kl_coef is of ppo.kl.type = "fixed"; this run has "adaptive", and moves it itself; change kl_target'
            )
        changes = wanted.model_dump(exclude_none=True)
        with self._lock:
            before = self._settings
            self._settings = replace(before, **changes)
        words = ", ".join(f"{name} {getattr(before, name):g} to {value:g}" for name, value in changes.items())
        self._note("settings", f"from the next update on: {words}")
