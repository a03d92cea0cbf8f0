"""A tracker that cannot be used is found before anything starts."""

import sys

import pytest

from common.errors import ConfigError
from deploy.preflight.trackers import check_trackers
from deploy.run import run_pipeline

TENSORBOARD, WANDB = "trackers.tensorboard={}", "trackers.wandb={}"


@pytest.mark.parametrize(
    ("change", "package", "extra"), [(TENSORBOARD, "tensorboardX", "tensorboard"), (WANDB, "wandb", "wandb")]
)
def test_a_package_that_is_missing_is_named_with_its_extra(tiny, monkeypatch, change, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    (finding,) = check_trackers(tiny(change), {})
    assert finding.failure.startswith(f"trackers.{extra} needs the package {package}, which cannot be imported (")
    assert f"`pip install 'minichatgpt[{extra}]'`, or remove the table [trackers.{extra}]" in finding.failure
    assert check_trackers(tiny(), {}) == []


def test_online_needs_a_key_and_offline_needs_none(tiny):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    online = tiny("trackers.wandb.mode=online")
    (finding,) = check_trackers(online, {"WANDB_API_KEY": ""})
    assert "the environment variable WANDB_API_KEY, which is not set; export it where" in finding.failure
    (finding,) = check_trackers(online, {"WANDB_API_KEY": "s3cr3t"})
    assert (finding.failure, finding.measured.endswith(", online")) == ("", True)
    assert "s3cr3t" not in finding.measured
    (finding,) = check_trackers(tiny(WANDB), {})
    assert (finding.failure, finding.measured.endswith(", offline")) == ("", True)


def test_a_tracker_that_is_disabled_needs_nothing(tiny, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert check_trackers(tiny("trackers.wandb.mode=disabled"), {}) == []


def test_a_run_is_told_before_its_first_stage(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ConfigError, match=r"pip install 'minichatgpt\[tensorboard\]'"):
        run_pipeline(tiny(TENSORBOARD), tmp_path / "run", local=True, address=None, again=frozenset())
    assert not (tmp_path / "run" / "models").exists()
