"""Trackers of experiments: curves and texts of a run, kept where others can look at them.

    recorder ── one row per update ──▶ Trackers ── a thread each ──▶ TensorBoard, Weights & Biases
    evaluations ─ one line, now and then ─▲

A tracker is foreign code that may be slow, or fail. Each has a thread of its own, so that training waits for none; what
it raises is an event, after which it is left alone. What it holds is written down in `trackers.json`: where a run is
gone on with, it is first given what it lacks, from metrics.jsonl, and never an update twice. wandb takes a step once
and in order: an update that is evaluated waits for its evaluation, and goes with it.
"""

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from common.config import RunConfig
from deploy.run_folder.files import read_json, write_json

CLOSE_S = 60.0
"""Longest time that the end of a run waits for its trackers."""
MAX_SETTING_CHARACTERS = 500
"""Longer settings, as inline texts, are cut where they are shown."""

Setting = str | int | float | bool
Numbers = Mapping[str, float]
Samples = Sequence[Mapping[str, Any]]
"""Lines of samples.jsonl."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker is told of a run at the start."""

    name: str
    folder: Path
    settings: Mapping[str, Setting]
    """The resolved configuration, by dotted key."""


class Tracker(Protocol):
    """One way to keep curves and texts. It may raise whatever it likes; its calls come one at a time."""

    name: str

    def start(self, run: TrackedRun, run_id: str | None) -> str:
        """Begin; returns the id by which the same run is found again.

        Args:
            run: what is tracked.
            run_id: of the run to go on with; None: a new one.
        """

    def log(self, step: int, metrics: Numbers, samples: Samples) -> None:
        """Keep an update, each once and in order, 0 for the policy before PPO; metrics are by name, and finite."""

    def go_back_to(self, step: int) -> bool:
        """What came after an update comes again; returns whether that can be forgotten, and is wanted anew."""

    def close(self, *, has_succeeded: bool) -> None:
        """Write out what is left."""


@dataclass(slots=True)
class _Slot:
    """A tracker and its thread."""

    tracker: Tracker
    executor: ThreadPoolExecutor
    run_id: str | None = None
    step: int = -1
    """Last update that it holds; 0: of the policy before PPO, which only evaluations tell of."""
    is_given_up: bool = False
    jobs: "list[Future[None]]" = field(default_factory=list)


