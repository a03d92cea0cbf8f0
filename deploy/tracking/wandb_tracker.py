"""A run of Weights & Biases. Its key comes from the environment variable WANDB_API_KEY, which wandb reads itself."""

import secrets
from typing import Any

import wandb

from common.tracker_config import WandbConfig
from deploy.tracking.trackers import CLOSE_S, Numbers, Samples, TrackedRun

COLUMNS = ("kind", "score", "kl_seq_sum", "draw_index", "prompt", "response")
"""Of a line of samples.jsonl, what is shown."""


class WandbTracker:
    """Implements `deploy.tracking.trackers.Tracker`.

    Args:
        config: its table.
    """

    name = "wandb"

    def __init__(self, config: WandbConfig) -> None:
        self.config = config
        self._run: Any = None

    def start(self, run: TrackedRun, run_id: str | None) -> str:
        """See the port. Offline, a run that is gone on with is one more folder of the same id."""
        run_id = run_id or secrets.token_hex(4)
        self._run = wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            mode=self.config.mode,
            dir=str(run.folder),
            id=run_id,
            name=run.name,
            resume="allow" if self.config.mode == "online" else None,
            config=dict(run.settings),
            reinit="create_new",
            settings=wandb.Settings(
                console="off",
                silent=True,
                disable_git=True,
                disable_code=True,
                finish_timeout=CLOSE_S / 2,
                finish_timeout_raises=True,
            ),
        )
        return run_id

    def log(self, step: int, metrics: Numbers, samples: Samples) -> None:
        """See the port."""
        row: dict[str, Any] = dict(metrics)
        if self.config.samples and samples:
            data = [[sample[column] for column in COLUMNS] for sample in samples]
            row["samples"] = wandb.Table(columns=list(COLUMNS), data=data)
        self._run.log(row, step=step, commit=True)

    def go_back_to(self, step: int) -> bool:
        """See the port. wandb forgets nothing: a step that comes again, and comes out the same, is not sent again."""
        return False

    def close(self, *, has_succeeded: bool) -> None:
        """See the port; what cannot be sent in time stays in the folder, and is an error here."""
        self._run.finish(exit_code=0 if has_succeeded else 1)
