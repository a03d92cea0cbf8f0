"""A function in its own process: whatever it does, only its own culprits go without a score, and nothing is left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from common.errors import ConfigError, MemberFailedError
from common.scorer_config import FunctionScorerConfig
from reward_service.function_scorer import FunctionScorer
from reward_service.scorers import Failure, Scored

pytestmark = pytest.mark.usefixtures("callables")

DEADLINE_S = 60.0
ROOT = Path(__file__).parents[2]
ONE = Scored(1.0, {"mine": 1.0})


@pytest.fixture
def scorer_of():
    """Builds and starts scorers, and ends them."""
    started = []

    def build(function, **settings):
        settings = {"timeout_s": DEADLINE_S, **settings}
        scorer = FunctionScorer(FunctionScorerConfig(name="mine", callable=function, **settings))
        started.append(scorer)
        scorer.start()
        return scorer

    yield build
    for scorer in started:
        scorer.close()


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_until_gone(pid: int) -> None:
    end = time.monotonic() + DEADLINE_S
    while not gone(pid):
        assert time.monotonic() < end, f"process {pid} is still there"
        time.sleep(0.02)


def reasons(outcomes):
    return [o.reason if isinstance(o, Failure) else o.value for o in outcomes]


def test_a_function_gets_prompts_and_responses_in_order(scorer_of, texts_of, soon):
    found = scorer_of("tiny_rewards:length", batch_sequences=2).score(texts_of("a", "bcd", "ef"), soon)
    assert found == [Scored(n, {"mine": n}) for n in (2.03, 4.03, 3.03)]


@pytest.mark.parametrize("batch_sequences", [1, 2, 3, 64])
def test_a_score_does_not_depend_on_the_size_of_the_batch(scorer_of, texts_of, soon, batch_sequences):
    found = scorer_of("tiny_rewards:length", batch_sequences=batch_sequences).score(texts_of(*"abcd", "efg"), soon)
    assert reasons(found) == [2.03] * 4 + [4.03]


def test_texts_of_any_letters_and_any_length_arrive_whole(scorer_of, texts_of, soon):
    texts = ["é\n\x00\u2028😀", "x" * 3_000_000]
    assert reasons(scorer_of("tiny_rewards:length").score(texts_of(*texts), soon)) == [len(t) + 1.03 for t in texts]


def test_a_function_runs_in_a_process_of_its_own_and_in_the_same_one_for_all_calls(scorer_of, texts_of, soon):
    scorer = scorer_of("tiny_rewards:where")
    first, second = (scorer.score(texts_of("a"), soon)[0].value for _ in range(2))
    assert first == second == scorer.host.pid != os.getpid()


def test_numbers_of_any_library_are_taken(scorer_of, texts_of, soon):
    assert reasons(scorer_of("tiny_rewards:of_a_library").score(texts_of("a", "b"), soon)) == [2.5, 2.5]


def test_what_a_function_prints_disturbs_nobody(scorer_of, texts_of, soon):
    scorer = scorer_of("tiny_rewards:chatty")
    for _ in range(3):
        assert reasons(scorer.score(texts_of("a", "bc"), soon)) == [2.03, 3.03]


# --- arguments


def test_a_function_is_called_with_its_arguments(scorer_of, texts_of, soon):
    scorer = scorer_of("tiny_rewards:with_arguments", arguments={"bonus": 0.5, "words": ["good", "é"]})
    assert reasons(scorer.score(texts_of("good é good", "bad"), soon)) == [1.5, 0.0]
    assert scorer.version != scorer_of("tiny_rewards:with_arguments", arguments={"bonus": 0.25}).version


def test_a_ready_made_penalty_is_a_function_like_any_other(scorer_of, texts_of, soon):
    scorer = scorer_of("reward_service.penalties:repetition", arguments={"ngram_words": 1})
    assert reasons(scorer.score(texts_of("a a", "a b"), soon)) == [-0.5, 0.0]


@pytest.mark.parametrize(
    ("function", "arguments", "why"),
    [
        ("with_arguments", {"bonus": 1, "word": "a"}, r"unexpected keyword argument 'word'; it takes \(prompts, resp"),
        (
            "with_arguments",
            {},
            r"missing a required keyword-only argument: 'bonus'|missing a required argument: 'bonus'",
        ),
        ("length", {"bonus": 1}, r"arguments = {'bonus': 1}: got an unexpected keyword argument 'bonus'"),
    ],
)
def test_arguments_that_a_function_does_not_take_are_named_at_the_start(scorer_of, function, arguments, why):
    with pytest.raises(ConfigError, match=rf"callable 'tiny_rewards:{function}' cannot be called .*({why})"):
        scorer_of(f"tiny_rewards:{function}", arguments=arguments)


def test_a_compiled_function_need_not_say_what_it_takes(scorer_of):
    assert scorer_of("builtins:map").host.is_running


# --- what goes wrong


@pytest.mark.parametrize(
    ("response", "reason", "detail"),
    [
        ("raise", "reward_error", "KeyError: 'no such word'"),
        ("leave", "reward_error", "SystemExit: 3"),
        ("die", "reward_error", "exit code 7; last output:\nthe last words"),
        ("crash", "reward_error", "signal SIGABRT"),
        ("none", "reward_error", "no score was given"),
        ("nan", "reward_nonfinite", "nan"),
        ("inf", "reward_nonfinite", "inf"),
        ("-inf", "reward_nonfinite", "-inf"),
        ("1e39", "reward_nonfinite", "1e+39"),
        ("word", "reward_shape", "it returned str where a number belongs"),
        ("too few", "reward_shape", "got 0 scores for 1 texts"),
        ("too many", "reward_shape", "got 2 scores for 1 texts"),
    ],
)
def test_only_the_culprit_is_without_a_score(scorer_of, texts_of, soon, response, reason, detail):
    scorer = scorer_of("tiny_rewards:by_the_text")
    found = scorer.score(texts_of("a", response, "b"), soon)
    assert reasons(found) == [1.0, reason, 1.0]
    assert detail in found[1].detail
    assert scorer.score(texts_of("c"), soon) == [ONE]


@pytest.mark.parametrize("response", ["hang", "shout", "backtrack"])
def test_a_text_that_hangs_is_dropped_alone_and_the_function_is_started_again(scorer_of, texts_of, soon, response):
    scorer = scorer_of("tiny_rewards:by_the_text", timeout_s=1.0)
    before = scorer.host.pid
    found = scorer.score(texts_of("a", response, "b"), soon)
    assert reasons(found) == [1.0, "reward_timeout", 1.0]
    assert "tiny_rewards:by_the_text: no answer within 1 s" in found[1].detail
    assert response == "shout" or "tiny_rewards.py" in found[1].detail, "it says where it hung"
    assert scorer.score(texts_of("c"), soon) == [ONE]
    assert scorer.host.pid != before
    wait_until_gone(before)


def test_several_culprits_in_several_batches_are_dropped_alone(scorer_of, texts_of, soon):
    scorer = scorer_of("tiny_rewards:by_the_text", batch_sequences=3)
    found = scorer.score(texts_of("die", "a", "raise", "b", "c", "d", "none", "leave"), soon)
    error = "reward_error"
    assert reasons(found) == [error, 1.0, error, 1.0, 1.0, 1.0, error, error]


@pytest.mark.parametrize("function", ["one_number", "a_word"])
def test_an_answer_that_is_no_list_is_no_score(scorer_of, texts_of, soon, function):
    found = scorer_of(f"tiny_rewards:{function}").score(texts_of("a", "b"), soon)
    assert reasons(found) == ["reward_shape"] * 2
    assert "not a list of 1 numbers" in found[0].detail


def test_what_is_not_scored_by_the_deadline_is_given_up_and_the_next_chunk_is_scored(scorer_of, texts_of, soon):
    scorer = scorer_of("tiny_rewards:by_the_text", batch_sequences=1, timeout_s=600.0)
    found = scorer.score(texts_of("a", "hang", "b"), time.monotonic() + 2.0)
    assert reasons(found) == [1.0, "reward_timeout", "reward_timeout"]
    assert time.monotonic() < soon
    assert reasons(scorer.score(texts_of("b"), soon)) == [1.0]


def test_a_process_that_died_between_two_calls_costs_no_text(scorer_of, texts_of, soon):
    scorer = scorer_of("tiny_rewards:by_the_text")
    pid = scorer.host.pid
    os.kill(pid, signal.SIGKILL)
    while scorer.host.is_running:
        assert time.monotonic() < soon
    assert scorer.score(texts_of("a"), soon) == [ONE]


def test_a_process_that_was_stopped_is_replaced(scorer_of, texts_of, soon):
    scorer = scorer_of("tiny_rewards:by_the_text", timeout_s=1.0)
    pid = scorer.host.pid
    os.kill(pid, signal.SIGSTOP)
    found = scorer.score(texts_of("a", "b" * 1_000_000), soon)  # more than a pipe takes
    assert reasons(found) == [1.0, 1.0], "the batch failed, and its texts were tried again"
    wait_until_gone(pid)


def test_a_function_that_can_no_longer_be_imported_drops_texts_and_raises_nothing(
    scorer_of, texts_of, soon, tmp_path, monkeypatch
):
    module = tmp_path / "passing_rewards.py"
    module.write_text("import os\ndef score(prompts, responses): os._exit(1)\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    scorer = scorer_of("passing_rewards:score")
    module.write_text("raise RuntimeError('gone')", encoding="utf-8")
    found = scorer.score(texts_of("a", "b", "c"), soon)
    assert reasons(found) == ["reward_error"] * 3
    assert "gone" in found[0].detail


# --- start and end


@pytest.mark.parametrize(
    ("function", "why"),
    [
        ("no_such_module:score", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("tiny_rewards:no_such_function", "AttributeError: module 'tiny_rewards' has no attribute 'no_such_function'"),
        ("tiny_rewards:NOT_CALLABLE", "of type int, which cannot be called"),
        ("broken_rewards:score", "RuntimeError: no licence for this model"),
        ("fatal_rewards:score", "exit code 9"),
    ],
)
def test_a_function_that_cannot_be_imported_is_named_at_the_start(scorer_of, function, why):
    with pytest.raises(ConfigError) as raised:
        scorer_of(function)
    assert f"callable {function!r} cannot be imported: " in str(raised.value)
    assert why in str(raised.value)


def test_an_import_that_does_not_end_is_ended(scorer_of):
    before = set(psutil.Process().children())
    with pytest.raises(ConfigError, match=r"'slow_rewards:score' cannot be imported: no answer within 1 s"):
        scorer_of("slow_rewards:score", start_timeout_s=1.0)
    assert set(psutil.Process().children()) <= before


@pytest.mark.parametrize("response", ["a", "hang"])
def test_closing_ends_the_process(scorer_of, texts_of, response):
    scorer = scorer_of("tiny_rewards:by_the_text")
    pid = scorer.host.pid
    scorer.score(texts_of(response), time.monotonic() + 1.0)
    scorer.close()
    wait_until_gone(pid)


@pytest.mark.parametrize("doing", ["nothing", "hang", "backtrack"])
def test_the_process_dies_with_its_parent(doing, tmp_path):
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).with_name("callables"))!r})
from common.scorer_config import FunctionScorerConfig
from reward_service.function_scorer import FunctionScorer
from reward_service.scorers import Text
scorer = FunctionScorer(FunctionScorerConfig(callable="tiny_rewards:marked"))
scorer.start()
print(scorer.host.pid, flush=True)
if {doing!r} != "nothing":
    scorer.score([Text({str(tmp_path / "mark")!r}, {doing!r}, "")], time.monotonic() + 600)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        pid = int(parent.stdout.readline())
        assert psutil.Process(pid).ppid() == parent.pid
        end = time.monotonic() + DEADLINE_S
        while doing != "nothing" and not (tmp_path / "mark").exists():
            assert time.monotonic() < end
            time.sleep(0.02)
        parent.send_signal(signal.SIGKILL)
        parent.wait(DEADLINE_S)
        wait_until_gone(pid)
    finally:
        parent.kill()
        parent.stdout.close()


def test_the_process_ends_when_nobody_can_ask_it_any_more_even_while_it_hangs(tmp_path):
    host = ROOT / "reward_service" / "function_host.py"
    command = [sys.executable, str(host), "tiny_rewards:marked", str(os.getpid())]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        process.stdin.write(json.dumps({"path": sys.path, "arguments": {}}) + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == {"ready": True}
        request = {"prompts": [str(tmp_path / "mark")], "responses": ["hang"]}
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.close()
        assert process.wait(DEADLINE_S) == 0
    finally:
        process.kill()
        process.stdout.close()


def test_a_probe_names_the_scorer_that_does_not_answer(scorer_of, mixture_of):
    assert mixture_of(scorer_of("tiny_rewards:by_the_text")).probe() == {}, "a function need not repeat itself"
    with pytest.raises(
        MemberFailedError, match=r"the probe text 'This film .*' cannot be scored: reward_shape: scorer mine: .*one_"
    ):
        mixture_of(scorer_of("tiny_rewards:one_number")).probe()
