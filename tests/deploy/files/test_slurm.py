"""The sbatch script under real Ray, in namespaces of its own; Slurm itself is three small programs in front of PATH.

`srun` starts what it is given on this machine, `scontrol` knows two names, `hostname` the one address. How Slurm places
tasks and sends signals is not tested: no Slurm was to be had.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[3]
SCRIPT = ROOT / "deploy" / "slurm" / "minichatgpt.sbatch"
IN_NAMESPACES = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
DEADLINE_S = 300.0
PROGRAMS = {
    "srun": 'while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "scontrol": "echo node1; echo node2",
    "hostname": "echo 10.99.0.1",
    "python3": f'exec {sys.executable} "$@"',
    "ray": f'exec {sys.executable} -m ray.scripts.scripts "$@"',
    "minichatgpt": f'exec {sys.executable} -m deploy "$@"',
}
WRAPPER = """
ip link set lo up && ip address add 10.99.0.1/32 dev lo
bash "$@"
code=$?
echo "left behind: $(cat /proc/[0-9]*/comm | grep -E -c 'raylet|gcs_server|ray::')"
exit $code
"""


def test_shellcheck_finds_nothing_in_any_script(tool):
    scripts = [SCRIPT, *(ROOT / "deploy" / "kubernetes" / "shared").glob("*-job")]
    scripts += [*(ROOT / "deploy").glob("*/make-secrets"), ROOT / "deploy" / "docker" / "minichatgpt-entrypoint"]
    assert len(scripts) == 6
    done = subprocess.run([tool("shellcheck"), *scripts], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_without_a_configuration_and_without_slurm_it_says_what_to_do():
    environment = {"PATH": os.environ["PATH"]}
    for words, said in ([], "usage: sbatch minichatgpt.sbatch CONFIG"), (["tiny"], "submit this script with sbatch"):
        done = subprocess.run(["bash", SCRIPT, *words], env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode != 0
        assert said in done.stderr


def test_slurm_sends_the_signal_that_the_script_waits_for_early_enough():
    text = SCRIPT.read_text(encoding="utf-8")
    (seconds,) = re.findall(r"^#SBATCH --signal=B:TERM@(\d+)$", text, re.MULTILINE)
    assert int(seconds) >= 120
    assert re.search(r"^trap '.*' TERM INT$", text, re.MULTILINE)


def test_nodes_that_srun_starts_have_the_cpus_that_ray_gives_away():
    (command,) = re.findall(r"^  srun (.*?) &$", SCRIPT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert '--cpus-per-task="$cpus"' in command


def test_no_port_that_the_script_chooses_is_one_that_linux_or_ray_gives_away():
    text = SCRIPT.read_text(encoding="utf-8")
    (of_job,) = re.findall(r"^port=(\$\(\(.*?\)\))", text, re.MULTILINE)
    (of_client,) = re.findall(r"--ray-client-server-port (\$\(\(.*?\)\))", text)
    line = f"port={of_job}; echo $port {of_client}"
    chosen = set()
    for job in (0, 5_999, 6_000, 9_999, 1_234_567, 67_108_863):
        done = subprocess.run(["bash", "-c", line], env={"SLURM_JOB_ID": str(job)}, capture_output=True, check=True)
        port, client = map(int, done.stdout.split())
        assert 20_000 <= port < client < 32_768
        chosen.add((port, client))
    ports, clients = zip(*chosen, strict=True)
    assert not set(ports) & set(clients)
    assert max(ports) < min(clients), "of no other job either"


def on_node():
    """The function that the script sends to its other nodes."""
    text = SCRIPT.read_text(encoding="utf-8")
    (function,) = re.findall(r"^  on_node\(\) \{.*?^  \}$", text, re.MULTILINE | re.DOTALL)
    return function


def test_another_node_ends_with_the_signal_and_leaves_nothing_of_ray(tmp_path, until_there):
    folder, ready = tmp_path / "ray", tmp_path / "ready"
    folder.mkdir()
    ray = 'trap "sleep 0.3; exit 7" TERM; echo >"$0"; while :; do sleep 0.05; done'
    words = ["node", folder, "bash", "-c", ray, ready]
    process = subprocess.Popen(["bash", "-c", f'{on_node()}\non_node "$@"', *words])
    until_there(ready)
    assert folder.is_dir()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 7
    assert not folder.exists()


def test_a_signal_that_comes_before_a_node_knows_its_ray_is_not_lost(tmp_path):
    gap = "    ray=$!\n"
    function = on_node()
    assert function.count(gap) == 1
    folder = tmp_path / "ray"
    folder.mkdir()
    command = f'{function.replace(gap, "    kill -TERM $$" + chr(10) + gap)}\non_node "$@"'
    done = subprocess.run(["bash", "-c", command, "node", folder, "sleep", "1000"], check=False, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM
    assert not folder.exists()


def can_make_namespaces():
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare"))):
        return False
    return subprocess.run([*IN_NAMESPACES, "true"], check=False, capture_output=True).returncode == 0


@pytest.fixture
def submit(tmp_path):
    """Submits the script, and says its process number, as seen from here, and where it prints."""
    if not can_make_namespaces():
        pytest.skip("needs root, iproute2 and util-linux: makes namespaces of network and processes")
    (tmp_path / "bin").mkdir()
    for name, body in PROGRAMS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "SLURM_"))}
    environment |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    environment |= {"RUNS": str(tmp_path / "runs"), "SLURM_CPUS_PER_TASK": "2", "SLURM_JOB_NODELIST": "node[1-2]"}
    started = []

    def start(*words, **more):
        job = str(os.getpid() * 10 + len(started))
        log = tmp_path / f"{job}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*IN_NAMESPACES, "bash", "-c", WRAPPER, "wrapper", str(SCRIPT), *words],
                env=environment | {"SLURM_JOB_ID": job} | more, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        started.append(process)
        return process, log

    yield start
    for process in started:
        process.kill()
        process.wait(timeout=60)


def updates(folder):
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_on_two_nodes_is_cut_off_by_its_time_and_the_same_command_goes_on(submit, tmp_path):
    command = ["tiny", "--set", "ppo.updates=9", "--set", "ppo.lr_final_fraction=1", "--set", "rollout.num_cpus=1"]
    folder = tmp_path / "runs" / "tiny"
    process, log = submit(*command)
    deadline = time.monotonic() + DEADLINE_S
    while updates(folder) < 3:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)
    (shared,) = (tmp_path / "runs" / ".slurm").iterdir()
    assert (shared / "ray_token").stat().st_mode & 0o777 == 0o600
    assert shared.stat().st_mode & 0o777 == 0o700
    (wrapper,) = psutil.Process(process.pid).children()
    (script,) = (child for child in wrapper.children() if str(SCRIPT) in child.cmdline())
    script.send_signal(signal.SIGTERM)  # to the shell only, as B: says

    assert process.wait(timeout=DEADLINE_S) == 143, log.read_text()
    assert "nodes: 2" in log.read_text()
    assert "left behind: 0" in log.read_text()
    assert not shared.exists()
    done = updates(folder)
    assert 3 <= done < 9
    assert json.loads((folder / "ended.json").read_text())["exit_code"] == 143

    process, log = submit(*command)
    assert process.wait(timeout=DEADLINE_S) == 0, log.read_text()
    assert updates(folder) == 9
    assert "resum" in (folder / "events.jsonl").read_text()
    assert "left behind: 0" in log.read_text()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(
    ("srun", "said"),
    [
        ("exec sleep 1000", "1 of 2 nodes have joined within 15 s (DEADLINE_S)"),
        ("exit 1", "a node of Ray has ended before all were there"),
    ],
    ids=["does not come", "ends"],
)
def test_where_a_node_is_missing_the_job_ends_and_leaves_nothing(submit, tmp_path, srun, said):
    (tmp_path / "bin" / "srun").write_text(f"#!/bin/bash\n{srun}\n")
    process, log = submit("tiny", DEADLINE_S="15")
    assert process.wait(timeout=DEADLINE_S) == 1, log.read_text()
    assert said in log.read_text()
    assert "left behind: 0" in log.read_text()
    assert not any((tmp_path / "runs" / ".slurm").iterdir())
