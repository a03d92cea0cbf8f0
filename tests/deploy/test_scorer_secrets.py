"""Tokens: found before anything starts, and named without being shown."""

import pytest

from common.errors import ConfigError
from deploy.run import run_pipeline
from deploy.scorer_secrets import scorer_secrets

SCORERS = (
    "reward_service.scorers=[{type='model'}, {type='http', name='a', url='https://x', token_env='TOKEN_A'},"
    " {type='http', name='b', url='https://x'}, {type='http', name='c', url='https://x', token_env='TOKEN_C'}]"
)


def test_only_the_variables_that_scorers_name_are_read(tiny):
    environ = {"TOKEN_A": "a-1", "TOKEN_C": "c~2", "TOKEN_B": "b", "HOME": "/root"}
    assert scorer_secrets(tiny(SCORERS), environ) == {"TOKEN_A": "a-1", "TOKEN_C": "c~2"}
    assert scorer_secrets(tiny(), environ) == {}


@pytest.mark.parametrize("environ", [{}, {"TOKEN_C": ""}])
def test_a_token_that_is_not_set_is_named(tiny, environ):
    with pytest.raises(ConfigError, match=r"scorer 'c' .* variable TOKEN_C, which is not set; export it"):
        scorer_secrets(tiny(SCORERS), {"TOKEN_A": "a", **environ})


@pytest.mark.parametrize("value", ["s3cr3t\n", "s3 cr3t", "s3cr3\u00e9", "\ts3cr3t", "s3cr3t\x7f"])
def test_a_token_that_no_header_may_carry_is_refused_and_not_repeated(tiny, value):
    with pytest.raises(ConfigError) as raised:
        scorer_secrets(tiny(SCORERS), {"TOKEN_A": value, "TOKEN_C": "c"})
    assert "variable TOKEN_A, which holds a space, a line break or a letter beyond ASCII" in str(raised.value)
    assert "cr3" not in str(raised.value)


def test_a_run_without_its_token_ends_before_its_first_stage(tiny, tmp_path, monkeypatch):
    monkeypatch.delenv("TOKEN_A", raising=False)
    with pytest.raises(ConfigError, match="TOKEN_A"):
        run_pipeline(tiny(SCORERS), tmp_path / "run", local=True, address=None, again=frozenset())
    assert not (tmp_path / "run" / "models").exists()
    assert not list((tmp_path / "run").glob("stages/*"))
