"""A stage's fingerprint: the same for the same result, another for another one, and blind to where it ran."""

import shutil
from pathlib import Path

import pytest

from deploy.fingerprint import data_hash, fingerprint, folder_hash
from deploy.stage_names import STAGES

INPUTS = {"policy": "11", "reward_model": "22"}


@pytest.fixture
def marks(tiny):
    def compute(*changes: str) -> dict[str, str]:
        config = tiny(*changes)
        return {stage: fingerprint(config, stage, INPUTS) for stage in STAGES}

    return compute


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {stage for stage in STAGES if before[stage] != after[stage]}


def test_the_same_inputs_give_the_same_mark(marks):
    assert marks() == marks()


def test_every_stage_has_its_own_mark(marks):
    assert len(set(marks().values())) == len(STAGES)


@pytest.mark.parametrize("change", ["seed=8", "heldout_fraction=0.3", "learner.dtype=bfloat16", "learner.threads=2"])
def test_what_all_stages_depend_on_changes_all(marks, change):
    assert changed(marks(), marks(change)) == set(STAGES)


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ("pretrain.epochs=31", {"pretrain"}),
        ("model.hidden_size=64", {"pretrain"}),
        ("sft.epochs=3", {"sft"}),
        ("sft.optimizer.lr=2e-3", {"sft"}),
        ("reward_model.training.epochs=11", {"reward_model"}),
        ("reward_model.classifier.pair_buckets=512", {"reward_model"}),
        ("judge.training.epochs=31", {"judge"}),
        ("ppo.clip_eps=0.1", {"ppo", "evaluate"}),
        ("ppo.kl={type='fixed', coef=0.2}", {"ppo", "evaluate"}),
        ("ppo.temperature=0.9", {"ppo", "evaluate"}),
        ("rollout.chunk_sequences=16", {"ppo", "evaluate"}),
        ("rollout.threads=2", {"ppo", "evaluate"}),
        ("reward_service.batch_sequences=32", {"ppo", "evaluate"}),
        ("reward_service.scorers=[{type='model', weight=2}]", {"ppo", "evaluate"}),
        ("reward_service.scorers=[{type='model'}, {type='function', callable='a:b'}]", {"ppo", "evaluate"}),
        ("evaluate.prompts=8", {"evaluate"}),
    ],
)
def test_a_setting_changes_its_own_stages_and_no_other(marks, change, stages):
    assert changed(marks(), marks(change)) == stages


@pytest.mark.parametrize(
    "change",
    [
        "rollout.workers=4",
        "rollout.num_cpus=1.5",
        "rollout.start_timeout_s=5",
        "reward_service.replicas=3",
        "reward_service.request_timeout_s=500",
        "learner.num_cpus=1.5",
        "learner.update_timeout_s=5",
        "learner.stage_timeout_s=5",
        "name=other",
        "control.enabled=false",
        "control.port=9000",
    ],
)
def test_where_and_how_long_changes_nothing(marks, change):
    assert not changed(marks(), marks(change))


def test_threads_that_follow_num_cpus_count_as_the_number_that_they_are(marks):
    assert changed(marks(), marks("rollout.num_cpus=4")) == {"ppo", "evaluate"}
    assert marks("rollout.num_cpus=4") == marks("rollout.threads=4") == marks("rollout.threads=4", "rollout.num_cpus=9")
    assert not changed(marks(), marks("rollout.num_cpus=4", "rollout.threads=1"))


@pytest.mark.parametrize(
    "change",
    [
        "rollout.label_selector={zone='a'}",
        "rollout.strategy=spread",
        "reward_service.strategy=spread",
        "learner.label_selector={zone='!a'}",
        "cluster.autoscaling=true",
    ],
)
def test_on_which_nodes_changes_nothing(marks, change):
    assert not changed(marks(), marks(change))


@pytest.mark.parametrize("stage", STAGES)
def test_another_model_to_start_from_changes_the_mark(tiny, stage):
    config = tiny()
    other = {**INPUTS, "policy": "12"}
    assert fingerprint(config, stage, INPUTS) != fingerprint(config, stage, other)
    assert fingerprint(config, stage, INPUTS) == fingerprint(config, stage, dict(reversed(INPUTS.items())))


@pytest.fixture
def files(tiny, tmp_path):
    """The tiny configuration, its reward model trained on a file that tests may change."""
    path = tmp_path / "labels.csv"
    path.write_text("text,label\ngood film,1\nbad film,0\n", encoding="utf-8")
    source = f"data.file={{type='files', paths=['{path}'], label_column='label'}}"
    return path, lambda *more: tiny(source, "reward_model.training.data=['file']", *more)


def test_the_content_of_data_files_counts(files):
    path, config = files
    before = {stage: fingerprint(config(), stage, INPUTS) for stage in STAGES}
    path.write_text(path.read_text(encoding="utf-8").replace("good film,1", "good film,0"), encoding="utf-8")
    after = {stage: fingerprint(config(), stage, INPUTS) for stage in STAGES}
    assert changed(before, after) == {"reward_model"}


def test_how_data_are_read_counts(files):
    _, config = files
    before = {stage: fingerprint(config(), stage, INPUTS) for stage in STAGES}
    after = {stage: fingerprint(config("data.file.prepare.lowercase=true"), stage, INPUTS) for stage in STAGES}
    assert changed(before, after) == {"reward_model"}


def test_where_a_data_file_lies_does_not_count(files, tmp_path):
    path, config = files
    before = data_hash(config().data["file"])
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.copy(path, tmp_path / "elsewhere" / "other.csv")
    assert data_hash(config(f"data.file.paths=['{moved}']").data["file"]) == before


def test_data_that_a_stage_does_not_use_do_not_count(marks):
    assert not changed(marks(), marks("data.unused={type='inline', texts=['x']}"))


@pytest.fixture
def model(tmp_path) -> Path:
    folder = tmp_path / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "a").write_bytes(b"1")
    (folder / "deep" / "b").write_bytes(b"2")
    return folder


def test_a_model_folder_is_known_by_names_and_contents(model, tmp_path):
    before = folder_hash(model)
    assert folder_hash(Path(shutil.copytree(model, tmp_path / "copy"))) == before
    (model / "deep" / "b").write_bytes(b"3")
    changed_content = folder_hash(model)
    (model / "deep" / "b").write_bytes(b"2")
    assert folder_hash(model) == before != changed_content
    (model / "a").rename(model / "c")
    assert folder_hash(model) != before
