"""Demonstrations to ids: what is learned, how prompt and response are joined, and that PPO sees what SFT saw."""

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from common.dialogue import encode_demonstration, encode_prompt, truncate
from common.errors import ConfigError
from common.joining import cut_joined, join_response
from common.row_config import DemonstrationRows

PLAIN, CHAT = DemonstrationRows(use_chat_template=False), DemonstrationRows(messages_column="m")
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TEXTS = ["What is rain? Water that falls. What is ice? Frozen water, and cold. user assistant system hello good"] * 3


def turn(role, content):
    return {"role": role, "content": content}


TALK = [turn("user", "What is rain?"), turn("assistant", "Water that falls.")]
LONG = [turn("system", "hello"), *TALK, turn("user", "What is ice?"), turn("assistant", "Frozen water.")]


@pytest.fixture(params=[TEMPLATE, None], ids=["template", "plain"])
def tokenizer(request):
    return make(request.param)


def make(template=TEMPLATE):
    """A byte-level BPE tokenizer as GPT-2's, trained on a few words."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    marks = ["<eos>", "<|user|>", "<|assistant|>", "<|system|>"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", clean_up_tokenization_spaces=False)
    tokenizer.chat_template = template
    return tokenizer


def learned_text(tokenizer, example) -> str:
    return tokenizer.decode(example.ids[example.learned])


def test_only_the_response_and_its_end_are_learned_without_a_template():
    tokenizer = make(None)
    example = encode_demonstration(tokenizer, TALK, DemonstrationRows())
    assert tokenizer.decode(example.ids) == "What is rain? Water that falls.<eos>"
    assert learned_text(tokenizer, example) == " Water that falls.<eos>"


def test_a_template_writes_prompt_and_response_as_turns_unless_it_is_turned_off():
    tokenizer = make()
    example = encode_demonstration(tokenizer, TALK, DemonstrationRows())
    assert tokenizer.decode(example.ids) == "<|user|>What is rain?<eos>\n<|assistant|>Water that falls.<eos>"
    assert learned_text(tokenizer, example) == "Water that falls.<eos>"
    plain = encode_demonstration(tokenizer, TALK, PLAIN)
    assert tokenizer.decode(plain.ids) == "What is rain? Water that falls.<eos>"


def test_every_turn_of_the_assistant_is_learned_up_to_its_end_and_no_other():
    tokenizer = make()
    example = encode_demonstration(tokenizer, LONG, CHAT)
    assert learned_text(tokenizer, example) == "Water that falls.<eos>Frozen water.<eos>"
    assert example.ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(example.ids).startswith("<|system|>hello<eos>\n<|user|>What is rain?<eos>\n")


def test_a_template_that_ends_no_turn_gets_an_end_after_the_last_one():
    tokenizer = make("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
                     "{% if add_generation_prompt %}assistant:{% endif %}")  # fmt: skip
    example = encode_demonstration(tokenizer, LONG, CHAT)
    assert learned_text(tokenizer, example) == " Water that falls.\n Frozen water.\n<eos>"


def test_the_prompt_of_ppo_is_what_sft_read_before_the_last_response(tokenizer):
    for chat, rows in ((TALK, DemonstrationRows()), (TALK, PLAIN), (LONG, CHAT)):
        if rows is CHAT and tokenizer.chat_template is None:
            continue
        prompt, example = encode_prompt(tokenizer, chat, rows), encode_demonstration(tokenizer, chat, rows)
        assert example.ids[: len(prompt)].tolist() == prompt.tolist()
        assert example.learned[len(prompt) :].all()
        assert not example.learned[len(prompt) - 1]


def test_merges_across_the_border_leave_the_prompt_as_it_is():
    """«wat» and «er» are one token together: the prompt's ids must be those that PPO begins with all the same."""
    tokenizer = make("{{ messages[0].content }}{% if messages[1:] %}{{ messages[1].content }}{% endif %}")
    chat = [turn("user", "Frozen wat"), turn("assistant", "er")]
    assert len(tokenizer("Frozen water")["input_ids"]) < sum(
        len(tokenizer(t)["input_ids"]) for t in ("Frozen wat", "er")
    )
    prompt, example = encode_prompt(tokenizer, chat, CHAT), encode_demonstration(tokenizer, chat, CHAT)
    assert example.ids[: len(prompt)].tolist() == prompt.tolist()
    assert learned_text(tokenizer, example) == "er<eos>"


def test_a_chat_without_a_template_is_refused():
    with pytest.raises(ConfigError, match="no chat template"):
        encode_demonstration(make(None), LONG, CHAT)
    with pytest.raises(ConfigError, match="no chat template"):
        encode_prompt(make(None), LONG, CHAT)


def test_a_template_that_writes_an_answer_otherwise_than_it_asks_for_it_is_refused():
    tokenizer = make(TEMPLATE.replace("<|assistant|>{% endif", "<|assistant|>hello{% endif"))
    with pytest.raises(ConfigError, match=r"hello.*cannot be told.*use_chat_template = false"):
        encode_demonstration(tokenizer, LONG, CHAT)


def test_truncation_keeps_the_beginning_of_the_response_and_says_where_nothing_is_left():
    tokenizer = make(None)
    example = encode_demonstration(tokenizer, TALK, DemonstrationRows())
    prompt = int(np.flatnonzero(example.learned)[0])
    cut = truncate(example, prompt + 2)
    assert cut.ids.tolist() == example.ids[: prompt + 2].tolist()
    assert cut.learned.sum() == 2
    assert tokenizer.eos_token_id not in cut.ids
    assert truncate(example, prompt) is None
    assert len(truncate(example, 999)) == len(example)


@pytest.mark.parametrize(
    ("prompt", "response", "head", "rest"),
    [
        ("a film", "that is good", "a film", " that is good"),
        ("a film ", "that is good", "a film", " that is good"),
        ("a film", " that is good", "a film", " that is good"),
        ("Question?\n", "Answer", "Question?\n", "Answer"),
        ("Q: x  ", "y", "Q: x", "  y"),
        ("a film", ", good", "a film", ", good"),
        ("a film", "\nthat", "a film", "\nthat"),
    ],
)
def test_prompt_and_response_are_cut_before_the_blank_between_them(prompt, response, head, rest):
    assert cut_joined(prompt, response) == (head, rest)
    assert head + rest == join_response(prompt, response)
