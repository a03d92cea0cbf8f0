"""A real run, scraped over HTTP before its last update: every metric of the catalogue is there, and means something."""

import json
import math
import shutil
import subprocess
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from common.metric_catalogue import CATALOGUE, PREFIX
from deploy.local import LocalLearner
from deploy.run import run_pipeline
from deploy.run_folder.address import read_address

UPDATES = 5
MAY_BE_MISSING = {"control_requests", "autoscaler_target", "autoscaler_decisions"}
"""Metrics with labels that have no series in this run: it answers its first request, and has no autoscaler."""


@pytest.fixture(scope="module")
def scraped(tiny, tmp_path_factory):
    """What /metrics says before the last update, and the names of what the learner has reported until then."""
    folder, texts, patch = tmp_path_factory.mktemp("runs") / "tiny", [], pytest.MonkeyPatch()
    update = LocalLearner.update

    def watched(learner, settings):
        if learner.step == UPDATES - 1:
            url = read_address(folder).control_url
            token = (folder / "control.token").read_text(encoding="utf-8").strip()
            request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {token}"})
            with urllib.request.urlopen(request, timeout=60) as response:
                texts.append(response.read().decode())
        return update(learner, settings)

    config = tiny(f"ppo.updates={UPDATES}", "ppo.checkpoint_every=2", "evaluate.every_updates=2")
    with patch.context() as during:
        during.setattr(LocalLearner, "update", watched)
        run_pipeline(config, folder, local=True, address=None, again=frozenset())
    [text] = texts
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    evaluation = json.loads((folder / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()[0])
    return text, {*lines[0]["metrics"], *(f"evaluation.{name}" for name in evaluation["numbers"])}


@pytest.fixture(scope="module")
def families(scraped):
    return {family.name: family for family in text_string_to_metric_families(scraped[0])}


@pytest.fixture(scope="module")
def value(families):
    """The one sample of a name and labels."""
    samples = {(s.name, frozenset(s.labels.items())): s.value for f in families.values() for s in f.samples}

    def of(name, **labels):
        return samples[PREFIX + name, frozenset((labels | {"run": "tiny"}).items())]

    return of


@pytest.mark.parametrize("metric", CATALOGUE.values(), ids=lambda metric: metric.name)
def test_every_metric_is_there_with_a_sane_value(families, scraped, metric):
    family = families[PREFIX + metric.name]
    assert (family.type, family.documentation) == (metric.type, metric.meaning)
    samples = [s for s in family.samples if not s.name.endswith("_created")]
    assert samples or metric.name in MAY_BE_MISSING
    assert {frozenset(s.labels) - {"le"} for s in samples} <= {frozenset({*metric.labels, "run"})}
    assert {s.labels["run"] for s in samples} <= {"tiny"}
    values = [s.value for s in samples]
    if metric.report and metric.report not in scraped[1]:
        assert all(map(math.isnan, values)), "nobody knows it"
        return
    assert all(map(math.isfinite, values))
    if metric.name.endswith("_ratio") and not metric.name.endswith(("rise_ratio", "gap_ratio", "variance_ratio")):
        assert all(0 <= number <= 1 for number in values)
    if metric.type == "histogram" and not metric.labels:
        assert max(s.value for s in samples if s.name.endswith("_count")) > 0, "something was observed"


def test_numbers_agree_with_each_other(value):
    done = UPDATES - 1
    assert value("updates_total") == value("step") == value("published_step") == done
    assert value("updates_planned") == UPDATES
    assert value("max_staleness") == 0
    assert value("samples", fate="trained", reason="") == 32 * done
    assert value("samples_dispatched") == 32 * UPDATES
    assert value("ledger_mismatch_samples") == 0
    assert value("sample_score_count") == 32 * UPDATES
    assert value("staleness_updates_count") == 32 * done
    assert value("staleness_updates_sum") == 0
    assert value("update_seconds_count") == done
    assert value("phase_seconds_count", role="learner", phase="train") == done
    assert value("checkpoint_step") in (2, 4)
    assert value("evaluation_step") == 4
    assert [value("members", role=role, state="active") for role in ("rollout", "reward")] == [2, 1]
    generated = sum(value("generated_tokens_total", slot=f"worker-{i}") for i in range(2))
    assert generated == value("sample_response_tokens_sum") > value("trained_tokens_total") > 0
    assert value("request_seconds_count", role="reward", method="score") == 4 * UPDATES
    assert value("run_info", runtime="local") == 1
    assert value("memory_bytes", role="driver", slot="driver") > 1e7
    assert value("busy_seconds_total", role="reward", slot="replica-0") > 0
    parts = [value("publish_seconds_count", part=part) for part in ("fetch", "verify", "load", "pause")]
    assert len(set(parts)) == 1, "each time that weights are adopted has all parts"
    assert 0 < value("metrics_seconds_total") < value("update_seconds_sum")


def test_what_learners_report_by_default_is_known(scraped):
    unknown = {metric.report for metric in CATALOGUE.values() if metric.report} - scraped[1]
    ahead = {name for name in unknown if name.startswith("importance_") or name in ("fresh_kl", "stale_kl")}
    assert unknown - ahead <= {"zero_std_group_share", "kl_target_ratio"}, "without groups, without a target"
    assert ahead, "generation and learning take turns"


def test_promtool_finds_nothing_to_say(scraped):
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    ours = "".join(line + "\n" for line in scraped[0].splitlines() if "_created" not in line)
    checked = subprocess.run([promtool, "check", "metrics"], input=ours, capture_output=True, text=True, timeout=60)
    assert (checked.returncode, checked.stderr, checked.stdout) == (0, "", "")