class Trackers:
    """All trackers of a run, as a context; its methods return at once.

    Args:
        trackers: none, or some.
        run: what is tracked.
        note: told, from any thread, which tracker failed.
        evaluates: whether an evaluation follows an update.
        close_s: longest time to wait for them at the end.
    """

    def __init__(
        self,
        trackers: Sequence[Tracker],
        run: TrackedRun,
        *,
        note: Callable[[str, str], None],
        evaluates: Callable[[int], bool] = lambda step: False,
        close_s: float = CLOSE_S,
    ) -> None:
        self._run = run
        self._note = note
        self._evaluates = evaluates
        self._waiting: tuple[Mapping[str, Any], Samples] | None = None
        self._close_s = close_s
        self._path = run.folder / "trackers.json"
        self._writing = threading.Lock()
        self._slots = [_Slot(tracker, ThreadPoolExecutor(1, f"tracker-{tracker.name}")) for tracker in trackers]

    def __enter__(self) -> "Trackers":
        known = read_json(self._path) if self._slots and self._path.is_file() else {}
        for slot in self._slots:
            before = known.get(slot.tracker.name, {"id": None, "step": -1})
            slot.run_id, slot.step = before["id"], before["step"]
            self._submit(slot, partial(self._start, slot))
        return self

    def record(self, row: Mapping[str, Any], samples: Samples) -> None:
        """Hand over an update: its lines of metrics.jsonl and samples.jsonl."""
        self._hand_over_what_waits()
        self._waiting = (row, samples)
        if not self._evaluates(row["step"]):
            self._hand_over_what_waits()

    def evaluated(self, line: Mapping[str, Any]) -> None:
        """Hand over an evaluation: its line of evaluations.jsonl."""
        if self._waiting is not None and self._waiting[0]["step"] == line["step"]:
            row, samples = self._waiting
            self._waiting = None
            self._submit_log(line["step"], {**_numbers(row), **_evaluation(line)}, samples)
        else:
            self._submit_log(line["step"], _evaluation(line), [])

    def _hand_over_what_waits(self) -> None:
        if self._waiting is not None:
            (row, samples), self._waiting = self._waiting, None
            self._submit_log(row["step"], _numbers(row), samples)

    def go_back_to(self, step: int) -> None:
        """Training goes on after an update to which the run's files were cut back; trackers get what they lack."""
        if not self._slots:
            return
        self._waiting = None
        for slot in self._slots:
            self._submit(slot, partial(self._go_back, slot, step))
        samples = list(_lines(self._run.folder / "samples.jsonl"))
        evaluations = {line["step"]: line for line in _lines(self._run.folder / "evaluations.jsonl")}
        if 0 in evaluations:
            self.evaluated(evaluations[0])
        for row in _lines(self._run.folder / "metrics.jsonl"):
            self.record(row, [sample for sample in samples if sample.get("step") == row["step"]])
            if row["step"] in evaluations:
                self.evaluated(evaluations[row["step"]])

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:  # else its evaluation is still to come, and it goes with it when the run is gone on with
            self._hand_over_what_waits()
        for slot in self._slots:
            self._submit(slot, partial(slot.tracker.close, has_succeeded=kind is None))
        late = wait_for([job for slot in self._slots for job in slot.jobs], timeout=self._close_s).not_done
        for slot in self._slots:
            if late.intersection(slot.jobs):
                self._note(
                    "tracker_failed",
                    f"tracker {slot.tracker.name} did not end within {self._close_s:g} s: what it was at may be lost",
                )
            slot.executor.shutdown(wait=False, cancel_futures=True)

    def _submit_log(self, step: int, numbers: Numbers, samples: Samples) -> None:
        for slot in self._slots:
            self._submit(slot, partial(self._log, slot, step, numbers, samples))

    def _submit(self, slot: _Slot, job: Callable[[], None]) -> None:
        slot.jobs = [earlier for earlier in slot.jobs if not earlier.done()]
        slot.jobs.append(slot.executor.submit(self._work, slot, job))
        slot.jobs[-1].add_done_callback(partial(self._look, slot))

    @staticmethod
    def _work(slot: _Slot, job: Callable[[], None]) -> None:
        if not slot.is_given_up:
            job()

    def _look(self, slot: _Slot, job: "Future[None]") -> None:
        """Whatever a tracker raised is told, once: the future keeps what no handler here could name."""
        error = None if job.cancelled() else job.exception()
        if error is not None:
            slot.is_given_up = True
            self._note(
                "tracker_failed",
                f"tracker {slot.tracker.name} failed and gets nothing more: {type(error).__name__}: {error}. Training "
                "goes on; what it lacks is handed over when the run is gone on with",
            )

    def _start(self, slot: _Slot) -> None:
        slot.run_id = slot.tracker.start(self._run, slot.run_id)
        self._keep()

    def _log(self, slot: _Slot, step: int, numbers: Numbers, samples: Samples) -> None:
        if step > slot.step:
            slot.tracker.log(step, numbers, samples)
            slot.step = step
            self._keep()

    def _go_back(self, slot: _Slot, step: int) -> None:
        if slot.tracker.go_back_to(step):
            slot.step = min(slot.step, step)
            self._keep()

    def _keep(self) -> None:
        """Write down what each tracker holds."""
        with self._writing:
            held = {slot.tracker.name: {"id": slot.run_id, "step": slot.step} for slot in self._slots}
            write_json(self._path, held)


def build_trackers(config: RunConfig) -> list[Tracker]:
    """Those that the configuration names; a package is imported only where it is used."""
    trackers: list[Tracker] = []
    if config.trackers.tensorboard is not None:
        from deploy.tracking.tensorboard_tracker import TensorboardTracker

        trackers.append(TensorboardTracker(config.trackers.tensorboard))
    if config.trackers.wandb is not None and config.trackers.wandb.mode != "disabled":
        from deploy.tracking.wandb_tracker import WandbTracker

        trackers.append(WandbTracker(config.trackers.wandb))
    return trackers


def tracked_run(config: RunConfig, folder: Path) -> TrackedRun:
    """What trackers are told of a run."""
    return TrackedRun(config.name, folder, dict(_settings("", config.model_dump(mode="json", exclude_none=True))))


def _settings(prefix: str, value: Any) -> Iterator[tuple[str, Setting]]:
    """Settings by dotted key; lists as JSON."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _settings(f"{prefix}.{key}" if prefix else str(key), item)
    else:
        shown = value if isinstance(value, Setting) else json.dumps(value, ensure_ascii=False)
        is_long = isinstance(shown, str) and len(shown) > MAX_SETTING_CHARACTERS
        yield prefix, f"{str(shown)[:MAX_SETTING_CHARACTERS]}…" if is_long else shown


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """A line of metrics.jsonl, flat: metrics by name, `seconds/NAME`, `samples/FATE`, `samples/dropped/REASON`."""
    numbers = dict(row["metrics"])
    numbers |= {f"seconds/{name}": value for name, value in row["seconds"].items()}
    for fate, count in row["ledger"].items():
        if isinstance(count, Mapping):
            numbers |= {f"samples/{fate}/{reason}": number for reason, number in count.items()}
        else:
            numbers[f"samples/{fate}"] = count
    return _finite(numbers)


def _evaluation(line: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a line of evaluations.jsonl as `evaluation/NAME`, and whether the alarm was on."""
    numbers = {**line["numbers"], "over_optimised": float(line["over_optimised"])}
    return _finite({f"evaluation/{name}": value for name, value in numbers.items()})


def _finite(numbers: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in numbers.items() if value is not None and math.isfinite(value)}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Of a file that was cut back, so that each is whole."""
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)
