"""A run that is launched as a Ray job is followed, asked, stopped and gone on with; an open cluster is refused."""

import json
import signal

import pytest

from deploy.run_folder.address import read_address

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LONG = ("ppo.updates=100000", "ppo.checkpoint_every=0")


def steps(folder):
    """Updates that are on record."""
    path = folder / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def newest_checkpoint(folder):
    names = (path.name.removeprefix("step_") for path in (folder / "checkpoints").glob("step_*"))
    return max((int(name) for name in names if name.isdecimal()), default=0)


def test_who_shows_no_token_or_a_wrong_one_is_told_within_seconds(head):
    if head.mode == "disabled":
        pytest.skip("asks for none")
    status = ("status", "tiny", "--address", head.address)
    assert "does not accept the token" in head.say(*status, code=1, RAY_AUTH_TOKEN="0" * 64)
    assert "RAY_AUTH_TOKEN is not set, and" in head.say(*status, code=1, RAY_AUTH_TOKEN=None)
    assert "RAY_AUTH_MODE is disabled: set RAY_AUTH_MODE=token" in head.say(*status, code=1, RAY_AUTH_MODE="disabled")
    assert "has no job tiny" in head.say(*status, code=1, RAY_AUTH_MODE=None), "token is the default"


def test_an_open_cluster_beyond_loopback_is_refused_by_whatever_way_one_comes(head, tmp_path):
    if head.mode == "token":
        pytest.skip("is closed")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    attach = ("preflight", "tiny", "--address", head.gcs, "--runs", str(tmp_path))
    for words, changes in (
        (("launch", "tiny", "--address", head.address, "--runs", str(tmp_path)), {}),
        (("stop", "tiny", "--address", head.address), token),
        (attach, {}),
        (attach, token),
        (("run", "tiny", "--address", head.gcs, "--runs", str(tmp_path / "runs")), {}),
    ):
        said = head.say(*words, code=1, **changes)
        assert "asks for no token, and 10.77.0.1 is not loopback" in said
        assert "ray get-auth-token --generate" in said
    by_loopback = head.gcs.replace("10.77.0.1", "127.0.0.1")
    said = head.say("preflight", "tiny", "--address", by_loopback, "--runs", str(tmp_path), code=1)
    assert "asks for no token, and 10.77.0.1 is not loopback" in said, "its nodes listen on more than that"
    assert "tiny can start" in head.say(*attach, "--insecure", **token)


def test_an_address_that_is_no_dashboard_is_told(head):
    for address, reason in ((f"http://{head.gcs}", "not the GCS's"), ("http://10.77.0.1:1", "Connection refused")):
        assert reason in head.say("logs", "tiny", "--address", address, code=1)


def test_a_job_whose_driver_is_killed_is_launched_again_and_leaves_the_same_bytes(
    head, runs, poll, undisturbed, Outcome
):
    """Followed the first time until it fails, the second time until it is done."""
    if head.mode == "disabled":
        pytest.skip("is the same in both modes, and takes long")
    settings = ("ppo.updates=40", "ppo.checkpoint_every=2")
    words = head.launching(runs, *settings)
    folder = runs / "tiny"
    followed = head.begin(*words)
    poll(lambda: newest_checkpoint(folder) >= 4 or followed.process.poll() is not None, what="a checkpoint")
    assert followed.process.poll() is None, followed.text()
    left = (head.folder / "drivers" / "tiny").read_text()
    assert int(left) == read_address(folder).pid, "by which deploy/kubernetes/shared/stop-job finds the driver"
    head.inside("kill", "-KILL", str(read_address(folder).pid))
    assert "tiny FAILED (exit code 1): its driver was ended by signal 9" in followed.end(1)

    said = head.say(*words)
    assert "tiny ended FAILED before; it goes on from its run folder" in said
    assert said.count("Running entrypoint for job tiny") == 1, "the log of the first attempt is not shown again"
    assert "tiny SUCCEEDED (exit code 0)" in said
    outcome = Outcome(folder, None, None, said)
    outcome.assert_whole(40)
    outcome.assert_same_bytes(undisturbed(*settings), 40)
    assert len({line["identity"].split(".")[0] for line in outcome.lines()}) == 2, "it goes on as a new lineage"
    shown = head.job("status")
    assert "SUCCEEDED" in shown
    assert str(runs) in shown
    assert "Report" in head.job("logs")


def test_a_job_that_is_stopped_leaves_a_checkpoint_of_its_last_update(head, runs, poll):
    if head.mode == "disabled":
        pytest.skip("is the same in both modes, and takes long")
    folder = runs / "tiny"
    said = head.say(*head.launching(runs, *LONG), "--detach")
    assert f"minichatgpt stop tiny --address {head.address}" in said
    assert "is there and" in head.say(*head.launching(runs), code=1)
    followed, watched = (
        head.begin("logs", "tiny", "--address", head.address, *head.accepts, "--follow") for _ in range(2)
    )
    poll(lambda: steps(folder) >= 3, what="updates")
    shown = head.job("status")
    assert "RUNNING" in shown
    assert f"{read_address(folder).control_url} (as its node sees it)" in shown
    details = json.loads(head.job("status", "--json"))
    assert details["submission_id"] == "tiny"
    poll(lambda: "page, control and metrics at" in watched.text(), what="the log")
    watched.process.send_signal(signal.SIGINT)
    assert "tiny goes on; this only ends the showing of its log" in watched.end(130)
    assert "tiny has ended: STOPPED" in head.job("stop")
    assert "SIGTERM: stopped after update" in followed.end(3)
    assert newest_checkpoint(folder) == steps(folder) >= 3
    assert json.loads((folder / "ended.json").read_text())["exit_code"] == 143
    assert "does not run: it ended STOPPED" in head.job("stop", code=1)


def test_a_wheel_is_what_driver_and_actors_run_though_the_nodes_have_an_installation(head, runs, wheel):
    if head.mode == "token":
        pytest.skip("is the same in both modes, and takes long")
    said = head.say(*head.launching(runs, "ppo.updates=1"), "--wheel", str(wheel))
    assert "deploy/run.py of the wheel" in said
    assert "tiny SUCCEEDED (exit code 0)" in said
    workers = (head.folder / "r" / "session_latest" / "logs").glob("worker-*.out")
    assert any("actors/ray_actor.py of the wheel" in path.read_text() for path in workers)
