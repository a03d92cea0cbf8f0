"""Going on with a run: which changes are refused, and what is cut away."""

import json
import math

import pytest

from common.errors import ConfigError, DataError
from deploy.fingerprint import fingerprint
from deploy.ppo.resume import refuse_changes, rewind, run_settings

INPUTS = {"policy": "11", "reward_model": "22"}


@pytest.fixture
def settings_of(tiny):
    def compute(*changes, **inputs):
        """As they are in a checkpoint: through JSON and back."""
        return json.loads(json.dumps(run_settings(tiny(*changes), INPUTS | inputs), allow_nan=False))

    return compute


def differing(before, after):
    return {key for key in before.keys() | after.keys() if before.get(key, ...) != after.get(key, ...)}


# --- which changes are refused


def test_the_same_run_may_go_on(settings_of):
    refuse_changes(settings_of(), settings_of())


def test_settings_have_dotted_names_and_plain_values(settings_of):
    settings = settings_of("ppo.value_clip_eps=inf")
    assert settings["ppo.clip_eps"] == 0.2
    assert settings["ppo.prompt_tokens.max"] == 3
    assert settings["ppo.value_clip_eps"] == "inf"
    assert settings["inputs.policy"] == "11"
    assert not [value for value in settings.values() if isinstance(value, dict) and value]
    assert not [value for value in settings.values() if isinstance(value, float) and not math.isfinite(value)]


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ("seed=8", {"seed"}),
        ("ppo.clip_eps=0.1", {"ppo.clip_eps"}),
        ("ppo.kl={type='fixed', coef=0.2}", {"ppo.kl.coef"}),
        ("ppo.response_tokens.max=9", {"ppo.response_tokens.max"}),
        ("ppo.score_clip=3", {"ppo.score_clip"}),
        ("rollout.chunk_sequences=16", {"rollout.chunk_sequences"}),
        ("rollout.threads=2", {"rollout.threads"}),
        ("reward_service.batch_sequences=32", {"reward_service.batch_sequences"}),
        ("learner.dtype=bfloat16", {"learner.dtype"}),
        ("heldout_fraction=0.3", {"heldout_fraction"}),
        ("ppo.lr_final_fraction=0.5", {"ppo.lr_final_fraction", "ppo.updates"}),
    ],
)
def test_what_changes_results_is_refused_with_both_values(settings_of, change, keys):
    before, after = settings_of(), settings_of(change)
    assert differing(before, after) == keys
    with pytest.raises(ConfigError) as told:
        refuse_changes(before, after)
    message = str(told.value)
    for key in keys:
        old, new = (json.dumps(s[key]).strip('"') if key in s else "not there" for s in (before, after))
        assert f"\n  {key}: {old} in the checkpoint, {new} now\n" in message
    assert "`--again ppo`" in message
    assert "another `name`" in message


def test_another_model_to_start_from_is_refused(settings_of):
    with pytest.raises(ConfigError, match=r"inputs\.policy: 11 in the checkpoint, 12 now"):
        refuse_changes(settings_of(), settings_of(policy="12"))


def test_other_data_are_refused(settings_of):
    other = settings_of("data.reviews.prepare.lowercase=true")
    with pytest.raises(ConfigError, match=r"data\.reviews: [0-9a-f]{32} in the checkpoint, [0-9a-f]{32} now"):
        refuse_changes(settings_of(), other)


@pytest.mark.parametrize(
    "change",
    [
        "name=other",
        "rollout.workers=4",
        "reward_service.replicas=3",
        "learner.save_timeout_s=5",
        "ppo.checkpoint_every=1",
        "ppo.keep_last=7",
        "ppo.checkpoint_url='memory://elsewhere'",
        "control.enabled=false",
        "evaluate.prompts=4",
        "evaluate.every_updates=2",
        "judge.training.epochs=29",
    ],
)
def test_what_changes_no_result_of_ppo_may_change(settings_of, change):
    refuse_changes(settings_of(), settings_of(change))


