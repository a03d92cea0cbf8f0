"""`minichatgpt chat` as a user meets it: by CliRunner where there is no terminal, and in one that is."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from typer.testing import CliRunner

from common.errors import CheckpointError, ConfigError
from common.text import train_word_tokenizer
from deploy.chat.terminal import AGAIN, printable
from deploy.cli import app

ROOT = Path(__file__).parents[3]
PATIENCE_S = 240
AGAIN_AFTER_S = 5.0
LEAVING_S = 60.0
"""Within which a process that was told to leave has left, on a busy machine too: signals after that meet no handler."""
TURNS = "{% for m in messages %}{{ m.role }} {{ m.content }} <eos>{% endfor %}"


def chat(*arguments, lines=None):
    return CliRunner().invoke(app, ["chat", *map(str, arguments)], input=lines)


def answered(*arguments, lines=None):
    """The JSON lines of a command that succeeds."""
    done = chat(*arguments, "--json", lines=lines)
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """The folder of a model for conversations that never ends an answer by itself."""
    folder = tmp_path_factory.mktemp("models") / "endless"
    tokenizer = train_word_tokenizer(["user assistant system the film is good"], vocabulary_size=64, max_tokens=64)
    tokenizer.chat_template = TURNS + "{% if add_generation_prompt %}assistant{% endif %}"
    torch.manual_seed(3)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=100_000,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    policy = LlamaForCausalLM(shape)
    policy.lm_head.weight.data[:3] = 0  # the likeliest token is a word, never pad, unknown or EOS
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# --- for programs


def test_each_prompt_is_answered_by_itself(tiny_run):
    where = ("tiny", "--runs", tiny_run.parent, "--seed", 4)
    first, second = answered(*where, "--prompt", "This film", "--prompt", "i like")
    assert (first["prompt"], second["prompt"]) == ("This film", "i like")
    assert first["prompt_tokens"] == second["prompt_tokens"] == 2
    assert first["response"]
    assert (first["temperature"], first["max_tokens"], first["seed"]) == (1.0, 8, 4), "as in PPO"
    assert "after PPO" in first["policy"]
    assert "verdict" not in first
    again, _ = answered(*where, "--prompt", "This film", "--prompt", "i like")
    assert again == first


def test_lines_of_a_pipe_are_prompts_and_empty_ones_are_none(tiny_run):
    where = ("tiny", "--runs", tiny_run.parent, "--seed", 4)
    by_option = answered(*where, "--prompt", "this film", "--prompt", "i like")
    assert answered(*where, lines="this film\n\n  i like\n") == by_option


def test_a_line_with_a_slash_from_a_pipe_is_no_command(endless):
    (line,) = answered(endless, "--temperature", 0, "--max-tokens", 3, lines="/quit\n")
    assert (line["prompt"], line["ending"], line["response_tokens"]) == ("/quit", "length", 3)


def test_settings_of_the_command_line_come_before_those_of_the_run(tiny_run):
    given = ("--temperature", 0, "--top-p", 0.5, "--max-tokens", 3)
    (line,) = answered("tiny", "--runs", tiny_run.parent, *given, "--prompt", "this film")
    assert (line["temperature"], line["top_p"], line["max_tokens"]) == (0, 0.5, 3)
    assert line["response_tokens"] <= 3


def test_scores_are_given_where_they_are_asked_for(tiny_run):
    (line,) = answered("tiny", "--runs", tiny_run.parent, "--prompt", "this film", "--seed", 1, "--score")
    verdict = line["verdict"]
    assert verdict["score"] == pytest.approx(verdict["parts"]["reward_model"])
    assert 0 < verdict["judge_p_positive"] < 1
    assert verdict["kl_seq_sum"] == pytest.approx(verdict["kl_token_mean"] * line["response_tokens"])


@pytest.mark.parametrize(
    ("choice", "words"),
    [(("--model", "sft"), "after supervised fine-tuning"), (("--checkpoint", "3"), "after 3 updates of PPO")],
)
def test_which_weights_are_loaded_is_said(tiny_run, choice, words):
    done = chat("tiny", "--runs", tiny_run.parent, *choice, "--prompt", "this film", "--seed", 1)
    assert done.exit_code == 0
    assert f"tiny: {words}" in done.stderr
    assert done.stdout.startswith("this film "), "the answer alone, after the text that it goes on with"


def test_a_model_with_a_template_answers_and_continues_where_it_is_told_to(endless):
    given = (endless, "--prompt", "the film", "--temperature", 0, "--max-tokens", 4)
    (answer,) = answered(*given, "--system", "good")
    (continued,) = answered(*given, "--complete")
    assert answer["prompt_tokens"] == 8, "system good <eos> user the film <eos> assistant"
    assert continued["prompt_tokens"] == 2
    assert not answer["response"].startswith(" ")
    assert continued["response"].startswith(" ")


def test_a_run_that_learned_on_texts_continues_them_though_its_tokenizer_has_a_template(run_copy):
    for folder in (run_copy / "models").iterdir():
        (folder / "chat_template.jinja").write_text(TURNS, encoding="utf-8")
    given = (run_copy, "--prompt", "this film", "--temperature", 0)
    (continued,), (answer,) = answered(*given), answered(*given, "--chat")
    assert continued["prompt_tokens"] == 2 < answer["prompt_tokens"]
    refused = chat(*given, "--system", "good")
    assert "where it has one: --chat" in str(refused.exception)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (["nope", "--prompt", "x"], ConfigError, "cannot load 'nope'"),
        (["tiny", "--prompt", "x", "--temperature", "-1"], ConfigError, "greater than or equal to 0"),
        (["tiny", "--prompt", "x", "--checkpoint", "8"], CheckpointError, "no checkpoint of update 8; there are 3"),
        (["tiny", "--prompt", "x", "--system", "be kind"], ConfigError, "needs a chat template"),
        (["tiny", "--prompt", "x", "--device", "cuda"], ConfigError, "sees no GPU"),
    ],
)
def test_what_cannot_be_done_is_an_error(tiny_run, arguments, error, said):
    done = chat(*arguments, "--runs", tiny_run.parent)
    assert isinstance(done.exception, error)
    assert said in str(done.exception)
    assert not done.stdout


def test_scores_of_a_model_without_a_run_are_refused(endless):
    done = chat(endless, "--prompt", "the film", "--max-tokens", 2, "--score")
    assert isinstance(done.exception, ConfigError)
    assert "belongs to no run" in str(done.exception)


def test_an_unknown_option_is_a_usage_error():
    assert chat("tiny", "--modle", "sft").exit_code == 2


def test_help_shows_examples_commands_and_exit_codes():
    shown = chat("--help").output
    for words in ("minichatgpt chat demo", "/compare", "Ctrl-C", "130"):
        assert words in shown


def test_what_would_steer_the_terminal_is_not_written():
    assert printable("a\x1b[2Jb\x07\x9b\r\n\t") == "a\ufffd[2Jb\ufffd\ufffd\ufffd\n\t"
    assert printable("é語🎬\u200d\xa0") == "é語🎬\u200d\xa0"


# --- in a terminal


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, *arguments):
        self._end, inner = pty.openpty()
        environment = {**os.environ, "TERM": "dumb", "COLUMNS": "200", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "deploy", "chat", *map(str, arguments)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=inner, stdout=inner, stderr=inner, start_new_session=True
        )
        os.close(inner)
        self.shown = ""
        self._read = 0

    def until(self, text, again=lambda: None):
        """Read until `text` was shown after what was read before; returns all that was shown up to its end."""
        deadline, next_try = time.monotonic() + PATIENCE_S, time.monotonic() + AGAIN_AFTER_S
        while text not in self.shown[self._read :]:
            assert time.monotonic() < deadline, f"{text!r} was not shown, but {self.shown!r}"
            if time.monotonic() > next_try:
                next_try = time.monotonic() + AGAIN_AFTER_S
                again()
            if select.select([self._end], [], [], 1.0)[0]:
                self.shown += os.read(self._end, 65536).decode(errors="replace")
        start, self._read = self._read, self.shown.index(text, self._read) + len(text)
        return self.shown[start : self._read]

    def type(self, text):
        os.write(self._end, text.encode())

    def _signal(self):
        os.kill(self.process.pid, signal.SIGINT)

    def interrupt(self):
        """Ctrl-C until it is seen: between showing a prompt and reading, CPython notices none before the next key."""
        self._signal()
        self.until(AGAIN, again=self._signal)

    def interrupt_to_the_end(self):
        """Ctrl-C until the process has ended; returns its exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            self._signal()
            try:
                return self.process.wait(LEAVING_S)
            except subprocess.TimeoutExpired:
                continue
        raise AssertionError("it does not end")

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._end)


