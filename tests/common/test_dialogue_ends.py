"""Demonstrations begin as the model's own tokenizer begins a text, and end where its chats end."""

import pytest
from tokenizers import processors

from common.dialogue import encode_demonstration, encode_prompt
from common.row_config import DemonstrationRows
from common.text import train_word_tokenizer

ROWS = DemonstrationRows(type="demonstrations", prompt_column="prompt", response_column="response")
CHAT = [{"role": "user", "content": "how was it"}, {"role": "assistant", "content": "good film"}]


@pytest.mark.parametrize("with_bos", [False, True])
def test_a_demonstration_begins_with_the_bos_token_where_the_tokenizer_writes_it(with_bos):
    tokenizer = train_word_tokenizer(["how was it good film"], vocabulary_size=16, max_tokens=32)
    if with_bos:
        tokenizer.bos_token = "<pad>"
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<pad> $A", special_tokens=[("<pad>", 0)]
        )
    example = encode_demonstration(tokenizer, CHAT, ROWS)
    prompt = encode_prompt(tokenizer, CHAT, ROWS)
    words = tokenizer("how was it good film", add_special_tokens=False)["input_ids"]
    assert example.ids.tolist() == [0] * with_bos + words + [2]
    assert example.learned.tolist() == [False] * (3 + with_bos) + [True] * 3
    assert prompt.tolist() == example.ids[: 3 + with_bos].tolist()


def test_a_chat_that_ends_at_its_end_of_turn_gets_no_other_eos_token():
    tokenizer = train_word_tokenizer(["how was it good film"], vocabulary_size=16, max_tokens=32)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<end>"]})
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}<end>{% endfor %}"
    example = encode_demonstration(tokenizer, CHAT, ROWS)
    end = tokenizer.convert_tokens_to_ids("<end>")
    assert example.ids[-1] == end
    assert example.learned[-1]
    assert 2 not in example.ids.tolist()
