"""A talk without a terminal: what is kept, what is forgotten, and what each command does."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

from actors.chat import Sampling, Speaker
from common.errors import ConfigError
from common.text import train_word_tokenizer
from deploy.chat.session import ChatSession, changed

WORDS = "user assistant system be kind one two three four five"
TURNS = "{% for m in messages %}{{ m.role }} {{ m.content }} <eos>{% endfor %}"
TEMPLATE = TURNS + "{% if add_generation_prompt %}assistant{% endif %}"


class Counting(nn.Module):
    """After each token the one that follows it in `order`; it has the parts of a causal model that a speaker uses."""

    def __init__(self, order, size, context):
        super().__init__()
        table = torch.full((size, size), 1e-30)
        for token, successor in zip(order, [*order[1:], 2], strict=True):
            table[token, successor] = 1.0
        self.table = nn.Parameter(table.log())
        self.config = LlamaConfig(vocab_size=size, num_hidden_layers=1, max_position_embeddings=context)
        self.stop_after = None
        self.calls = 0

    def forward(self, input_ids, position_ids, past_key_values, use_cache, logits_to_keep):
        self.calls += 1
        if self.stop_after is not None and self.calls > self.stop_after:
            raise KeyboardInterrupt
        return SimpleNamespace(logits=self.table[input_ids[:, -logits_to_keep:]])


class Shown:
    """Keeps what a screen is told."""

    def __init__(self):
        self.text, self.notes, self.tables, self.verdicts, self.comparisons = "", [], [], [], []

    def prompt(self, text):
        self.text += f"[{text}]"

    def piece(self, text):
        self.text += text

    def end(self):
        self.text += "|"

    def note(self, text):
        self.notes.append(text)

    def table(self, rows):
        self.tables.append(rows)

    def verdict(self, verdict):
        self.verdicts.append(verdict)

    def compare(self, sides):
        self.comparisons.append(sides)


class Scores:
    """Keeps what a run is asked to score."""

    def __init__(self):
        self.asked = []

    def score(self, answer, by, plain=None):
        self.asked.append((answer.text.strip(), plain))


@pytest.fixture
def start():
    def make(*, is_chat=True, context=64, view=None, order="assistant one two three four five", **sampling):
        tokenizer = train_word_tokenizer([WORDS], vocabulary_size=64, max_tokens=64)
        tokenizer.chat_template = TEMPLATE
        ids = tokenizer.convert_tokens_to_ids(order.split())
        speaker = Speaker(Counting(ids, len(tokenizer), context), tokenizer, frozenset({2}))
        return ChatSession(speaker, Shown(), Sampling(temperature=0, **sampling), is_chat=is_chat, view=view)

    return make


def prompt_of(session):
    return session.speaker.tokenizer.decode(session.answer.prompt_ids)


# --- conversations


def test_an_answer_is_kept_and_asked_with_the_next_message(start):
    session = start()
    session.take("kind")
    session.take("be")
    assert session.screen.text == "one two three four five|" * 2
    assert prompt_of(session) == "user kind <eos> assistant one two three four five <eos> user be <eos> assistant"
    assert [m["role"] for m in session.messages] == ["user", "assistant"] * 2


def test_the_system_message_comes_first_and_outlives_the_conversation(start):
    session = start()
    session.take("/system be kind")
    session.take("two")
    session.take("/clear")
    assert session.messages == []
    session.take("three")
    assert prompt_of(session) == "system be kind <eos> user three <eos> assistant"
    session.take("/system")
    session.take("/retry")
    assert prompt_of(session) == "user three <eos> assistant"


def test_what_no_longer_fits_is_forgotten_and_said_once(start):
    session = start(context=24, max_tokens=8)  # an exchange has 10 tokens, so that one and a question fit into 16
    for word in ("kind", "be", "system"):
        session.take(word)
    said = [note for note in session.screen.notes if "forgotten" in note]
    assert said == ["the oldest 2 messages are forgotten: the model's context has 24 tokens"]
    assert prompt_of(session).startswith("user be <eos> assistant one")
    assert [m["content"] for m in session.messages][::2] == ["be", "system"]


def test_a_message_that_cannot_be_seen_is_refused_and_changes_nothing(start):
    session = start(context=12, max_tokens=4)
    session.take("kind")
    before = session.messages
    session.take("one " * 20)
    assert "shorten it" in session.screen.notes[-1]
    assert session.messages == before


def test_retry_takes_the_last_exchange_back(start):
    session = start()
    session.take("kind")
    session.take("be")
    asked = prompt_of(session)
    session.take("/retry")
    assert prompt_of(session) == asked
    assert len(session.messages) == 4


def test_a_slash_at_the_beginning_of_a_message_is_doubled(start):
    session = start()
    session.take("//kind")
    assert session.messages[0]["content"] == "/kind"


# --- texts


def test_a_text_is_continued_and_each_stands_for_itself(start):
    session = start(is_chat=False)
    session.take("One")
    session.take("kind three")
    assert session.screen.text == "[one] two three four five|[kind three] four five|"
    assert session.speaker.tokenizer.decode(session.answer.prompt_ids) == "kind three"


def test_words_that_the_model_does_not_know_are_named(start):
    session = start(is_chat=False)
    session.take("Zorglub one")
    assert session.screen.notes == ["not in the model's vocabulary, so it does not see: Zorglub"]
    assert session.screen.text == "[one] two three four five|"


def test_a_system_message_without_a_template_is_refused(start):
    session = start(is_chat=False)
    session.take("/system be kind")
    assert session.system is None
    assert "chat template" in session.screen.notes[-1]


# --- more


def test_an_answer_that_was_cut_goes_on_where_it_ended(start):
    session = start(max_tokens=2)
    session.take("kind")
    assert session.screen.notes == ["cut after max_tokens = 2; /more goes on"]
    session.take("/more")
    assert session.answer.text == "one two three four"
    session.take("/set max_tokens 9")
    session.take("/more")
    assert session.answer.ending == "stop"
    assert session.messages[-1]["content"] == "one two three four five"
    session.take("/more")
    assert "is complete" in session.screen.notes[-1]


def test_a_full_context_is_said(start):
    session = start(is_chat=False, context=4)
    session.take("one two")
    assert session.screen.notes == ["cut: the model's context of 4 tokens is full"]
    session.take("/more")
    assert session.screen.notes[-1] == "the model's context of 4 tokens is full"


def test_what_was_said_before_an_interruption_is_kept(start):
    session = start()
    session.speaker.policy.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        session.take("kind")
    assert session.screen.text == "one two|"
    assert session.answer.ending == "interrupted"
    assert session.messages[-1]["content"] == "one two"
    session.speaker.policy.stop_after = None
    session.take("/more")
    assert session.messages[-1]["content"] == "one two three four five"


def test_a_question_whose_answer_was_never_begun_is_not_kept(start):
    session = start()
    session.speaker.policy.stop_after = 0
    with pytest.raises(KeyboardInterrupt):
        session.take("kind")
    assert session.messages == []


# --- commands


def test_help_names_every_command(start):
    session = start()
    session.take("/help")
    (rows,) = session.screen.tables
    assert {"/help", "/retry", "/more", "/clear", "/system", "/set", "/score", "/compare", "/quit"} == set(rows)


def test_an_unknown_command_names_the_known(start):
    session = start()
    session.take("/quti")
    assert "/quti is no command; there are /help" in session.screen.notes[0]


def test_quit_ends(start):
    with pytest.raises(EOFError):
        start().take("/quit")


@pytest.mark.parametrize("line", ["/set top_p 0.5", "/set top-p 0.5", "/set top_p=0.5", "/set top_p = 0.5"])
def test_a_setting_is_changed_and_all_are_shown(start, line):
    session = start()
    session.take(line)
    assert session.sampling.top_p == 0.5
    assert session.screen.tables[-1]["top_p"] == "0.5"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/set top_p 2", "less than or equal to 1"),
        ("/set temperature -1", "greater than or equal to 0"),
        ("/set temperature warm", "valid number"),
        ("/set max_tokens 0", "greater than or equal to 1"),
        ("/set temperatur 1", "did you mean 'temperature'"),
    ],
)
def test_a_setting_that_is_not_legal_is_refused(start, line, said):
    session = start()
    before = session.sampling
    session.take(line)
    assert said in session.screen.notes[-1]
    assert session.sampling == before


def test_setting_the_seed_begins_its_noise_anew(start):
    session = start(is_chat=False, max_tokens=5)
    session.speaker.policy.table.data = torch.zeros_like(session.speaker.policy.table)
    session.take("/set temperature 1")
    said = []
    for line in ("/set seed 3", "one", "one", "/set seed 3", "one"):
        session.take(line)
        said.append(session.answer.response_ids.tolist() if session.answer else None)
    assert said[1] == said[4] != said[2]


@pytest.mark.parametrize("line", ["/retry", "/more"])
def test_without_an_answer_there_is_nothing_to_go_on_from(start, line):
    session = start()
    session.take(line)
    assert session.screen.notes[-1].startswith("nothing has been")


@pytest.mark.parametrize("line", ["/score", "/compare"])
def test_without_a_run_there_is_neither_score_nor_comparison(start, line):
    session = start()
    session.take("kind")
    session.take(line)
    assert "belongs to no run" in session.screen.notes[-1]


def test_changed_leaves_the_rest_as_it_was():
    sampling = Sampling(temperature=0.3, seed=4)
    assert changed(sampling, "max_tokens", "7") == Sampling(temperature=0.3, seed=4, max_tokens=7)
    with pytest.raises(ConfigError):
        changed(sampling, "seed", "-1")


def test_an_empty_line_does_nothing(start):
    session = start()
    session.take("   ")
    assert (session.screen.text, session.answer) == ("", None)


@pytest.mark.parametrize(("is_chat", "plain"), [(True, "kind\none two three four five\nbe"), (False, None)])
def test_a_conversation_is_scored_by_what_was_said_without_roles(start, is_chat, plain):
    session = start(is_chat=is_chat, view=Scores(), order=f"{'assistant' if is_chat else 'be'} one two three four five")
    if is_chat:
        session.set_system("be kind")
    for text in ("kind", "be", "/score"):
        session.take(text)
    assert session.view.asked[0][1] == plain
