"""A run on Ray that scales itself up and, gone on with under other thresholds, down; and leaves the bytes of one that
does not.
"""

import io
import json
import re
import shutil
import time

import pytest
from rich.console import Console

from common.errors import RunStopped
from common.hashing import file_hash
from deploy.control.run_controls import RunControls
from deploy.local import LocalRuntime
from deploy.on_ray.learner import RayLearner
from deploy.pipeline import Pipeline
from deploy.stop_signal import StopSignal

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DEADLINE_S = 180.0
UPDATES = 20
COMMON = (
    f"ppo.updates={UPDATES}", "ppo.response_tokens={ min = 24, max = 28 }", "autoscaler.max_workers=4",
    "rollout.num_cpus=0.25", "reward_service.num_cpus=0.25", "reward_service.replicas=2",
)  # fmt: skip
"""Long responses and two replicas, so that it is the workers whom the learner waits for."""
KEEN = (
    "autoscaler.enabled=true", "autoscaler.up_cooldown_s=0", "autoscaler.down_cooldown_s=0",
    "autoscaler.confirm_updates=2", "autoscaler.min_gain_fraction=0.001", "autoscaler.scale_up_wait_fraction=0.01",
    "autoscaler.scale_down_wait_fraction=0.005",
)  # fmt: skip
"""The learner waits longer than that, whatever machine this is."""
CONTENT = (
    "autoscaler.enabled=true", "autoscaler.down_cooldown_s=0", "autoscaler.confirm_updates=2",
    "autoscaler.scale_up_wait_fraction=0.999", "autoscaler.scale_down_wait_fraction=0.99",
)  # fmt: skip
"""The learner's own work is more than a hundredth of an update."""


def pipeline_in(folder, config, runtime, *, again=False):
    console = Console(file=io.StringIO(), width=300)
    return Pipeline(
        config.model_copy(update={"evaluate": None}),
        folder,
        start_runtime=runtime,
        console=console,
        again=frozenset({"ppo"}) if again else frozenset(),
        controls=RunControls(config.name, StopSignal()),
    )


def events(folder):
    rows = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row["text"].split(":")[0] for row in rows if row["event"] in ("autoscale", "scale")]


@pytest.fixture
def watched(monkeypatch):
    """Before each update: waits until all workers that are wanted are there, and tells the status."""

    def watch(controls, tell):
        update = RayLearner.update

        def settled(learner, settings):
            end = time.monotonic() + DEADLINE_S
            while (pool := controls.status().pools["rollout"]).active != pool.target or len(pool.members) > pool.target:
                assert time.monotonic() < end, f"not the wanted workers within {DEADLINE_S:.0f} s: {pool}"
                time.sleep(0.05)
            tell(controls.status())
            return update(learner, settings)

        monkeypatch.setattr(RayLearner, "update", settled)

    yield watch
    monkeypatch.undo()


def test_a_run_scales_itself_up_and_down_and_leaves_the_same_bytes(
    tiny, tiny_run, run_copy, tmp_path, ray_runtime, watched, monkeypatch
):
    plain = tmp_path / "plain"
    shutil.copytree(tiny_run, plain)
    assert pipeline_in(plain, tiny(*COMMON), LocalRuntime, again=True).run()

    first = pipeline_in(run_copy, tiny(*COMMON, *KEEN, "rollout.workers=1"), lambda: ray_runtime, again=True)

    def stop_when_grown(status):
        if status.pools["rollout"].active > 1:
            first.controls.stop("it has grown")

    watched(first.controls, stop_when_grown)
    with pytest.raises(RunStopped, match="it has grown"):
        first.run()
    grown = int(re.findall(r"scale up to (\d) rollout workers", events(run_copy)[-2])[0])
    assert events(run_copy)[-1] == f"scale to {grown} rollout workers"
    before = len(events(run_copy))

    monkeypatch.undo()
    second = pipeline_in(run_copy, tiny(*COMMON, *CONTENT, f"rollout.workers={grown}"), lambda: ray_runtime)
    seen = []
    watched(second.controls, seen.append)
    assert second.run()
    assert events(run_copy)[before:] == ["scale down to 1 rollout workers", "scale to 1 rollout workers"]
    assert [len(status.pools["rollout"].members) for status in (seen[0], seen[-1])] == [grown, 1]
    assert seen[-1].autoscaler.direction == "hold"

    names = [f"trajectories/update_{step:06d}.safetensors" for step in range(1, UPDATES + 1)]
    for name in [*names, "models/ppo/model.safetensors", "samples.jsonl"]:
        assert file_hash(run_copy / name) == file_hash(plain / name), name
