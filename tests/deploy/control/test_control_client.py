"""Finding a run and asking it: live, ended, killed, absent; and the waits of `scale --wait` and `stop`."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx2
import pytest

from common.errors import ControlError, DataError
from deploy.control import client as control_client
from deploy.control.client import RunClient
from deploy.control.run_status import CheckpointInfo, ScaleRequest, StopRequest
from deploy.control.target import find_run
from deploy.control.waits import await_end, await_size
from deploy.run_folder.address import RecordEnd, announce
from deploy.run_folder.lock import run_lock

ROOT = Path(__file__).parents[3]
LIVING = """
import sys, time
from contextlib import ExitStack
from pathlib import Path
from deploy.run_folder.address import RecordEnd, announce
from deploy.run_folder.lock import run_lock
folder = Path(sys.argv[1])
with run_lock(folder), RecordEnd(folder), announce(folder, control_url="http://127.0.0.1:9"):
    print("living", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def living(tmp_path):
    """A process that holds runs/other until its input ends; its control channel does not answer."""
    folder = tmp_path / "runs" / "other"
    process = subprocess.Popen(
        [sys.executable, "-c", LIVING, str(folder)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "living\n"
    yield process, folder
    process.kill()
    process.wait(60)
    process.stdin.close()
    process.stdout.close()


def refused(name, runs) -> str:
    with pytest.raises((ControlError, DataError)) as raised:
        find_run(name, runs)
    return str(raised.value)


# --- finding


def test_a_run_is_found_by_name_and_by_folder(served):
    for client in (find_run("tiny", served.folder.parent), find_run(str(served.folder), Path("nowhere"))):
        with client:
            assert client.status() == served.run.status()
            assert client.pid == os.getpid()


def test_an_absent_run_names_those_there_are(served):
    message = refused("tinny", served.folder.parent)
    assert "tinny does not exist" in message
    assert message.endswith(": tiny")


def test_a_folder_in_which_nothing_runs_says_so(tmp_path):
    (tmp_path / "tiny").mkdir()
    assert "tiny does not run, and no run in" in refused("tiny", tmp_path)


def test_a_run_that_has_ended_says_when_and_how(serve):
    with serve() as served:
        pass
    with pytest.raises(DataError, match="row 3"), run_lock(served.folder), RecordEnd(served.folder):
        raise DataError("row 3 is empty")
    message = refused("tiny", served.folder.parent)
    assert "tiny does not run; it ended at 20" in message
    assert message.endswith("UTC with exit code 1: DataError: row 3 is empty")


def test_a_run_that_was_killed_says_which_process_is_gone(living):
    process, folder = living
    process.kill()
    process.wait(60)
    message = refused("other", folder.parent)
    assert f"process {process.pid} is gone and left no word, so it was killed" in message
    assert "goes on from the newest checkpoint" in message


def test_the_process_number_of_somebody_else_is_no_sign_of_life(living):
    """Numbers are used again: the lock is what counts."""
    process, folder = living
    process.kill()
    process.wait(60)
    for name in ("run.json", ".lock"):
        text = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(text.replace(str(process.pid), str(os.getpid())), encoding="utf-8")
    assert "was killed" in refused("other", folder.parent)


def test_a_lock_that_outlives_its_process_is_no_sign_of_life(living):
    """A process that the run left behind may hold it."""
    _, folder = living
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    (folder / ".lock").write_bytes(gone.stdout)
    assert "does not run" in refused("other", folder.parent)


def test_a_run_of_another_machine_is_to_be_asked_there(served, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    assert "run the command on that machine" in refused("tiny", served.folder.parent)


def test_a_run_without_a_channel_says_which_setting_turns_it_on(tmp_path):
    folder = tmp_path / "tiny"
    with run_lock(folder):
        assert "control.enabled is false" in refused("tiny", tmp_path)
        with announce(folder):
            assert "control.enabled is false" in refused("tiny", tmp_path)


def test_a_run_of_another_user_says_who_can_steer_it(serve):
    with serve() as served:
        (served.folder / "control.token").unlink()
        with find_run("tiny", served.folder.parent) as client:
            assert client.status().run == "tiny"
            with pytest.raises(ControlError, match="only the user who started the run can steer it"):
                client.resume()
    assert not served.run.notes


# --- asking


def test_every_call_reaches_the_run(served):
    info = CheckpointInfo(step=9, url="memory://nine", age_s=0.0)
    served.run.future.set_result(info)
    with find_run("tiny", served.folder.parent) as client:
        assert client.scale(ScaleRequest(rollout_workers=5)).pools["rollout"].target == 5
        assert client.checkpoint(10) == info
        assert client.stop(StopRequest(reason="enough")).stopping == "enough"
    assert {"checkpoint", ("scale", 5, None), ("stop", "enough")} <= set(served.run.calls)


def test_a_refusal_is_told_in_the_words_of_the_run(served):
    with (
        find_run("tiny", served.folder.parent) as client,
        pytest.raises(
            ControlError, match=r"^rollout_workers=1 is less than rollout\.min_workers=2; ask for 2 or more$"
        ),
    ):
        client.scale(ScaleRequest(rollout_workers=1))


def test_a_token_of_an_earlier_start_is_refused(served):
    client = RunClient(served.folder, os.getpid(), served.url, "stale")
    with client, pytest.raises(ControlError, match="does not hold this run's token"):
        client.status()


def test_a_proxy_never_sees_the_token(served, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with find_run("tiny", served.folder.parent) as client:
        assert client.status().run == "tiny"


def test_a_run_that_hangs_is_named_and_not_waited_for(serve, plain_run, monkeypatch):
    monkeypatch.setattr(control_client, "ANSWER_TIMEOUT_S", 0.2)
    run = plain_run(asleep=threading.Event())
    with serve(run) as served:
        with (
            find_run("tiny", served.folder.parent) as client,
            pytest.raises(ControlError, match=rf"process {os.getpid()}\) has not answered /v1/run within 0.2 s"),
        ):
            client.status()
        run.asleep.set()


def test_a_run_that_goes_between_two_calls_is_told(living):
    process, folder = living
    (folder / "control.token").write_text("token\n", encoding="ascii")
    with find_run("other", folder.parent) as client:
        with pytest.raises(ControlError, match=rf"other \(process {process.pid}\) cannot be reached"):
            client.status()
        process.kill()
        process.wait(60)
        with pytest.raises(ControlError, match="was killed"):
            client.status()


def test_an_answer_that_is_none_of_ours_is_shown(served, monkeypatch):
    answers = iter([httpx2.Response(503, text="Service Unavailable"), httpx2.Response(200, text="{}")])
    monkeypatch.setattr(httpx2.Client, "request", lambda *a, **k: next(answers))
    with find_run("tiny", served.folder.parent) as client:
        with pytest.raises(ControlError, match="refused with HTTP 503: Service Unavailable"):
            client.status()
        with pytest.raises(ControlError, match="something that this version does not understand"):
            client.status()


# --- waiting


def test_waiting_for_a_size_ends_when_all_are_active(served):
    shown = []

    def show(status):
        shown.append((status.pools["rollout"].active, status.pools["rollout"].target))
        served.run.active += 1

    served.run.active = 1
    with find_run("tiny", served.folder.parent) as client:
        client.scale(ScaleRequest(rollout_workers=4))
        await_size(client, {"rollout": 4, "reward": 1}, 60, show)
    assert shown == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_size_that_is_not_reached_says_who_is_missing_and_why(served):
    served.run.active = 1
    with (
        find_run("tiny", served.folder.parent) as client,
        pytest.raises(
            ControlError, match=r"(?s)not there within 0 s.*rollout workers: 1 of 2 active; worker-1 syncing \(died"
        ),
    ):
        await_size(client, {"rollout": 2}, 0, lambda status: None)


def test_a_size_that_somebody_else_changes_is_not_waited_for(served):
    with (
        find_run("tiny", served.folder.parent) as client,
        pytest.raises(ControlError, match="the target of rollout workers is 2, not 4: somebody else has changed it"),
    ):
        await_size(client, {"rollout": 4}, 60, lambda status: None)


def test_a_run_that_ends_reaches_no_size(served):
    served.run.stopped = "Ctrl-C"
    with (
        find_run("tiny", served.folder.parent) as client,
        pytest.raises(ControlError, match="tiny is ending: Ctrl-C"),
    ):
        await_size(client, {"rollout": 4}, 60, lambda status: None)


def test_the_end_is_waited_for_and_told(living):
    process, folder = living
    client = RunClient(folder, process.pid, "http://127.0.0.1:9", "token")
    ended = []
    with client:
        waiting = threading.Thread(target=lambda: ended.append(await_end(client, 60, lambda status: None)))
        waiting.start()
        process.stdin.close()
        waiting.join(60)
    assert (ended[0].reason, ended[0].exit_code) == ("finished", 0)
    assert client.is_over()


def test_an_end_without_a_word_is_told(living):
    process, folder = living
    with RunClient(folder, process.pid, "http://127.0.0.1:9", "token") as client:
        process.send_signal(signal.SIGKILL)
        assert await_end(client, 60, lambda status: None) is None


def test_an_end_that_does_not_come_says_what_can_be_done(living):
    process, folder = living
    with (
        RunClient(folder, process.pid, "http://127.0.0.1:9", "token") as client,
        pytest.raises(ControlError, match=rf"`kill -9 {process.pid}` ends it at once"),
    ):
        await_end(client, 0, lambda status: None)
