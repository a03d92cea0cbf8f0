"""Chat messages as the tokenizer's own template writes them."""

import pytest

from common.chat import encode_chat, has_chat_template
from common.errors import ConfigError
from common.text import train_word_tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {{ m.content }} <eos>{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
TALK = [{"role": "user", "content": "how was it"}, {"role": "assistant", "content": "good"}]


@pytest.fixture
def tokenizer():
    made = train_word_tokenizer(["user assistant how was it good"], vocabulary_size=32, max_tokens=32)
    made.chat_template = TEMPLATE
    return made


def test_messages_become_ids_with_the_special_tokens_of_the_template(tokenizer):
    ids = encode_chat(tokenizer, TALK, ask=False)
    assert tokenizer.decode(ids) == "user how was it <eos> assistant good <eos>"
    assert list(ids).count(tokenizer.eos_token_id) == 2


def test_asking_opens_the_turn_of_the_assistant(tokenizer):
    asked, told = (encode_chat(tokenizer, TALK[:1], ask=ask) for ask in (True, False))
    assert list(asked[: len(told)]) == list(told)
    assert tokenizer.decode(asked[len(told) :]) == "assistant"


def test_a_tokenizer_without_a_template_is_refused(tokenizer):
    tokenizer.chat_template = None
    assert not has_chat_template(tokenizer)
    with pytest.raises(ConfigError, match="no chat template"):
        encode_chat(tokenizer, TALK, ask=True)
