"""Keeps what updates report: metrics.jsonl, samples.jsonl, the Prometheus registry and the progress bar."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.progress import Progress as Bar
from rich.progress import TaskID
from transformers import PreTrainedTokenizerBase

from common.errors import DataError
from common.metrics import RunMetrics
from common.records import Sample, UpdateReport
from common.run_settings import RunSettings
from common.supervision import Ledger
from common.text import decode
from deploy.ppo.pulse import Cycle, Pulse
from deploy.stopwatch import Stopwatch


def append_json(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line of JSON; numbers that are not finite become null, for JSON has none.

    Raises:
        DataError: the disk does not take it.
    """
    clean = json.dumps(_finite(row), ensure_ascii=False)
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(clean + "\n")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}; mend that, and give the same command again") from error


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


class RunRecorder:
    """Implements `common.ports.Recorder`.

    Args:
        folder: of the run.
        tokenizer: the policy's, to show samples as text.
        ledger: gives the ledger as it is.
        metrics: the Prometheus registry's.
        watch: knows the seconds.
        pulse: told where they went.
        settings: gives those of the update that is recorded.
        bar: progress bar and its task.
        saw: told of every report too.
        track: told of each update's lines of metrics.jsonl and samples.jsonl.
        cycled: told of each update's speed and waits, once all of it is written down.
        note: told of updates without a finite step, which have no line: they come again if the run is resumed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        tokenizer: PreTrainedTokenizerBase,
        ledger: Callable[[], Ledger],
        metrics: RunMetrics,
        watch: Stopwatch,
        pulse: Pulse,
        settings: Callable[[], RunSettings],
        bar: tuple[Bar, TaskID],
        saw: Callable[[UpdateReport], None],
        track: Callable[[Mapping[str, Any], Sequence[Mapping[str, Any]]], None],
        cycled: Callable[[Cycle], None],
        note: Callable[[str, str], None],
    ) -> None:
        self.folder = folder
        self.tokenizer = tokenizer
        self.ledger = ledger
        self.metrics = metrics
        self.watch = watch
        self.pulse = pulse
        self.settings = settings
        self.bar, self.task = bar
        self._saw = saw
        self._track = track
        self._cycled = cycled
        self._note = note
        self._since = time.monotonic()

    def record(self, report: UpdateReport) -> None:
        """Write one update down."""
        self._saw(report)
        self.metrics.update(report)
        if not report.is_finite:
            self._note(
                "nonfinite_update",
                f"update {report.step + 1} had no step with a finite loss and gradient; its samples are dropped, and "
                f"weights {report.identity} stay",
            )
            return
        now = time.monotonic()
        seconds = {**self.watch.take(), **report.seconds, "total": now - self._since}
        self._since = now
        row = {
            "step": report.step,
            "identity": str(report.identity),
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "weights_hash": report.weights_hash,
            "settings": self.settings().present(),
            "metrics": dict(sorted(report.metrics.items())),
            "seconds": seconds,
            "ledger": self.ledger().as_dict(),
        }
        append_json(self.folder / "metrics.jsonl", row)
        samples = [self._sample(report.step, sample) for sample in report.samples]
        for sample in samples:
            append_json(self.folder / "samples.jsonl", sample)
        self._track(row, samples)
        cycle = self.pulse.updated(report, seconds)
        self.metrics.cycle(seconds, cycle.update_s, cycle.busy)
        shown = report.metrics
        kl = f"  KL {shown['kl_token_mean']:.2f}/token" if "kl_token_mean" in shown else ""
        self.bar.update(self.task, completed=report.step, message=f"score {shown['score_mean']:+.2f}{kl}")
        self._cycled(cycle)

    def _sample(self, step: int, sample: Sample) -> dict[str, Any]:
        return {
            "kind": sample.kind,
            "step": step,
            "draw_index": sample.draw_index,
            "prompt": decode(self.tokenizer, sample.prompt_ids),
            "response": decode(self.tokenizer, sample.response_ids),
            "score": sample.score,
            "kl_seq_sum": sample.kl_seq_sum,
        }
