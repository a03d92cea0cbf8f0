"""run.json and ended.json: how others find a live run, and how the last one ended."""

import json
import os
import socket

import pytest

from common.errors import DataError, NonFiniteError, RunStopped
from deploy.run_folder.address import RecordEnd, announce, find_folder, read_address, read_end


def test_a_run_is_announced_while_it_lasts(tmp_path):
    with announce(tmp_path):
        address = read_address(tmp_path)
        assert (address.pid, address.host) == (os.getpid(), socket.gethostname())
        assert address.control_url is None
        assert address.started_at.utcoffset().total_seconds() == 0
    assert read_address(tmp_path) is None
    assert not list(tmp_path.iterdir())


def test_an_address_within_another_is_added_and_taken_away(tmp_path):
    with announce(tmp_path):
        alone = read_address(tmp_path)
        with announce(tmp_path, control_url="http://c"):
            both = read_address(tmp_path)
            assert both.control_url == "http://c"
            assert (both.pid, both.started_at) == (alone.pid, alone.started_at)
        assert read_address(tmp_path) == alone


def test_an_address_of_a_run_that_was_killed_is_not_added_to(tmp_path):
    with announce(tmp_path, control_url="http://stale"):
        stale = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    (tmp_path / "run.json").write_text(json.dumps(stale | {"pid": os.getpid() + 1}), encoding="utf-8")
    with announce(tmp_path):
        assert read_address(tmp_path).control_url is None
        assert read_address(tmp_path).pid == os.getpid()
    assert read_address(tmp_path) is None


def test_an_address_goes_when_the_run_fails(tmp_path):
    with pytest.raises(KeyError), announce(tmp_path):
        raise KeyError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"pid": "x", "host": "h", "started_at": "now"}'])
def test_a_damaged_address_is_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"run\.json is no address of a run; delete it if the run is over"):
        read_address(tmp_path)


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (None, "finished", 0),
        (RunStopped("stopped", reason="Ctrl-C", exit_code=130), "Ctrl-C", 130),
        (KeyboardInterrupt(), "interrupted", 130),
        (SystemExit(15), "exit", 15),
        (SystemExit("a message"), "internal error: SystemExit", 1),
        (NonFiniteError("3 in a row"), "NonFiniteError: 3 in a row", 1),
        (TypeError("secret"), "internal error: TypeError", 1),
    ],
)
def test_how_a_run_ended_is_written_down(tmp_path, error, reason, code):
    def end():
        with RecordEnd(tmp_path):
            assert read_end(tmp_path) is None
            if error is not None:
                raise error

    for _ in range(2):  # the second must not find the first's
        if error is None:
            end()
        else:
            with pytest.raises(type(error)):
                end()
        assert (read_end(tmp_path).reason, read_end(tmp_path).exit_code) == (reason, code)


def test_a_damaged_end_is_no_end(tmp_path):
    assert read_end(tmp_path) is None
    (tmp_path / "ended.json").write_text("{", encoding="utf-8")
    assert read_end(tmp_path) is None


def test_a_folder_is_found_by_name_or_as_it_is(tmp_path):
    for name in ("one", "two", ".cache"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    runs = tmp_path / "runs"
    assert find_folder("one", runs) == find_folder(str(runs / "one"), runs) == runs / "one"
    with pytest.raises(DataError, match=r"does not exist; runs in .*: one, two$"):
        find_folder("three", runs)
