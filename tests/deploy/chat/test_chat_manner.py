"""A run's policy is asked as PPO asked it; whoever wants it otherwise says so."""

import pytest

from common.config import RunConfig
from common.errors import ConfigError
from deploy.chat.manner import manner_of
from deploy.chat.open import open_policy

RECORDS = [{"prompt": f"the film {i}", "response": "good"} for i in range(4)]
TEMPLATE = "{% for m in messages %}{{ m.content }}<eos>{% endfor %}"


@pytest.fixture
def opened(tiny_run):
    """The run, its policy with a template, and PPO on texts or on what is given."""

    def build(source=None, template=TEMPLATE):
        found = open_policy(str(tiny_run), tiny_run.parent, model=None, checkpoint=None)
        found.policy.tokenizer.chat_template = template
        if source is not None:
            values = found.run.config.model_dump()
            values["data"]["asked"] = {"type": "inline", "records": RECORDS, "rows": source}
            values["ppo"]["data"] = [*values["ppo"]["data"], "asked"]
            found.run.config = RunConfig.model_validate(values)
        return found

    return build


@pytest.mark.parametrize(
    ("rows", "is_chat", "why"),
    [
        (None, False, "as PPO did"),
        ({"type": "demonstrations", "use_chat_template": False}, False, "as PPO did"),
        ({"type": "demonstrations"}, True, "ppo.data writes asked as a chat"),
    ],
)
def test_a_run_is_asked_as_its_ppo_asked(opened, rows, is_chat, why):
    manner = manner_of(opened(rows), None)
    assert manner.is_chat == is_chat
    assert why in manner.why


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("rows", [None, {"type": "demonstrations"}])
def test_what_the_command_line_says_comes_first(opened, rows, wanted):
    manner = manner_of(opened(rows), wanted)
    assert manner.is_chat == wanted
    assert manner.why == (" (--chat)" if wanted else " (--complete)")


def test_without_a_template_texts_are_continued_and_a_chat_is_refused(opened):
    found = opened({"type": "demonstrations"}, template=None)
    assert not manner_of(found, None).is_chat
    with pytest.raises(ConfigError, match="--chat needs a chat template"):
        manner_of(found, True)


def test_a_model_of_no_run_is_asked_by_what_its_tokenizer_has(tiny_run, tmp_path):
    found = open_policy(str(tiny_run / "models" / "sft"), tmp_path, model=None, checkpoint=None)
    assert not manner_of(found, None).is_chat
    found.policy.tokenizer.chat_template = TEMPLATE
    assert manner_of(found, None).is_chat
