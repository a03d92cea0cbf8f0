"""What is left out where a model cannot see it all, and that it is said."""

import pytest

from actors.conversation import ask_chat, ask_text, prompt_room
from common.errors import DataError
from common.text import decode, train_word_tokenizer

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}"
    "{{ m.role }} {{ m.content }} <eos>{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"
)
WORDS = "system user assistant be kind one two three four five six seven"


@pytest.fixture(scope="module")
def tokenizer():
    made = train_word_tokenizer([WORDS], vocabulary_size=64, max_tokens=64)
    made.chat_template = TEMPLATE
    return made


def talk(*contents, system=None):
    roles = ["user", "assistant"] * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return [{"role": "system", "content": system}, *messages] if system else messages


def asked(tokenizer, messages, room=None, context=None):
    return ask_chat(tokenizer, messages, room=room, context_tokens=context)


def test_a_conversation_that_fits_is_asked_in_full(tokenizer):
    found = asked(tokenizer, talk("one", "two", "three", system="be kind"))
    assert decode(tokenizer, found.ids) == "system be kind user one assistant two user three assistant"
    assert found.num_dropped == 0


@pytest.mark.parametrize(
    ("room", "dropped", "left"),
    [
        (20, 0, "system be kind user one assistant two user three assistant four user five assistant"),
        (19, 2, "system be kind user three assistant four user five assistant"),
        (13, 4, "system be kind user five assistant"),
        (1, 4, "system be kind user five assistant"),
    ],
)
def test_the_oldest_exchanges_go_and_the_system_message_and_the_question_stay(tokenizer, room, dropped, left):
    found = asked(tokenizer, talk("one", "two", "three", "four", "five", system="be kind"), room=room, context=64)
    assert found.num_dropped == dropped
    assert decode(tokenizer, found.ids) == left


def test_without_a_system_message_the_same_goes(tokenizer):
    found = asked(tokenizer, talk("one", "two", "three"), room=7, context=64)
    assert (found.num_dropped, decode(tokenizer, found.ids)) == (2, "user three assistant")


def test_a_question_that_the_model_cannot_see_is_refused_with_both_lengths(tokenizer):
    with pytest.raises(DataError, match=r"has 8 tokens .* a context of 8; shorten it"):
        asked(tokenizer, talk("one two three four five"), room=4, context=8)


def test_what_the_template_refuses_is_said(tokenizer):
    messages = [*talk("one", "two"), {"role": "system", "content": "be kind"}, *talk("three")]
    with pytest.raises(DataError, match="template refuses this conversation: no"):
        asked(tokenizer, messages)


def test_of_a_long_text_the_end_stays(tokenizer):
    found = ask_text(tokenizer, "one two three four", room=3)
    assert (found.num_dropped, decode(tokenizer, found.ids)) == (1, "two three four")
    assert ask_text(tokenizer, "one two", room=None).num_dropped == 0


def test_words_that_the_vocabulary_lacks_are_named_once_each(tokenizer):
    assert ask_text(tokenizer, "One Zorglub, two Zorglub", room=None).unknown == ("Zorglub", ",")
    assert asked(tokenizer, talk("Zorglub one")).unknown == ("Zorglub",)


def test_a_text_without_a_word_is_refused(tokenizer):
    with pytest.raises(DataError, match="write the beginning of a text"):
        ask_text(tokenizer, "  ", room=None)


@pytest.mark.parametrize(("context", "max_tokens", "room"), [(None, 10, None), (64, 10, 54), (64, 200, 32), (1, 9, 1)])
def test_an_answer_has_its_tokens_or_half_of_the_context(context, max_tokens, room):
    assert prompt_room(context, max_tokens) == room