@pytest.mark.parametrize("updates", [2, 30])
def test_a_run_may_get_longer_or_shorter_where_no_rate_depends_on_it(settings_of, updates):
    refuse_changes(settings_of(), settings_of(f"ppo.updates={updates}"))
    decaying = "ppo.lr_final_fraction=0.1"
    with pytest.raises(ConfigError, match=rf"ppo\.updates: 3 in the checkpoint, {updates} now"):
        refuse_changes(settings_of(decaying), settings_of(decaying, f"ppo.updates={updates}"))


@pytest.mark.parametrize(
    "change", ["seed=8", "ppo.gamma=0.9", "rollout.threads=2", "ppo.data=['reviews', 'reviews']", "name=x"]
)
def test_fingerprint_and_settings_never_disagree(tiny, settings_of, change):
    marks = [fingerprint(config, "ppo", INPUTS) for config in (tiny(), tiny(change))]
    assert (marks[0] != marks[1]) == bool(differing(settings_of(), settings_of(change)))


# --- what is cut away


def row(step, **more):
    return json.dumps({"kind": "best", "step": step, "text": "größer\u2028", **more}, ensure_ascii=False) + "\n"


@pytest.fixture
def folder(tmp_path):
    """A run that went on to update 4, has been evaluated, and was cut off while it wrote."""
    (tmp_path / "metrics.jsonl").write_text("".join(row(step) for step in range(1, 5)) + row(5)[:-9])
    (tmp_path / "evaluations.jsonl").write_text("".join(row(step) for step in (0, 2, 4)))
    heldout = json.dumps({"kind": "heldout", "prompt": "p"}) + "\n"
    (tmp_path / "samples.jsonl").write_text(
        heldout + "".join(row(s, n=n) for s in range(1, 5) for n in (0, 1)) + heldout
    )
    (tmp_path / "trajectories").mkdir()
    for step in range(1, 6):
        (tmp_path / "trajectories" / f"update_{step:06d}.safetensors").write_bytes(b"%d" % step)
    (tmp_path / "trajectories" / "update_000002.partial").write_bytes(b"cut off")
    (tmp_path / "trajectories" / "notes.txt").write_text("mine")
    return tmp_path


@pytest.mark.parametrize("step", [0, 2, 4, 9])
def test_what_came_after_the_checkpoint_goes_and_the_rest_stays_byte_for_byte(folder, step):
    rewind(folder, step)
    kept = range(1, min(step, 4) + 1)
    assert (folder / "metrics.jsonl").read_text() == "".join(row(s) for s in kept)
    assert (folder / "evaluations.jsonl").read_text() == "".join(row(s) for s in (0, 2, 4) if s <= step)
    assert (folder / "samples.jsonl").read_text() == "".join(row(s, n=n) for s in kept for n in (0, 1))
    trajectories = sorted(path.name for path in (folder / "trajectories").iterdir())
    assert trajectories == ["notes.txt", *(f"update_{s:06d}.safetensors" for s in range(1, min(step, 5) + 1))]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    rewind(folder, step)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_a_run_that_wrote_nothing_yet_has_nothing_to_cut(tmp_path):
    rewind(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["{", "[1]", "null", '{"step": null}', "\n"])
def test_a_line_that_makes_no_sense_is_named_and_nothing_is_cut(folder, line):
    text = row(1) + line.strip() + "\n" + row(2)
    (folder / "metrics.jsonl").write_text(text)
    with pytest.raises(DataError, match=r"metrics\.jsonl:2: "):
        rewind(folder, 1)
    assert (folder / "metrics.jsonl").read_text() == text


def test_a_crash_while_cutting_leaves_the_file_as_it_was(folder, monkeypatch):
    def die(descriptor):
        raise KeyboardInterrupt

    before = (folder / "metrics.jsonl").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", die)
        with pytest.raises(KeyboardInterrupt):
            rewind(folder, 1)
    assert (folder / "metrics.jsonl").read_bytes() == before
    rewind(folder, 1)
    assert not list(folder.rglob("metrics.jsonl.partial"))
    assert (folder / "metrics.jsonl").read_text() == row(1)