@pytest.fixture
def terminal(endless):
    made = Terminal(endless, "--temperature", 0, "--max-tokens", 90_000)
    yield made
    made.close()


@pytest.mark.slow
def test_an_answer_streams_until_ctrl_c_and_the_talk_goes_on_until_two(terminal):
    assert "It answers: temperature 0" in terminal.until("\n> ")
    terminal.type("the film\n")
    for _ in range(2):  # it is shown while it is made: this answer has no end
        assert any(word in terminal.until(" ") + terminal.until(" ") for word in ("film", "good", "is", "the", "user"))
    assert terminal.process.poll() is None
    terminal.interrupt()
    terminal.until("> ")
    terminal.type("/set max_tokens 3\n")
    assert "max_tokens   3" in terminal.until("> ")
    terminal.type("the film\n")
    terminal.until("cut after max_tokens = 3; /more goes on")
    terminal.until("> ")
    terminal.interrupt()
    terminal.until("> ")
    assert terminal.interrupt_to_the_end() == 130


@pytest.mark.slow
@pytest.mark.parametrize("end", ["/quit\n", "\x04"])
def test_quit_and_ctrl_d_end_a_talk_in_good_order(terminal, end):
    terminal.until("\n> ")
    terminal.type(end)
    assert terminal.process.wait(PATIENCE_S) == 0
