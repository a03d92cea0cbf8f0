"""Which scorers may be named, and what a change of them means for a run."""

from pathlib import Path

import pytest

from common.config import RunConfig
from common.config_base import settings_that_matter
from common.config_file import load_config, to_toml
from common.errors import ConfigError
from common.placement_config import RewardServiceConfig
from common.scorer_config import FunctionScorerConfig, is_loopback

TINY = Path(__file__).parents[2] / "deploy" / "configs" / "tiny.toml"
MODEL = "{type='model'}"
FUNCTION = "{type='function', callable='my_rewards:brevity'}"


def scorers(*tables):
    return f"reward_service.scorers=[{', '.join(tables)}]"


def http(url, more=""):
    return scorers(f"{{type='http', url='{url}'{more}}}")


def error(*changes):
    with pytest.raises(ConfigError) as raised:
        load_config(TINY, changes)
    return str(raised.value)


def test_the_reward_model_is_the_only_scorer_unless_others_are_named():
    (scorer,) = load_config(TINY).reward_service.scorers
    assert (scorer.type, scorer.name, scorer.weight) == ("model", "reward_model", 1.0)
    assert load_config(TINY).reward_service.has_model


def test_a_scorer_is_called_by_its_type_unless_it_has_a_name():
    found = load_config(TINY, [scorers(FUNCTION, "{type='http', url='https://x/y'}")]).reward_service
    assert [s.name for s in found.scorers] == ["function", "http"]
    assert not found.has_model


def test_what_is_written_reads_back_to_the_same(tmp_path):
    change = scorers(MODEL, FUNCTION, "{type='http', url='https://x/y?a=\"b\"', weight=-0.5, token_env='TOKEN'}")
    config = load_config(TINY, [change])
    path = tmp_path / "resolved.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    assert load_config(path) == config


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ((FUNCTION, FUNCTION), "two scorers are called 'function'; give each a name of its own"),
        ((MODEL, MODEL), "two scorers are called 'reward_model'"),
        (("{type='function', callable='a:b', name='judge'}",), "a scorer may not be called 'judge'"),
        (("{type='http', url='https://x', name='prompt'}",), "a scorer may not be called 'prompt'"),
        (("{type='function', callable='a:b', name='my_offsets'}",), "a scorer may not be called 'my_offsets'"),
        (("{type='model', name='mine'}",), "reward_service.scorers.0.model.name: Input should be 'reward_model'"),
        (("{type='function', callable='a:b', name='a/b'}",), "reward_service.scorers.0.function.name"),
        (("{type='model', weight=0}",), "every scorer has weight 0, so nothing is rewarded"),
        (("{type='model', weight=inf}",), "reward_service.scorers.0.model.weight: Input should be a finite number"),
        ((), "reward_service.scorers: List should have at least 1 item"),
        (("{type='modle'}",), "'model', 'function', 'http'"),
        (("{type='function', callable='a:b', timeouts=1}",), "did you mean 'timeout_s'?"),
    ],
)
def test_scorers_that_cannot_be_told_apart_or_used_are_refused(tables, message):
    assert message in error(scorers(*tables))


@pytest.mark.parametrize("path", ["brevity", "a.b.c", "a:", ":b", "a b:c", "a/b.py:c", "a:b()", "a:b:c", "1a:b"])
def test_a_callable_is_an_import_path(path):
    assert f"callable={path!r} must have the form package.module:function" in error(
        scorers(f"{{type='function', callable='{path}'}}")
    )


def test_a_callable_may_be_an_attribute_of_a_class():
    assert load_config(TINY, [scorers("{type='function', callable='a.b_1:C.d'}")])


# --- arguments of a function


def test_arguments_are_read_and_written_with_their_types(tmp_path):
    change = scorers("{type='function', callable='a:b', arguments={n=2, f=2.0, on=true, words=['é'], t={deep=[1]}}}")
    config = load_config(TINY, [change])
    arguments = config.reward_service.scorers[0].arguments
    assert arguments == {"n": 2, "f": 2.0, "on": True, "words": ["é"], "t": {"deep": [1]}}
    assert [type(value) for value in arguments.values()] == [int, float, bool, list, dict]
    (tmp_path / "resolved.toml").write_text(to_toml(config), encoding="utf-8")
    again = load_config(tmp_path / "resolved.toml")
    assert again == config
    assert type(again.reward_service.scorers[0].arguments["f"]) is float


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("prompts=1", "arguments has 'prompts', which cannot be a keyword argument"),
        ("'a-b'=1", "arguments has 'a-b', which cannot be a keyword argument"),
        ("x=inf", "arguments.x=inf holds a number that is not finite"),
        ("x={y=[nan]}", "holds a number that is not finite"),
        ("x=1979-05-27", "reward_service.scorers.0.function.arguments.x"),
    ],
)
def test_arguments_that_cannot_be_handed_on_are_refused(arguments, message):
    assert message in error(scorers(f"{{type='function', callable='a:b', arguments={{{arguments}}}}}"))


