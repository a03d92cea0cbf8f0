"""The benchmark's run on a real Ray cluster: nothing is lost on the way, and what is measured was done."""

import pytest

from deploy.bench.latency import Latency
from deploy.bench.scale import config_of, figures_of

pytestmark = pytest.mark.ray


def test_a_dozen_simulated_workers_share_the_work_and_every_sample_is_accounted_for(ray_runtime, tmp_path):
    from deploy.bench.scaled_run import Timing, scaled_run

    config = config_of(12)
    run = scaled_run(config, ray_runtime, Latency(median_s=0.1, judge_s=0.001), Timing(1.0, 2.0, 0.01), tmp_path)
    ledger = run.ledger
    assert ledger.mismatch == 0
    assert ledger.trained >= run.updates * 12 * 16 > 0
    assert not ledger.dropped
    assert ledger.duplicates == 0
    assert run.samples > 0
    assert len(run.waits_s) > 0
    assert all(wait >= 0 for wait in run.waits_s)
    assert 0.1 < run.efficiency <= 1.0, "work of a tenth of a second, and a control plane of milliseconds"
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(rows) >= run.updates
    figures = {figure.name: figure.value for figure in figures_of(run, schedule=1.0)}
    assert figures["scale.12.efficiency"] == run.efficiency
    assert figures["scale.12.driver_cpu_per_sample"] > 0
