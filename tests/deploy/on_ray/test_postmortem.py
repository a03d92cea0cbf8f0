"""A dead Ray actor's error names who, where, when, why, and what it said last."""

import os
import signal

import pytest

from deploy.on_ray.postmortem import DEATHS, MemberFacts, exit_cause, last_words

DEADLINE_S = 120.0


def test_ray_marks_and_chatter_are_no_last_words(tmp_path):
    (tmp_path / "worker-ab-01000000-47.err").write_text(
        ":job_id:01000000\n:actor_name:A\n[2026-11-24 14:25:29,199 E 47 50] logging.cc:474: PC: @ 0x7f\n"
        "    @     0x7ff1efc5a050  (unknown)\nCUDA error: device-side assert\n\n",
        encoding="utf-8",
    )
    tail = last_words(tmp_path, 47)
    assert tail is not None
    assert (tail.path.name, tail.lines) == ("worker-ab-01000000-47.err", ("CUDA error: device-side assert",))


def test_errors_come_before_output_and_only_the_end_is_quoted(tmp_path):
    (tmp_path / "worker-ab-ffffffff-47.out").write_text("output\n", encoding="utf-8")
    errors = tmp_path / "worker-ab-ffffffff-47.err"
    errors.write_text(":job_id:01000000\n", encoding="utf-8")
    tail = last_words(tmp_path, 47)
    assert tail is not None
    assert tail.lines == ("output",)
    errors.write_text("".join(f"line {n}\n" for n in range(20_000)), encoding="utf-8")
    tail = last_words(tmp_path, 47)
    assert tail is not None
    assert tail.lines == tuple(f"line {n}" for n in range(19_992, 20_000))


def test_of_a_crash_of_python_the_beginning_is_quoted(tmp_path):
    stack = [f'  File "a.py", line {n} in f' for n in range(100)]
    text = "\n".join(
        ["before", "Fatal Python error: Segmentation fault", "", "Stack (most recent call first):", *stack]
    )
    (tmp_path / "worker-ab-ffffffff-47.err").write_text(text, encoding="utf-8")
    tail = last_words(tmp_path, 47)
    assert tail is not None
    assert tail.lines[:3] == ("Fatal Python error: Segmentation fault", "Stack (most recent call first):", stack[0])
    assert len(tail.lines) == 8


def test_a_process_without_a_log_has_none(tmp_path):
    (tmp_path / "worker-ab-ffffffff-147.err").write_text("of another\n", encoding="utf-8")
    assert last_words(tmp_path, 47) is None


def test_the_memory_monitors_victim_is_told_with_the_nodes_memory():
    from ray.exceptions import OutOfMemoryError

    error = OutOfMemoryError(
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 127.0.0.1, ID: 44) was "
        "7.10GB used / 23.54GB limit (0.301415)\nOOM kill reason: Memory usage 7610089472B exceeded threshold\n"
    )
    assert isinstance(error, DEATHS)
    assert "Ray's memory monitor killed it" in exit_cause(error)
    assert "(7.10GB used / 23.54GB limit)" in exit_cause(error)


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "The actor died because its node has died. Node Id: 07a5\n\tthe actor's node was terminated unexpectedly: "
            "health check failed due to missing too many heartbeats",
            "its node died: health check failed due to missing too many heartbeats.",
        ),
        ("The actor is dead because its owner has died. Owner Id: 01", "the process that had started it is gone."),
        ("Something that Ray never said before.", "RayActorError: Something that Ray never said before."),
    ],
)
def test_what_ray_says_is_put_in_short(text, cause):
    from ray.exceptions import RayActorError

    assert exit_cause(RayActorError("ab", text)) == cause


def test_a_node_that_was_taken_away_is_told():
    from ray.exceptions import RayActorError

    assert exit_cause(RayActorError("ab", "…", preempted=True)) == "its node was taken away (preempted)."


# --- with Ray


@pytest.fixture
def mortal(ray_runtime):
    """Starts an actor that can end in many ways; returns its handle and pid."""
    import ray

    @ray.remote(max_restarts=0, num_cpus=0.1)
    class Mortal:
        def __init__(self, fails=False):
            if fails:
                raise ValueError("no model there")

        def pid(self):
            return os.getpid()

        def generate(self, how):
            if how == "exit":
                print("leaving now", flush=True)
                raise SystemExit(3)
            if how == "signal":
                import time

                time.sleep(DEADLINE_S)
            os.kill(os.getpid(), signal.SIGSEGV)

    handles = []

    def start(*arguments, answers=True):
        handle = Mortal.remote(*arguments)
        handles.append(handle)
        return handle, ray.get(handle.pid.remote(), timeout=DEADLINE_S) if answers else None

    yield start
    for handle in handles:
        ray.kill(handle)


def death(ref, **facts):
    import ray

    from deploy.on_ray.postmortem import describe_death

    with pytest.raises(DEATHS) as raised:
        ray.get(ref, timeout=DEADLINE_S)
    node_ip = ray.util.get_node_ip_address()
    node_id = ray.get_runtime_context().get_node_id()
    member = {"role": "rollout", "name": "worker-1", "phase": "generate", "node_id": node_id, "node_ip": node_ip}
    return describe_death(raised.value, MemberFacts(**member | facts)), node_id, node_ip


@pytest.mark.ray
def test_a_killed_actor_is_told_with_all_that_is_known(mortal):
    actor, pid = mortal()
    ref = actor.generate.remote("signal")
    os.kill(pid, signal.SIGKILL)
    said, node_id, node_ip = death(ref, pid=pid, rss_bytes=1_200_000_000, rss_age_s=3.2)
    assert said.startswith("rollout worker-1 died in generate: its process ended without a word: killed from outside")
    assert f"process {pid} on node {node_ip} ({node_id[:8]}); it held 1.2 GB 3 s before." in said
    assert f"-{pid}.err" in said


@pytest.mark.ray
def test_an_exit_code_and_the_last_words_are_told(mortal):
    actor, pid = mortal()
    said, *_ = death(actor.generate.remote("exit"), pid=pid)
    assert "its process exited with code 3." in said
    assert said.endswith(".out ends:\n  | leaving now")


@pytest.mark.ray
def test_a_crash_is_told_with_pythons_stack(mortal):
    actor, pid = mortal()
    said, *_ = death(actor.generate.remote("crash"), pid=pid)
    assert "crashed (SIGSEGV" in said
    assert "| Fatal Python error: Segmentation fault" in said
    assert "in generate" in said


@pytest.mark.ray
def test_a_constructor_that_fails_is_told(mortal):
    actor, _ = mortal(True, answers=False)
    said, *_ = death(actor.pid.remote(), phase="start")
    assert "died in start: its constructor raised ValueError: no model there." in said
    assert "a process that never answered" in said


@pytest.mark.ray
def test_what_this_run_killed_itself_is_told(mortal):
    import ray

    actor, pid = mortal()
    ref = actor.generate.remote("signal")
    ray.kill(actor)
    assert "it was killed by this run (ray.kill)" in death(ref, pid=pid)[0]


@pytest.mark.ray
def test_a_log_on_another_node_is_named_with_its_node(mortal):
    actor, pid = mortal()
    ref = actor.generate.remote("signal")
    os.kill(pid, signal.SIGKILL)
    said, *_ = death(ref, pid=pid, node_ip="10.77.0.2", node_id="ab" * 28)
    assert "on node 10.77.0.2 (abababab)" in said
    assert f"Its log is on that node: worker-*-{pid}.err" in said
