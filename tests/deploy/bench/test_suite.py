"""`minichatgpt bench`: which benchmarks there are, and what becomes of the others where one fails."""

import json
import subprocess
import sys

import pytest
from ray.exceptions import RaySystemError
from typer.testing import CliRunner

from common.errors import BenchmarkError
from deploy.bench import names, suite
from deploy.bench.cli import app
from deploy.bench.figures import Figure
from deploy.bench.roofline import Roofline
from deploy.cli import main
from deploy.exit_codes import FAILED, FINISHED
from deploy.on_ray import environment


def fails_with(error):
    def measure(options, roof):
        raise error

    return measure


@pytest.fixture
def fakes(monkeypatch):
    """All benchmarks say one figure at once; the one that is named fails. This process's environment stays."""
    monkeypatch.setattr(environment, "protect_local_cluster", lambda: None)
    monkeypatch.setattr(suite, "measure_roofline", lambda: Roofline(1e9, 1e9, 1))
    for name in suite.BENCHMARKS:
        figure = Figure(f"{name}.speed", 2.0, "x")
        monkeypatch.setitem(suite.BENCHMARKS, name, lambda options, roof, figure=figure: [figure])
    return lambda name, error: monkeypatch.setitem(suite.BENCHMARKS, name, fails_with(error))


def bench(*arguments):
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "300", "NO_COLOR": "1"})


def test_every_benchmark_is_named_in_the_help_and_the_help_names_no_other():
    assert list(suite.BENCHMARKS) == [*names.IN_ALL, *names.APART]
    shown = bench("--help").stdout
    for name, what in (names.IN_ALL | names.APART).items():
        assert f"{name}: {what}" in shown


def test_the_help_loads_nothing_heavy():
    code = (
        "import sys\nsys.argv[1:] = ['bench', '--help']\nfrom deploy.cli import main\n"
        "try:\n main()\nexcept SystemExit:\n pass\n"
        "print('heavy', [name for name in ('torch', 'ray', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.splitlines()[-1] == "heavy []"


@pytest.mark.parametrize(
    "error", [BenchmarkError("its child ended"), RaySystemError("no store"), FileNotFoundError("metrics.jsonl")]
)
def test_where_one_fails_its_words_are_told_and_the_figures_of_the_others_kept(fakes, error):
    fakes("learner", error)
    done = bench("engine", "learner", "reward", "--json")
    document = json.loads(done.stdout)
    assert [figure["name"] for figure in document["figures"]] == ["engine.speed", "reward.speed"]
    assert document["errors"] == {"learner": f"{type(error).__name__}: {error}"}
    assert done.exit_code == FAILED


def test_a_table_is_followed_by_what_failed(fakes):
    fakes("engine", BenchmarkError("its child [says] no"))
    done = bench("all")
    assert "scale.speed" in done.stdout
    assert "bench engine failed\nBenchmarkError: its child [says] no\n" in done.stdout.partition("scale.speed")[2]
    assert done.exit_code == FAILED


def test_all_are_all_but_those_that_install_something_each_once(fakes):
    assert set(names.APART) == {"peers", "curves"}
    done = bench("scale", "all", "--json")
    document = json.loads(done.stdout)
    assert [figure["name"].partition(".")[0] for figure in document["figures"]] == [
        "scale", *(name for name in names.IN_ALL if name != "scale"),
    ]  # fmt: skip
    assert (document["errors"], done.exit_code) == ({}, FINISHED)


def test_a_fault_in_a_benchmark_is_not_taken_for_a_failure(fakes):
    fakes("engine", TypeError("ours"))
    assert isinstance(bench("all").exception, TypeError)


def test_an_unknown_benchmark_is_refused_before_anything_is_measured(fakes, monkeypatch, capsys):
    monkeypatch.setattr(suite, "measure_roofline", pytest.fail)
    monkeypatch.setattr(sys, "argv", ["minichatgpt", "bench", "engin"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == FAILED
    assert "no benchmark 'engin'; there are engine, learner" in capsys.readouterr().err
