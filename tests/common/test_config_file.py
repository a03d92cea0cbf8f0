"""TOML in, `--set` on top, and TOML out that reads back to the same."""

import math
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from common.config import LanguageModelTraining, RunConfig
from common.config_file import load_config, parse_config, to_toml
from common.errors import ConfigError
from common.optimizer_config import AdamW

CONFIGS = Path(__file__).parents[2] / "deploy" / "configs"
TINY = CONFIGS / "tiny.toml"
MINIMAL = RunConfig(name="minimal", model={"type": "pretrained", "path": "gpt2"})
X = {"x": {"type": "inline", "texts": ["x"]}}
PACKAGED = sorted(CONFIGS.glob("*.toml"))


def reread(config: RunConfig, folder: Path) -> RunConfig:
    path = folder / "resolved.toml"
    path.write_text(to_toml(config), encoding="utf-8", newline="")
    return load_config(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("configs")


# --- reading


def test_tiny_comes_along():
    assert TINY in PACKAGED


@pytest.mark.parametrize("path", PACKAGED, ids=lambda p: p.stem)
def test_packaged_configurations_are_valid_and_named_like_their_file(path):
    assert load_config(path).name == path.stem


def test_a_missing_file_is_named_with_its_neighbours(tmp_path):
    (tmp_path / "near.toml").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"nope\.toml does not exist; its folder has near\.toml"):
        load_config(tmp_path / "nope.toml")
    with pytest.raises(ConfigError, match=r"nope\.toml does not exist$"):
        load_config(tmp_path / "deeper" / "nope.toml")


def test_a_folder_is_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        load_config(tmp_path)


@pytest.mark.parametrize("content", [b"name = ", b"name = 'x'\nname = 'y'", b"name = '\xff'"])
def test_what_is_no_toml_is_said_with_the_file(tmp_path, content):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml is no TOML: "):
        load_config(path)


def test_an_error_names_the_file(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("name = 'mine'\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.toml cannot be run:\n  model: Field required"):
        load_config(path)


def test_a_document_may_come_from_elsewhere():
    with pytest.raises(ConfigError, match=r"the request cannot be run:\n"):
        parse_config({"name": "x"}, where="the request")


# --- --set


@pytest.mark.parametrize(
    ("change", "get", "value"),
    [
        ("seed=3", lambda c: c.seed, 3),
        (" seed = 3 ", lambda c: c.seed, 3),
        ("seed=1_000", lambda c: c.seed, 1000),
        ("ppo.clip_eps=0.1", lambda c: c.ppo.clip_eps, 0.1),
        ("ppo.clip_eps=1e-1", lambda c: c.ppo.clip_eps, 0.1),
        ("ppo.max_grad_norm=inf", lambda c: c.ppo.max_grad_norm, math.inf),
        ("control.enabled=false", lambda c: c.control.enabled, False),
        ("name=other", lambda c: c.name, "other"),
        ("name='other'", lambda c: c.name, "other"),
        ('name="other"', lambda c: c.name, "other"),
        ("ppo.optimizer.betas=[0.5, 0.6]", lambda c: c.ppo.optimizer.betas, (0.5, 0.6)),
        ("ppo.prompt_tokens={min=2, max=5}", lambda c: c.ppo.prompt_tokens.max, 5),
        ("ppo.prompt_tokens.max=5", lambda c: (c.ppo.prompt_tokens.min, c.ppo.prompt_tokens.max), (1, 5)),
        ("ppo.kl={type='adaptive', target=4}", lambda c: (c.ppo.kl.type, c.ppo.kl.coef), ("adaptive", 0.2)),
        ("learner.device=cpu", lambda c: c.learner.device, "cpu"),
        ("model.tie_embeddings=false", lambda c: c.model.tie_embeddings, False),
    ],
)
def test_a_setting_can_be_changed_from_the_command_line(change, get, value):
    assert get(load_config(TINY)) != value
    assert get(load_config(TINY, [change])) == value


def test_a_change_may_open_a_new_table():
    config = load_config(TINY, ["data.more.type=inline", "data.more.texts=['a b', 'a=b']"])
    assert config.data["more"].texts == ["a b", "a=b"]


def test_later_changes_win():
    assert load_config(TINY, ["seed=3", "seed=4"]).seed == 4


def test_a_change_leaves_everything_else():
    before, after = load_config(TINY).model_dump(), load_config(TINY, ["ppo.clip_eps=0.1"]).model_dump()
    assert before["ppo"].pop("clip_eps") != after["ppo"].pop("clip_eps")
    assert before == after


@pytest.mark.parametrize("change", ["ppo.clip_eps", "=3", "", "  = 3"])
def test_a_change_has_a_key_and_a_value(change):
    with pytest.raises(ConfigError, match=r"is not of the form a\.b=value, as in --set ppo\.clip_eps=0\.1"):
        load_config(TINY, [change])


def test_a_value_has_no_settings_inside():
    with pytest.raises(ConfigError, match=r"--set 'seed\.x=3': seed is a value, not a table"):
        load_config(TINY, ["seed.x=3"])


def test_a_word_where_a_number_belongs_is_shown():
    with pytest.raises(ConfigError, match=r"ppo\.updates: .*integer.*\(got 'many'\)"):
        load_config(TINY, ["ppo.updates=many"])


def test_a_value_cannot_smuggle_in_another_setting():
    with pytest.raises(ConfigError, match="seed"):
        load_config(TINY, ["seed=3\nname='other'"])


# --- writing


@pytest.mark.parametrize("path", PACKAGED, ids=lambda p: p.stem)
def test_what_is_written_reads_back_to_the_same(path, folder):
    config = load_config(path)
    assert reread(config, folder) == config


def test_every_default_is_written(folder):
    text = to_toml(load_config(TINY))
    for setting in ("clip_eps = 0.2", "[control]", 'host = "127.0.0.1"', "request_timeout_s = 600.0"):
        assert setting in text.splitlines()


def test_what_is_written_is_stable():
    config = load_config(TINY)
    assert to_toml(config) == to_toml(RunConfig.model_validate(config.model_dump()))


def test_infinity_survives(folder):
    config = load_config(TINY, ["ppo.max_grad_norm=inf", "ppo.value_clip_eps=inf"])
    assert reread(config, folder).ppo.max_grad_norm == math.inf


@example(texts=['\x7f\x00\r\n\t"\\'], source="a.b", column="", legal="\x85")
@given(
    texts=st.lists(st.text(), min_size=1, max_size=4),
    source=st.text(min_size=1),
    column=st.text(),
    legal=st.text() | st.integers(-(2**53), 2**53),
)
def test_any_string_survives(texts, source, column, legal, folder):
    document = MINIMAL.model_dump()
    document["data"][source] = {"type": "inline", "texts": texts}
    document["data"]["a file"] = {"type": "files", "paths": texts, "where": {column: legal}}
    config = RunConfig.model_validate(document)
    again = reread(config, folder)
    assert again == config
    assert list(again.data) == list(config.data)


@given(lr=st.floats(min_value=0, exclude_min=True, allow_infinity=False), eps=st.floats(1e-300, 1e300))
def test_any_number_survives_to_the_last_bit(lr, eps, folder):
    optimizer = AdamW(lr=lr, eps=eps)
    sft = LanguageModelTraining(data=["x"], optimizer=optimizer)
    config = RunConfig.model_validate({**MINIMAL.model_dump(), "data": X, "sft": sft})
    assert reread(config, folder).sft.optimizer == optimizer
