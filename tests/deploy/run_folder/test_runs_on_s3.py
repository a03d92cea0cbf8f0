"""Whole runs whose folder is in a bucket of a real S3 server, which keeps it in memory: in one process, killed and
resumed on another machine, and on Ray with workers that do not see the driver's disk.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
DEADLINE_S = 240.0
RUNS = "s3://bucket/runs"
RUN = """
import sys
from huggingface_hub import constants

if __name__ == "__main__":
    constants.HF_ASSETS_CACHE = sys.argv.pop(1)  # of this process alone: those of Ray have that of the environment
    from deploy.cli import main
    main()
"""


@pytest.fixture(scope="module")
def store():
    """Environment of a process that finds the server; the bucket is there."""
    pytest.importorskip("s3fs", reason="pip install 'minichatgpt[s3]'")
    server_module = pytest.importorskip("moto.server", reason="pip install 'moto[s3,server]'")
    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    found = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in found.items():
            patch.setenv(name, value)
        bucket().call_s3("create_bucket", Bucket="bucket")
        yield found
    server.stop()


def bucket():
    import s3fs

    return s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)


def in_bucket(name):
    """The files of a run folder: names to bytes."""
    fs, start = bucket(), f"bucket/runs/{name}/"
    return {path.removeprefix(start): fs.cat_file(path) for path in fs.find(start)}


def start(store, tmp_path, machine, name, *options):
    """A `minichatgpt run` on a machine of its own."""
    script = tmp_path / "run.py"
    script.write_text(RUN, encoding="utf-8")
    command = [sys.executable, str(script), str(tmp_path / machine), "run", "tiny", "--runs", RUNS,
               "--set", f"name={name}", *options]  # fmt: skip
    environment = os.environ | store | {"PYTHONPATH": str(ROOT), "HF_ASSETS_CACHE": str(tmp_path / "workers")}
    return subprocess.Popen(command, env=environment, cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)  # fmt: skip


def finish(process):
    said, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, said
    return said


def results(files):
    """What must be the same wherever a run runs: tensors byte for byte, and what was measured without its times."""
    kept = {name: data for name, data in files.items() if name.split("/")[0] in ("models", "trajectories")}
    for line in files["metrics.jsonl"].splitlines():
        row = json.loads(line)
        kept[f"update {row['step']}"] = (row["weights_hash"], row["metrics"])
    kept["samples.jsonl"] = files["samples.jsonl"]
    return kept


def on_disk(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_run_in_a_bucket_is_that_on_a_disk(store, tmp_path, tiny_run):
    said = finish(start(store, tmp_path, "here", "plain", "--local"))
    assert "All of it is at s3://bucket/runs/plain" in said.replace("\n", "")
    files = in_bucket("plain")
    assert results(files) == results(on_disk(tiny_run))
    assert {"report.html", "summary.json", "ended.json", "config.toml", "stages/ppo.json"} <= files.keys()
    assert not {"control.token", "read.token", ".lock", "run.json"} & files.keys()
    assert [name for name in files if name.startswith("checkpoints/") and name.endswith("manifest.json")]
    again = finish(start(store, tmp_path, "there", "plain", "--local"))
    assert again.count("done before, same inputs") == 6, "another machine finds all that the first one left"


@pytest.mark.slow
def test_a_driver_that_is_killed_is_gone_on_from_on_a_machine_that_has_nothing(store, tmp_path, tiny_run):
    options = ("--local", "--set", "ppo.checkpoint_every=1")
    process = start(store, tmp_path, "first", "killed", *options)
    end = time.monotonic() + DEADLINE_S
    while not bucket().glob("bucket/runs/killed/checkpoints/*/manifest.json"):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    files = in_bucket("killed")
    assert b'"step": 1' in files["metrics.jsonl"], "it is there before the checkpoint that needs it"
    said = finish(start(store, tmp_path, "second", "killed", *options))
    assert said.count("done before, same inputs") == 4
    assert results(in_bucket("killed")) == results(on_disk(tiny_run))


@pytest.mark.slow
@pytest.mark.ray
def test_processes_of_ray_that_do_not_see_the_drivers_disk_leave_the_same(store, tmp_path, tiny_run):
    finish(start(store, tmp_path, "driver", "apart"))
    assert results(in_bucket("apart")) == results(on_disk(tiny_run))
    theirs = tmp_path / "workers" / "minichatgpt" / "s3" / "bucket" / "runs" / "apart"
    assert (theirs / "trajectories").is_dir(), "the learner worked elsewhere"
    assert not (tmp_path / "driver" / theirs.relative_to(tmp_path / "workers") / "trajectories").exists()