def test_nothing_is_no_argument_for_it_cannot_be_written_down():
    with pytest.raises(ValueError, match=r"arguments\.x=None"):
        FunctionScorerConfig(callable="a:b", arguments={"x": None})


# --- where texts and tokens may travel


@pytest.mark.parametrize(
    "url", ["https://rewards.example/score", "http://127.0.0.1:8000/score", "http://localhost/x", "http://[::1]:80/x"]
)
def test_https_may_go_anywhere_and_http_to_loopback(url):
    assert load_config(TINY, [http(url)]).reward_service.scorers[0].url == url


@pytest.mark.parametrize(
    "url",
    [
        "http://rewards.example/score",
        "http://10.0.0.1/score",
        "http://127.0.0.1.rewards.example/",
        "http://localhost.rewards.example/",
        "http://0.0.0.0/",
        "http://[fe80::1]/",
        "HTTP://REWARDS.EXAMPLE/",
    ],
)
def test_http_to_another_machine_is_refused(url):
    message = error(http(url))
    assert "would travel in the clear; use https://, or http:// on 127.0.0.1" in message


@pytest.mark.parametrize(
    "url", ["ftp://x/y", "rewards.example/score", "https://", "https:///x", "https://x y/", "https://x\\\\y", ""]
)
def test_what_is_no_url_is_refused(url):
    assert "must be of the form https://host/path" in error(http(url))


@pytest.mark.parametrize("url", ["https://me:s3cr3t@x/y", "http://127.0.0.1@rewards.example:s3cr3t/"])
def test_a_password_in_a_url_is_refused_and_not_repeated(url):
    message = error(http(url))
    assert "url must hold no user or password; name a token by token_env" in message
    assert "s3cr3t" not in message


@pytest.mark.parametrize("name", ["sk-s3cr3t", "Bearer s3cr3t", "", "1s3cr3t"])
def test_a_token_where_its_variable_belongs_is_refused_and_not_repeated(name):
    message = error(http("https://x/y", f", token_env='{name}'"))
    assert "token_env must be the name of an environment variable" in message
    assert "s3cr3t" not in message


@pytest.mark.parametrize(
    ("host", "is_own"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("::", False), ("example", False)],
)
def test_loopback_is_known_by_address_and_name(host, is_own):
    assert is_loopback(host) == is_own


# --- time


@pytest.mark.parametrize("table", [FUNCTION, "{type='http', url='https://x'}"])
def test_two_tries_fit_into_half_of_the_time_for_a_request(table):
    fits = table.replace("}", ", timeout_s=25}")
    assert load_config(TINY, ["reward_service.request_timeout_s=100", scorers(fits)])
    message = error("reward_service.request_timeout_s=99", scorers(fits))
    assert "has timeout_s=25, and two tries must fit into half of request_timeout_s=99" in message
    assert "lower timeout_s to 24.75, or raise request_timeout_s to 100" in message


def test_a_classifier_needs_no_time_limit_of_its_own():
    assert load_config(TINY, ["reward_service.request_timeout_s=1"])


# --- what other tables must say


def document(**changes):
    return {**load_config(TINY).model_dump(), "evaluate": None, "judge": None, **changes}


def test_no_reward_model_is_needed_where_none_scores():
    others = RewardServiceConfig.model_validate({"scorers": [{"type": "function", "callable": "a:b"}]})
    config = RunConfig.model_validate(document(reward_model=None, reward_service=others.model_dump()))
    assert config.reward_model is None


def test_a_reward_model_that_scores_must_be_there():
    with pytest.raises(ValueError, match=r"add a \[reward_model\] table, or list other scorers in reward_service"):
        RunConfig.model_validate(document(reward_model=None))


def test_the_baseline_of_the_prompt_is_the_reward_models():
    baseline = "ppo.score_baseline=prompt"
    assert load_config(TINY, [baseline, scorers(MODEL, FUNCTION)])
    assert 'reward_service.scorers has no { type = "model" }' in error(baseline, scorers(FUNCTION))


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        ("weight=2.0", True),
        ("name='other'", True),
        ("callable='my_rewards:other'", True),
        ("batch_sequences=3", True),
        ("arguments={n=2}", True),
        ("timeout_s=3", False),
        ("start_timeout_s=3", False),
    ],
)
def test_what_changes_scores_matters_and_how_long_they_take_does_not(change, matters):
    key = change.split("=")[0]
    kept = ", ".join(part for part in FUNCTION.strip("{}").split(", ") if not part.startswith(key))
    before, after = (load_config(TINY, [scorers(f)]).reward_service for f in (FUNCTION, f"{{{kept}, {change}}}"))
    assert before != after
    assert (settings_that_matter(before) != settings_that_matter(after)) == matters
