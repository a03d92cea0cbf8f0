"""TensorBoard's event files, written by tensorboardX, which is small; `tensorboard --logdir runs` shows them.

Not by its SummaryWriter: that writes in a thread of its own whose errors nobody sees, and two of the same second
overwrite each other. Here each update is on disk, or an error, when `log` returns.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from common.tracker_config import TensorboardConfig
from deploy.tracking.trackers import Numbers, Samples, TrackedRun

COLUMNS = ("kind", "score", "prompt", "response")
"""Of a line of samples.jsonl, what is shown."""
GOAL = "score_mean"
"""Metric that the table of hyperparameters is about."""


class TensorboardTracker:
    """Implements `deploy.tracking.trackers.Tracker`.

    Args:
        config: its table.
    """

    name = "tensorboard"

    def __init__(self, config: TensorboardConfig) -> None:
        self.config = config
        self._folder = Path()
        self._writer: Any = None
        self._at_the_end = Summary()

    def start(self, run: TrackedRun, run_id: str | None) -> str:
        """See the port. The folder is its id; settings are written once."""
        self._folder = run.folder / "tensorboard"
        self._open()
        experiment, beginning, self._at_the_end = summary.hparams(dict(run.settings), {GOAL: 0.0})
        if run_id is None:
            self._mark_start(0)
            rows = [(key, str(value)) for key, value in run.settings.items()]
            self._write(0, experiment, beginning, summary.text("settings", _table(("setting", "value"), rows)))
        return str(self._folder)

    def log(self, step: int, metrics: Numbers, samples: Samples) -> None:
        """See the port."""
        values = [Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        parts = [Summary(value=values)]
        if self.config.samples and samples:
            rows = [[str(sample[column]) for column in COLUMNS] for sample in samples]
            parts.append(summary.text("samples", _table(COLUMNS, rows)))
        self._write(step, *parts)

    def go_back_to(self, step: int) -> bool:
        """See the port. A new file begins with the mark of another start."""
        self._writer.close()
        self._open()
        self._mark_start(step + 1)
        return True

    def close(self, *, has_succeeded: bool) -> None:
        """See the port."""
        if has_succeeded:
            self._write(0, self._at_the_end)
        self._writer.close()

    def _open(self) -> None:
        """Another file; TensorBoard reads them in the order of their names, which begin with the second."""
        self._folder.mkdir(parents=True, exist_ok=True)
        number = len(list(self._folder.iterdir()))
        self._writer = EventsWriter(str(self._folder / "events"), f".{number:06d}")

    def _mark_start(self, step: int) -> None:
        """From the second mark on, TensorBoard forgets what stands before it and is of this step or later."""
        self._writer.write_event(
            Event(step=step, session_log=SessionLog(status=SessionLog.START), wall_time=time.time())
        )
        self._writer.flush()

    def _write(self, step: int, *parts: Any) -> None:
        for part in parts:
            self._writer.write_event(Event(step=step, summary=part, wall_time=time.time()))
        self._writer.flush()


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, in which TensorBoard shows texts."""
    lines = [header, ["---"] * len(header), *([_cell(text) for text in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
