"""The driver's files go to the URL and come back; one driver at a time; an outage of the store loses nothing."""

import time

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub import constants

from common.errors import CheckpointError, ConfigError, RunInUseError
from common.run_place import share, workplace
from common.storage import Folder
from deploy.ppo.resume import rewind
from deploy.run_folder import mirror as mirror_module
from deploy.run_folder.lease import LEASE, new_lease, read_lease, renew, take_lease
from deploy.run_folder.mirror import Mirror, is_ours, plan
from deploy.stop_signal import StopSignal

URL = "memory://runs/tiny"
DEADLINE_S = 60.0

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Go on as another machine, which has nothing yet."""

    def become(name):
        monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / name))
        folder = workplace(URL)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    return become


@pytest.fixture
def outage(monkeypatch):
    """The store takes nothing until this is called."""
    monkeypatch.setattr(mirror_module, "LAST_ATTEMPTS", 1)

    class Outage:
        def __init__(self):
            self.write = MemoryFileSystem.pipe_file

        def begin(self):
            def refuse(*arguments, **options):
                raise OSError("the store is away")

            monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)

        def end(self):
            monkeypatch.setattr(MemoryFileSystem, "pipe_file", self.write)

    return Outage()


def mirrored(folder, *, notes=None, stop=None):
    return Mirror(folder, stop=stop or StopSignal(), note=(notes if notes is not None else []).append, wait_s=0.2)


def at_url():
    folder = Folder.at(URL)
    return {name: folder.read(name).decode() for name in folder.all_names() if name != LEASE}


def test_a_plan_sends_what_changed_and_removes_what_is_gone():
    here = {"new": (1, 1), "same": (2, 2), "changed": (3, 4), "unknown": (5, 5)}
    there = {"same": (2, 2), "changed": (3, 3), "unknown": None, "gone": (6, 6)}
    assert plan(here, there) == (["gone"], ["changed", "new", "unknown"])
    assert plan(here, here) == ([], [])


def test_what_says_that_something_is_done_comes_last():
    here = dict.fromkeys(("ended.json", "stages/ppo.json", "events.jsonl", "samples.jsonl"), (1, 1))
    assert plan(here, {})[1] == ["events.jsonl", "samples.jsonl", "stages/ppo.json", "ended.json"]


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "stages/ppo.json", "run.json", "tensorboard/events.1", "report.html"]
)
def test_small_files_are_the_drivers(name):
    assert is_ours(name)


@pytest.mark.parametrize(
    "name",
    ["control.token", "read.token", ".lock", "lease.json", "workplace.json", "stages/ppo.partial", "models/sft/x",
     "trajectories/update_000001.safetensors", "checkpoints/step_000001/state.json", ".files/models/sft.json"],
)  # fmt: skip
def test_secrets_and_what_others_send_stay(name):
    assert not is_ours(name)


def test_a_run_goes_on_on_another_machine_with_all_its_files(machine):
    folder = machine("first")
    with mirrored(folder):
        (folder / "stages").mkdir()
        (folder / "stages" / "sft.json").write_text("{}", encoding="utf-8")
        (folder / "control.token").write_text("secret", encoding="utf-8")
        (folder / "models" / "sft").mkdir(parents=True)
        (folder / "models" / "sft" / "config.json").write_text("{}", encoding="utf-8")
        share(folder / "models" / "sft")
    assert "secret" not in at_url().values()
    folder = machine("second")
    (folder / "stale.json").write_text("of another life", encoding="utf-8")
    with mirrored(folder):
        found = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        assert found == {"stages/sft.json", "models/sft/config.json", "workplace.json"}
        (folder / "stages" / "sft.json").unlink()
    assert "stages/sft.json" not in at_url()


def test_a_line_that_is_being_written_is_not_sent(machine):
    folder = machine("first")
    with mirrored(folder) as mirror:
        (folder / "metrics.jsonl").write_text('{"step": 1}\n{"st', encoding="utf-8")
        mirror.flush()
        assert at_url()["metrics.jsonl"] == '{"step": 1}\n'


def test_trajectories_after_a_checkpoint_go_at_the_url_too(machine):
    folder = machine("first")
    for step in (1, 2, 3):
        Folder.at(f"{URL}/trajectories").write(f"update_{step:06d}.safetensors", b"of an attempt that was cut off")
    rewind(folder, 1)
    assert list(at_url()) == ["trajectories/update_000001.safetensors"]


def test_a_folder_on_a_disk_is_left_alone(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    with mirrored(tmp_path) as mirror:
        mirror.flush()
        assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_what_an_outage_kept_back_is_named_and_sent_by_the_next_run(machine, outage, store):
    folder = machine("first")

    def run():
        with mirrored(folder):
            outage.begin()
            (folder / "metrics.jsonl").write_text("{}\n", encoding="utf-8")

    with pytest.raises(CheckpointError, match=r"1 files are not at memory://runs/tiny yet \(metrics.jsonl\)"):
        run()
    assert "/runs/tiny/metrics.jsonl" not in store
    outage.end()
    with mirrored(folder) as mirror:
        mirror.flush()
        assert at_url()["metrics.jsonl"] == "{}\n"


def test_an_outage_is_told_once_and_overcome_while_the_run_lasts(machine, outage, monkeypatch):
    monkeypatch.setattr(mirror_module, "EVERY_S", 0.01)
    folder, notes = machine("first"), []

    def until(what):
        end = time.monotonic() + DEADLINE_S
        while not what():
            assert time.monotonic() < end, notes
            time.sleep(0.01)

    with mirrored(folder, notes=notes):
        outage.begin()
        (folder / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
        until(lambda: any("the store is away" in note for note in notes))
        outage.end()
        until(lambda: any("takes files again" in note for note in notes))
        assert at_url()["metrics.jsonl"] == "{}\n"
    assert len(notes) == 2


def test_a_stage_that_ends_in_an_outage_goes_on_and_a_checkpoint_does_not(machine, outage):
    folder, notes = machine("first"), []
    with mirrored(folder, notes=notes) as mirror:
        outage.begin()
        (folder / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
        mirror.stage_ended()
        with pytest.raises(CheckpointError, match="the store is away"):
            mirror.flush()
        outage.end()
    assert "the store is away" in notes[0]


def test_a_store_that_cannot_be_used_is_an_error_before_anything_starts(machine, outage):
    outage.begin()
    with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID"):
        mirrored(machine("first")).__enter__()


def test_a_lease_that_is_renewed_is_respected_and_its_holder_named(machine):
    machine("first")
    folder, theirs = Folder.at(URL), new_lease("theirs").model_copy(update={"host": "elsewhere", "pid": 7})
    take_lease(folder, theirs, known=None, wait_s=0.1, say=print)
    with pytest.raises(RunInUseError, match=r"process 7 on elsewhere, last heard of \d s ago"):
        take_lease(folder, new_lease("mine"), known=None, wait_s=5.0, say=lambda text: renew(folder, theirs))


def test_a_lease_that_is_not_renewed_is_taken_over_and_its_holder_finds_out(machine):
    machine("first")
    folder, theirs = Folder.at(URL), new_lease("theirs").model_copy(update={"host": "elsewhere"})
    take_lease(folder, theirs, known=None, wait_s=0.1, say=print)
    said = []
    assert take_lease(folder, new_lease("mine"), known=None, wait_s=0.1, say=said.append) == "theirs"
    assert "waiting up to" in said[0]
    with pytest.raises(RunInUseError):
        renew(folder, theirs)


@pytest.mark.parametrize("change", [{"is_over": True}, {"session": "known"}, {"pid": 2**22 + 1}])
def test_a_lease_whose_holder_has_ended_is_taken_at_once(machine, change):
    machine("first")
    folder, theirs = Folder.at(URL), new_lease("theirs")
    folder.write(LEASE, theirs.model_copy(update=change).model_dump_json().encode())
    said = []
    take_lease(folder, new_lease("mine"), known="known", wait_s=DEADLINE_S, say=said.append)
    assert not said
    assert read_lease(folder).session == "mine"


def test_a_run_that_another_driver_took_over_is_asked_to_stop_and_sends_no_more(machine, monkeypatch):
    monkeypatch.setattr(mirror_module, "EVERY_S", 0.01)
    monkeypatch.setattr(mirror_module, "RENEW_S", 0.0)
    folder, stop = machine("first"), StopSignal()

    def run():
        with mirrored(folder, stop=stop):
            Folder.at(URL).write(LEASE, new_lease("other").model_dump_json().encode())
            end = time.monotonic() + DEADLINE_S
            while not stop.requested:
                assert time.monotonic() < end
                time.sleep(0.01)
            (folder / "metrics.jsonl").write_text("{}\n", encoding="utf-8")

    with pytest.raises(CheckpointError, match="another driver's now"):
        run()
    assert "took the run over" in stop.reason
    assert "metrics.jsonl" not in at_url()
