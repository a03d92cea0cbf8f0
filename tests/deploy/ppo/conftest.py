"""PPO of `tiny` in one process, with somebody who interferes before a given update; and the same without anybody."""

import io
import json
import shutil
import time

import pytest
from rich.console import Console

from common.hashing import file_hash
from deploy.control.run_controls import RunControls
from deploy.local import LocalLearner, LocalRuntime
from deploy.pipeline import Pipeline
from deploy.run_folder.files import read_json
from deploy.stop_signal import StopSignal
from learner.ppo import PPOLearner

UPDATES = 6
DEADLINE_S = 60.0
"""Of a single wait: only a hang takes so long."""


class Outcome:
    """What a run left."""

    def __init__(self, folder, error, output, registry):
        self.folder, self.error, self.output, self.registry = folder, error, output, registry

    def ok(self):
        if self.error is not None:
            raise self.error
        return self

    def rows(self):
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def events(self):
        rows = [json.loads(line) for line in (self.folder / "events.jsonl").read_text().splitlines()]
        return [(row["event"], row["text"]) for row in rows if row["event"] not in ("active", "drain")]

    def ledger(self):
        return read_json(self.folder / "ledger.json")["ledger"]

    def checkpoints(self):
        return sorted(path.name for path in (self.folder / "checkpoints").iterdir())

    def files(self):
        return {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}

    def assert_same_as(self, other):
        """Weights, trajectories and samples byte for byte; metrics but for seconds, identities and what was undone."""
        names = {p.relative_to(other.folder) for p in (other.folder / "trajectories").iterdir()}
        assert {p.relative_to(self.folder) for p in (self.folder / "trajectories").iterdir()} == names
        for name in [*names, "models/ppo/model.safetensors", "samples.jsonl"]:
            assert file_hash(self.folder / name) == file_hash(other.folder / name), name
        mine, theirs = (
            [(row["step"], row["weights_hash"], row["metrics"]) for row in run.rows()] for run in (self, other)
        )
        assert mine == theirs
        assert all(row["ledger"]["trained"] == 32 * row["step"] for row in self.rows())
        assert self.ledger()["trained"] == other.ledger()["trained"]


@pytest.fixture(scope="session")
def until():
    """Waits until something holds, with an end."""

    def wait(condition):
        end = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < end, f"not within {DEADLINE_S:.0f} s"
            time.sleep(0.005)

    return wait


def configured(tiny, changes):
    """Of `tiny` with changes; without the stage `evaluate`, unless a change is about it."""
    config = tiny(f"ppo.updates={UPDATES}", *changes)
    evaluates = any(change.startswith("evaluate.") for change in changes)
    return config if evaluates else config.model_copy(update={"evaluate": None})


def train_tiny(config, folder, *, before_update, again):
    """Runs what is left to do in a folder; `before_update` is called before each update, by the thread of the loop."""
    controls = RunControls(config.name, StopSignal())
    console = Console(file=io.StringIO(), width=500)
    pipeline = Pipeline(
        config,
        folder,
        start_runtime=LocalRuntime,
        console=console,
        again=frozenset({"ppo"}) if again else frozenset(),
        controls=controls,
    )
    update = LocalLearner.update

    def interfered(learner, settings):
        if before_update is not None:
            before_update(controls, learner.step + 1)
        return update(learner, settings)

    error = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalLearner, "update", interfered)
        try:
            pipeline.run()
        except BaseException as caught:
            error = caught
    return Outcome(folder, error, console.file.getvalue(), pipeline.metrics.registry)


@pytest.fixture(scope="session")
def train_in(tiny, tiny_run):
    """Runs PPO of `tiny` with changes in a folder; a second run there goes on.

    The stage `evaluate` is left out, unless a change is about it. `before_update` is called with the run's controls and
    the number of the update to come, by the thread of the loop.
    """

    def run(folder, *changes, before_update=None, again=False):
        if not folder.exists():
            shutil.copytree(tiny_run, folder)
            again = True
        return train_tiny(configured(tiny, changes), folder, before_update=before_update, again=again)

    return run


@pytest.fixture
def train(train_in, tmp_path):
    """As `train_in`, in the test's own folder: a second run of the same name goes on in the same folder."""

    def run(*changes, name="run", **more):
        return train_in(tmp_path / name, *changes, **more)

    return run


@pytest.fixture(scope="session")
def once(tiny, tiny_run, tmp_path_factory):
    """A run with changes, by its changes and whoever interferes with it; each is done once. To be read only."""
    done = {}

    def run(*changes, before_update=None):
        if (changes, before_update) not in done:
            folder = tmp_path_factory.mktemp("once") / "tiny"
            shutil.copytree(tiny_run, folder)
            config = configured(tiny, changes)
            outcome = train_tiny(config, folder, before_update=before_update, again=True)
            done[changes, before_update] = outcome.ok()
        return done[changes, before_update]

    return run


@pytest.fixture(scope="session")
def undisturbed(once):
    """The same run with nobody who interferes, by its changes. To be read only."""
    return once


@pytest.fixture
def poison(monkeypatch):
    """Makes a weight NaN in the course of the named update, as often as asked for: no guard within a step sees it."""

    def at(update, *, times=1):
        left = [times]
        train = PPOLearner._train

        def poisoned(learner, batch, targets):
            tally = train(learner, batch, targets)
            if learner.step + 1 == update and left[0]:
                left[0] -= 1
                next(learner.plain.parameters()).data.view(-1)[0] = float("nan")
            return tally

        monkeypatch.setattr(PPOLearner, "_train", poisoned)

    return at
