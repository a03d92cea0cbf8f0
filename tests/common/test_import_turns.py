import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from common.import_turns import import_turn

HOLD = """
import sys, time
from pathlib import Path
from common.import_turns import import_turn
with import_turn(Path(sys.argv[1]), cores=1) as ours:
    print(ours, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has the only turn."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "True\n"
            yield process
        finally:
            process.kill()


def test_no_more_have_a_turn_at_a_time_than_there_are_cores(tmp_path: Path) -> None:
    cores, inside = 2, 0
    lock, all_there = threading.Lock(), threading.Barrier(6)

    def importing(_: int) -> tuple[bool, int]:
        nonlocal inside
        all_there.wait()
        with import_turn(tmp_path, cores=cores) as ours:
            with lock:
                inside += 1
                seen = inside
            time.sleep(0.02)
            with lock:
                inside -= 1
        return ours, seen

    with ThreadPoolExecutor(6) as executor:
        found = list(executor.map(importing, range(6), timeout=60))
    assert [ours for ours, _ in found] == [True] * 6
    assert max(seen for _, seen in found) <= cores


def test_nobody_waits_longer_than_is_bearable(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with import_turn(tmp_path, cores=1, patience_s=0.1) as ours:
        assert not ours


def test_a_process_that_is_killed_gives_its_turn_back(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait(timeout=60)
    with import_turn(tmp_path, cores=1) as ours:
        assert ours


def test_an_import_that_fails_gives_its_turn_back(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="no such package"), import_turn(tmp_path, cores=1):
        raise ImportError("no such package")
    with import_turn(tmp_path, cores=1, patience_s=0.0) as ours:
        assert ours


def test_who_finds_no_place_for_locks_imports_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with import_turn(tmp_path / "file", cores=1) as ours:
        assert not ours
    with import_turn(tmp_path / "no" / "such", cores=1) as ours:
        assert not ours


def test_a_place_that_others_could_have_made_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with import_turn(tmp_path / "link", cores=1) as ours:
        assert not ours
    monkeypatch.setattr("common.import_turns.os.getuid", lambda: -1)
    with import_turn(tmp_path / "there", cores=1) as ours:
        assert not ours
    assert not list((tmp_path / "there").iterdir())


def test_as_many_turns_as_the_machine_has_cores_in_a_folder_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.import_turns.tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("common.import_turns.os.cpu_count", lambda: 3)
    with ExitStack() as stack:
        assert [stack.enter_context(import_turn(patience_s=0.0)) for _ in range(4)] == [True, True, True, False]
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
