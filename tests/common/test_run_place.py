"""A path below the workplaces stands for a URL; a folder comes and goes as a whole; what is damaged is fetched anew."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub import constants

from common.errors import CheckpointError, ConfigError
from common.records import ModelPaths
from common.run_place import (
    PART,
    Outbox,
    copies,
    files_in,
    listed_folders,
    local_copy,
    local_models,
    share,
    shared,
    shared_models,
    workplace,
    workplaces,
)

RUN = "memory://runs/tiny"

pytestmark = pytest.mark.usefixtures("store")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Go on as another machine, which has nothing yet."""

    def become(name):
        monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / name))

    become("first")
    return become


def test_a_name_that_leads_out_of_the_folder_is_not_fetched(machine):
    share(written())
    path = "/runs/tiny/.files/models/sft.json"
    text = MemoryFileSystem.store[path].getvalue().decode()
    MemoryFileSystem.store[path].seek(0)
    MemoryFileSystem.store[path].write(text.replace("config.json", "../../../out.json").encode())
    machine("second")
    with pytest.raises(CheckpointError, match=r"leads out of it; nothing was read"):
        local_copy(f"{RUN}/models/sft")


def written(name="models/sft", text="weights"):
    folder = workplace(RUN) / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "parts").mkdir(exist_ok=True)
    (folder / "parts" / "1.bin").write_text(text, encoding="utf-8")
    return folder


def texts(folder):
    """Without what others are just fetching, which may be gone at any moment."""
    names = [name for name in files_in(Path(folder)) if PART not in name]
    return {name: Path(folder, name).read_text(encoding="utf-8") for name in names}


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("url", ["s3://bucket/runs", "memory://a/b/c", RUN])
def test_a_workplace_stands_for_its_url(url):
    assert shared(workplace(url)) == url
    assert shared(workplace(url) / "models" / "sft") == f"{url}/models/sft"


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("where", ["runs/tiny", "/data/runs", "gpt2", "HuggingFaceTB/SmolLM2-135M@main"])
def test_what_stands_for_no_url_is_left_alone(where):
    assert shared(where) == where
    assert local_copy(where) == where
    assert workplace(where) == Path(where)


def test_a_url_of_this_machine_is_its_path(tmp_path):
    assert workplace(f"file://{tmp_path}") == tmp_path


@pytest.mark.parametrize("url", ["memory://a/../b", "memory://a//b", "memory://a?x=1", "memory://", "memory://u:p@h/b"])
def test_a_url_for_which_no_path_can_stand_is_refused(url):
    with pytest.raises(ConfigError, match="is no place for runs"):
        workplace(url)


def test_a_url_that_nobody_knows_is_refused_with_what_to_install():
    with pytest.raises(ConfigError, match=r"minichatgpt\[s3\]"):
        workplace("nosuchstore://bucket/runs")


def test_a_folder_arrives_on_another_machine_as_it_was_sent(machine):
    sent = texts(share_of(written()))
    machine("second")
    assert texts(local_copy(f"{RUN}/models/sft")) == sent
    assert listed_folders(RUN) == ["models/sft"]


def share_of(folder):
    share(folder)
    return folder


def test_what_was_sent_anew_replaces_what_another_machine_has(machine):
    share(written())
    machine("second")
    local_copy(f"{RUN}/models/sft")
    machine("first")
    folder = written(text="better weights")
    (folder / "config.json").unlink()
    share(folder)
    machine("second")
    assert texts(local_copy(f"{RUN}/models/sft")) == {"parts/1.bin": "better weights"}


def test_a_damaged_file_is_fetched_anew_and_a_whole_one_is_not(machine):
    share(written())
    machine("second")
    folder = Path(local_copy(f"{RUN}/models/sft"))
    before = (folder / "config.json").stat().st_ino
    (folder / "parts" / "1.bin").write_text("damaged", encoding="utf-8")
    local_copy(f"{RUN}/models/sft")
    assert texts(folder)["parts/1.bin"] == "weights"
    assert (folder / "config.json").stat().st_ino == before


def one_at_a_time(function, lock):
    def call(*arguments, **options):
        with lock:
            return function(*arguments, **options)

    return call


def test_many_on_one_machine_may_fetch_at_once(machine, monkeypatch):
    lock = threading.RLock()
    for name in ("get_file", "cat_file"):  # a file in memory has one position for all its readers
        monkeypatch.setattr(MemoryFileSystem, name, one_at_a_time(getattr(MemoryFileSystem, name), lock))
    for number in range(8):
        written(text=f"weights {number}").joinpath(f"{number}.bin").write_text("more", encoding="utf-8")
    sent = texts(share_of(written()))
    machine("second")
    with ThreadPoolExecutor(8) as pool:
        fetched = [pool.submit(local_copy, f"{RUN}/models/sft") for _ in range(64)]
        assert all(texts(future.result()) == sent for future in fetched)
    assert texts(workplace(RUN) / "models" / "sft") == sent


def test_what_is_not_there_as_a_whole_is_an_error(machine, store):
    share(written())
    machine("second")
    store["/runs/tiny/models/sft/parts/1.bin"].write(b"cut")
    with pytest.raises(CheckpointError, match="is damaged"):
        local_copy(f"{RUN}/models/sft")
    with pytest.raises(CheckpointError, match="must run again"):
        local_copy(f"{RUN}/models/ppo")


def test_models_travel_by_url_and_hub_names_as_they_are(machine):
    folder = share_of(written())
    travelling = shared_models(ModelPaths(str(folder), "gpt2"))
    assert travelling == ModelPaths(f"{RUN}/models/sft", "gpt2")
    machine("second")
    here = local_models(travelling)
    assert here == ModelPaths(str(workplaces() / "memory/runs/tiny/models/sft"), "gpt2")
    assert (Path(here.policy) / "config.json").is_file()


def test_a_folder_on_a_disk_has_one_copy_and_one_at_a_url_two(machine, tmp_path):
    machine("first")
    assert [place.url for place in copies(tmp_path)] == [str(tmp_path)]
    assert [place.url for place in copies(workplace(RUN))] == [str(workplace(RUN)), RUN]


@pytest.mark.usefixtures("machine")
def test_an_outbox_keeps_what_the_store_does_not_take(monkeypatch, store):
    folder, outbox = written("trajectories"), Outbox()
    with monkeypatch.context() as outage:

        def refuse(*arguments, **options):
            raise OSError("the store is away")

        outage.setattr(MemoryFileSystem, "put_file", refuse)
        outbox.put(folder / "config.json")
        with pytest.raises(CheckpointError, match="the store is away"):
            outbox.flush()
    outbox.put(folder / "parts" / "1.bin")
    outbox.flush()
    assert {name for name in store if "trajectories" in name} == {
        "/runs/tiny/trajectories/config.json",
        "/runs/tiny/trajectories/parts/1.bin",
    }
