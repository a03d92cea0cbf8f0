"""The driver's /metrics: there while it is wanted, readable by Prometheus, gone afterwards."""

import io
import os
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from common.config import MetricsConfig
from common.errors import ConfigError
from common.metrics import RunMetrics
from common.records import Identity, Stats, UpdateReport
from common.supervision import Ledger
from deploy.metrics_server import serve_metrics
from deploy.run_address import read_address


def scrape(url: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode("utf-8")
    families = text_string_to_metric_families(text)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=200)


def test_what_is_counted_can_be_scraped(tmp_path: Path, console):
    registry = CollectorRegistry()
    counter = Counter("things", "Things.", registry=registry)
    with serve_metrics(MetricsConfig(), registry, tmp_path, console) as url:
        counter.inc(3)
        assert scrape(url)["things_total", ()] == 3
        counter.inc()
        assert scrape(url)["things_total", ()] == 4


def test_the_metrics_of_a_run_can_be_scraped(tmp_path: Path, console):
    metrics = RunMetrics(CollectorRegistry())
    ledger = Ledger()
    ledger.dispatch(8)
    ledger.buffer(8)
    ledger.train(5)
    with serve_metrics(MetricsConfig(), metrics.registry, tmp_path, console) as url:
        stats = Stats(samples=8, response_tokens=40, seconds={"generate": 0.5}, identity=Identity(0, 3))
        metrics.member("rollout", "worker-1", stats)
        metrics.update(UpdateReport(4, Identity(0, 4), (), {"score_mean": 1.5, "response_tokens": 40.0}, {}))
        metrics.ledger(ledger)
        found = scrape(url)
    assert found["minichatgpt_tokens_generated_total", (("worker", "worker-1"),)] == 40
    assert found["minichatgpt_weights_step", (("worker", "worker-1"),)] == 3
    assert found["minichatgpt_updates_total", ()] == 1
    assert found["minichatgpt_tokens_trained_total", ()] == 40
    assert found["minichatgpt_score_mean", ()] == 1.5
    assert found["minichatgpt_phase_seconds_sum", (("phase", "generate"), ("role", "rollout"))] == 0.5
    fates = {dict(labels)["fate"]: v for (name, labels), v in found.items() if name == "minichatgpt_samples"}
    assert fates == {"trained": 5, "buffered": 3, "in_flight": 0, "rolled_back": 0, "dropped": 0}
    assert found["minichatgpt_samples_dispatched", ()] == sum(fates.values())


def test_the_address_is_written_down_while_it_holds(tmp_path: Path, console):
    with serve_metrics(MetricsConfig(), CollectorRegistry(), tmp_path, console) as url:
        address = read_address(tmp_path)
        assert (address.metrics_url, address.control_url, address.pid) == (url, None, os.getpid())
        assert url.startswith("http://127.0.0.1:")
        assert url in console.file.getvalue()
    assert not (tmp_path / "run.json").exists()
    with pytest.raises(urllib.error.URLError):
        scrape(url)


def test_it_ends_when_the_run_fails(tmp_path: Path, console):
    with (
        pytest.raises(KeyError),
        serve_metrics(MetricsConfig(), CollectorRegistry(), tmp_path, console) as url,
    ):
        raise KeyError
    assert not (tmp_path / "run.json").exists()
    with pytest.raises(urllib.error.URLError):
        scrape(url)


def test_a_taken_port_is_a_setting_to_change(tmp_path: Path, console):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=rf"metrics cannot bind 127\.0\.0\.1:{port}: .*; set metrics\.port = 0"),
            serve_metrics(MetricsConfig(port=port), CollectorRegistry(), tmp_path, console),
        ):
            pass
    assert not (tmp_path / "run.json").exists()


def test_an_address_of_another_machine_is_a_setting_to_change(tmp_path: Path, console):
    with (
        pytest.raises(ConfigError, match=r"metrics cannot bind 192\.0\.2\.1:0"),
        serve_metrics(MetricsConfig(host="192.0.2.1"), CollectorRegistry(), tmp_path, console),
    ):
        pass


def test_a_chosen_port_is_taken(tmp_path: Path, console):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    with serve_metrics(MetricsConfig(port=port), CollectorRegistry(), tmp_path, console) as url:
        assert url == f"http://127.0.0.1:{port}/metrics"


def test_it_can_be_turned_off(tmp_path: Path, console):
    with serve_metrics(MetricsConfig(enabled=False), CollectorRegistry(), tmp_path, console) as url:
        assert url is None
        assert not (tmp_path / "run.json").exists()
