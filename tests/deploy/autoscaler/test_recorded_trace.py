"""What a recorded run tells the policy, and what it says of one that was recorded on Ray.

tiny_on_ray.json is of `tiny` with 8 chunks of 16 responses of 48 to 64 tokens, one worker at first and three from
update 24 on, all on two CPUs that others used too: `python -m deploy.autoscaler FOLDER --out tiny_on_ray.json`.
"""

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter
from typer import Typer
from typer.testing import CliRunner

from common.config_file import to_toml
from common.errors import DataError
from deploy.autoscaler.__main__ import replay
from deploy.autoscaler.forecast import Forecast
from deploy.autoscaler.recorded_trace import Trace, decisions, read_trace


@pytest.fixture(scope="module")
def recorded():
    path = Path(__file__).with_name("tiny_on_ray.json")
    return TypeAdapter(Trace).validate_json(path.read_bytes())


def made(config, trace):
    return [(seen.step, d.direction, d.target) for seen, d in decisions(config, trace) if d.direction != "hold"]


# --- of a real run


def test_while_the_learner_waits_for_one_worker_it_wants_more(configured, recorded):
    assert {seen.active for seen in recorded.observations} == {1, 2, 3}
    first, *_ = made(configured(max_workers=3), recorded)
    assert first == (4, "up", 3), "seen in updates 2, 3 and 4; workers start in the first"
    assert all(change[1] == "up" for change in made(configured(max_workers=3), recorded))


def test_with_the_cool_downs_of_the_configuration_it_asks_once(configured, recorded):
    config = configured(max_workers=3, up_cooldown_s=60.0, down_cooldown_s=300.0)
    assert made(config, recorded) == [(4, "up", 3)]


def test_where_the_learner_may_wait_that_long_workers_go(configured, recorded):
    lenient = configured(max_workers=3, scale_up_wait_fraction=0.98, scale_down_wait_fraction=0.95)
    changes = made(lenient, recorded)
    assert changes
    assert {direction for _, direction, _ in changes} == {"down"}
    assert {target for _, _, target in changes} == {1}


def test_a_real_update_is_taken_apart_without_remainder(recorded):
    for seen in recorded.observations[1:]:
        forecast = Forecast.of(seen, recorded.num_chunks)
        assert min(forecast.chunk_s, forecast.other_s) > 0
        assert forecast.rest_s >= -1e-9
        assert forecast.update_s(seen.active) == pytest.approx(seen.update_s)
        assert forecast.wait_fraction(seen.active) == pytest.approx(seen.learner_wait_fraction)


# --- from a run folder


@pytest.fixture
def folder(tiny, tmp_path):
    """Two updates of 10 s, the second paused for 5 s more; a worker joins between them, another is lost."""

    def line(**facts):
        return json.dumps(facts) + "\n"

    (tmp_path / "config.toml").write_text(to_toml(tiny()), encoding="utf-8")
    first = {"collect": 6.0, "update": 4.0, "generate": 3.0, "fetch": 1.0, "score": 2.0, "total": 10.0}
    second = {**first, "evaluate": 2.0, "paused": 5.0, "total": 15.0}
    (tmp_path / "metrics.jsonl").write_text(
        line(time="2026-01-01T00:00:10+00:00", step=1, seconds=first)
        + line(time="2026-01-01T00:00:25+00:00", step=2, seconds=second),
        encoding="utf-8",
    )
    events = [(0, "active", "worker-0"), (0, "active", "replica-0"), (1, "active", "worker-1"), (2, "lost", "worker-1"),
              (12, "active", "worker-2"), (20, "scale", "")]  # fmt: skip
    (tmp_path / "events.jsonl").write_text(
        "".join(line(time=f"2026-01-01T00:00:{s:02d}+00:00", event=e, slot=slot, text="") for s, e, slot in events),
        encoding="utf-8",
    )
    return tmp_path


def test_a_folder_is_read_as_the_policy_would_have_seen_it(folder):
    trace = read_trace(folder)
    assert trace.num_chunks == 4
    first, second = trace.observations
    assert (first.now_s, second.now_s) == (0.0, 15.0)
    assert (first.active, second.active, second.target, second.starting) == (1, 2, 2, 0)
    assert (first.update_s, second.update_s) == (10.0, 10.0), "without pauses"
    assert first.learner_wait_fraction == 0.6
    assert (first.evaluate_fraction, second.evaluate_fraction) == (0.0, 0.2)
    assert (first.worker_busy_fraction, second.worker_busy_fraction) == (0.4, 0.2)
    assert first.reward_busy_fraction == 0.2


def test_a_folder_without_updates_is_refused(folder):
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(DataError, match=r"no updates in metrics\.jsonl"):
        read_trace(folder)


def test_the_command_shows_decisions_and_writes_the_trace(folder):
    app = Typer()
    app.command()(replay)
    out = folder / "trace.json"
    done = CliRunner().invoke(app, [str(folder), "--set", "autoscaler.max_workers=3", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert [line.split()[:5] for line in done.output.splitlines() if line[:1].isdigit()] == [
        ["1", "1", "60", "%", "hold"],
        ["2", "2", "60", "%", "hold"],
    ]
    assert TypeAdapter(Trace).validate_json(out.read_bytes()) == read_trace(folder)
    refused = CliRunner().invoke(app, [str(folder / "nowhere")])
    assert refused.exit_code == 2
