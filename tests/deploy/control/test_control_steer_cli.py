"""`minichatgpt pause`, `resume`, `set`, `workers`, and all commands on a run that is named by its URL."""

import io
import sys
import threading

import pytest
from rich.console import Console

from common.errors import ConfigError, ControlError
from deploy.cli import main
from deploy.control.models import Workers
from deploy.control.run_status import MemberStatus, PoolStatus
from deploy.control.steer_cli import parse_settings
from deploy.control.target import checked_url, open_run
from deploy.control.view import print_workers


@pytest.fixture
def inside(monkeypatch, capsys):
    """Runs the command in this process; returns exit code, output and errors."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["minichatgpt", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def command(inside, served):
    """Runs a command on the served run."""
    return lambda verb, *arguments: inside(verb, "tiny", *arguments, "--runs", str(served.folder.parent))


# --- pause and resume


def test_pause_says_that_it_is_asked_for_and_passes_on_the_reason(command, served):
    code, shown, _ = command("pause", "--reason", "lunch")
    assert (code, shown) == (0, "tiny will stand still once the running update is done\n")
    assert ("pause", "lunch") in served.run.calls


def test_pause_can_wait_until_the_run_stands_still(command, served):
    def stand_still():
        while served.run.pause_state != "asked":
            pass
        served.run.pause_state = "paused"

    standing = threading.Thread(target=stand_still, daemon=True)
    standing.start()
    code, shown, _ = command("pause", "--wait", "--timeout", "60")
    assert (code, shown) == (0, "tiny stands still after update 3; `minichatgpt resume` lets it go on\n")


def test_pause_waits_no_longer_than_it_may(command):
    code, _, message = command("pause", "--wait", "--timeout", "0")
    assert code == 1
    assert "tiny is not there within 0 s: pause is asked, and it does collect; the order stands" in message


def test_pause_is_not_waited_for_where_somebody_resumes_or_the_run_ends(command, served, monkeypatch):
    monkeypatch.setattr(type(served.run), "pause", lambda run, reason: run.status())
    assert "somebody else has resumed it" in command("pause", "--wait")[2]
    over = served.run.status().model_copy(update={"stage": "evaluate", "step": None})
    with monkeypatch.context() as later:
        later.setattr(type(served.run), "status", lambda run: over)
        assert "tiny does not pause any more: PPO is over" in command("pause", "--wait")[2]
    served.run.stopped = "Ctrl-C"
    assert "tiny is ending: Ctrl-C" in command("pause", "--wait")[2]


def test_resume_says_whether_there_was_a_pause(command, served):
    assert command("resume")[1] == "tiny was not paused\n"
    served.run.pause_state = "paused"
    assert command("resume", "--wait")[1] == "tiny goes on\n"
    assert served.run.pause_state == "none"


# --- set


def test_set_shows_what_was_and_what_will_be(command, served):
    code, shown, _ = command("set", "kl_target=3", "learning_rate=1e-4", "--reason", "it drifts")
    assert code == 0
    assert shown == "learning_rate 0.001 → 0.0001\nkl_target 6 → 3\nin force from the next update on\n"
    (wanted,) = [call[1] for call in served.run.calls if call[0] == "change"]
    assert (wanted.changes(), wanted.reason) == ({"kl_target": 3.0, "learning_rate": 1e-4}, "it drifts")


def test_set_says_what_is_so_already(command, served):
    assert command("set", "kl_target=6")[1] == "kl_target is 6 already\nnothing changes\n"
    both = command("set", "kl_target=6", "learning_rate=1e-4")[1]
    assert both == "learning_rate 0.001 → 0.0001\nkl_target is 6 already\nin force from the next update on\n"


def test_what_the_run_does_not_have_is_refused_in_its_words_and_noted_as_refused(command, served):
    code, shown, message = command("set", "kl_coef=0.1")
    assert (code, shown) == (1, "")
    assert "kl_coef is of a fixed coefficient, and this run's is adaptive" in message
    order, refusal = served.run.notes
    assert order == "PATCH /v1/run/settings from 127.0.0.1"
    assert refusal.startswith(f"{order} refused: ")
    assert refusal.endswith("kl_coef is of a fixed coefficient, and this run's is adaptive")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to change; give temperature, learning_rate, kl_target or kl_coef"),
        (["temperatur=1"], "did you mean 'temperature'\\? legal settings are temperature, learning_rate, kl_"),
        (["reason=1"], "legal settings are"),
        (["temperature=hot"], "temperature wants a number, got 'hot'; write temperature=0.9"),
        (["temperature"], "temperature wants a number, got no value"),
        (["temperature=1", "temperature=2"], "given twice"),
        (["temperature=0"], "temperature: Input should be greater than 0 \\(got 0.0\\)"),
        (["temperature=nan"], "temperature: Input should be"),
        (["kl_target=inf"], "kl_target: Input should be"),
    ],
)  # fmt: skip
def test_what_cannot_be_set_says_what_can(words, said):
    with pytest.raises(ConfigError, match=said):
        parse_settings(words, "")


# --- workers


def test_workers_shows_what_each_does_and_holds(command, served, monkeypatch):
    member = MemberStatus(slot="worker-0", state="active", busy_fraction=0.75, tokens_per_s=1234.0, rss_bytes=3 << 28)
    real = type(served.run)._pool

    def pool(run, name, target):
        return real(run, name, target).model_copy(update={"members": (member,)} if name == "worker" else {})

    monkeypatch.setattr(type(served.run), "_pool", pool)
    code, shown, _ = command("workers")
    assert code == 0
    for part in ("Rollout workers: 2 of 2 active", "Reward replicas: 1 of 1 active", "75%", "1,234"):
        assert part in shown


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_narrow_console_has_fewer_columns_and_none_that_are_broken(width):
    member = MemberStatus(
        slot="worker-12", state="active", node="d3e5cfa5", pid=1234567, weights="1.123", weights_age_s=187.0,
        busy_fraction=1.0, tokens_per_s=12345.0, rss_bytes=5 << 30, calls_held=12, restarts=3, heartbeat_age_s=0.5,
    )  # fmt: skip
    pool = PoolStatus(target=1, active=1, members=(member,))
    console = Console(file=io.StringIO(), width=width)
    print_workers(Workers(pools={"rollout": pool}), console)
    _, heading, row = console.file.getvalue().splitlines()
    assert ("node" in heading.split()) == (width == 200)
    for part in ("worker-12", "active", "1.123", "12,345", "100%"):
        assert part in row.split()
    assert {"slot", "state", "weights", "tokens/s", "busy", "restarts"} <= set(heading.split())


def test_workers_as_json_is_what_the_run_says(command, served):
    _, shown, _ = command("workers", "--json")
    assert Workers.model_validate_json(shown).pools == served.run.status().pools


# --- by URL


def test_a_run_is_reached_by_its_url_with_a_token_of_any_source(inside, served, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    held = tmp_path / "held.token"
    held.write_text(f"{served.token}\n", encoding="ascii")
    at = ("--url", served.url)
    assert inside("status", *at)[0] == 0
    assert "needs its token" in inside("resume", *at)[2]
    assert inside("resume", *at, "--token", served.token)[0] == 0
    assert inside("set", "temperature=0.9", *at, "--token-file", str(held))[0] == 0
    assert "may only read" in inside("resume", *at, "--token", served.read_token)[2]
    monkeypatch.setenv("MINICHATGPT_URL", served.url + "/")
    monkeypatch.setenv("MINICHATGPT_TOKEN", served.token)
    assert inside("scale", "--rollout-workers", "3")[0] == 0
    assert inside("set", "temperature=0.8")[0] == 0
    assert served.run.workers == 3
    assert served.run.settings.temperature == 0.8


def test_a_run_that_is_named_is_meant_whatever_the_environment_says(command, monkeypatch):
    monkeypatch.setenv("MINICHATGPT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("MINICHATGPT_TOKEN", "of-another-run")
    assert command("resume")[0] == 0


def test_an_end_is_waited_for_at_a_url(inside, serve):
    with serve() as served:
        client = open_run(None, served.folder.parent, url=served.url, token=served.token)
        assert not client.is_over()
    assert client.is_over()
    with pytest.raises(ControlError, match="cannot be reached"):
        client.status()


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ({}, "no run is named; give its name or folder, or --url URL"),
        ({"run": "tiny", "url": "http://127.0.0.1:1"}, "two runs are named"),
        ({"url": "http://127.0.0.1:1", "token": "a", "token_file": "b"}, "both give a token"),
        ({"url": "http://127.0.0.1:1", "token": "a\nb"}, "the token holds a space, a line break"),
    ],
)
def test_a_command_names_one_run_and_one_token(tmp_path, named, said):
    run = named.pop("run", None)
    with pytest.raises(ConfigError, match=said) as raised:
        open_run(run, tmp_path, **named, environ={})
    assert "a\nb" not in str(raised.value)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:9464", "ftp://host", "http://", "http://host:port", "http://host/?a=1", "http://[::1"]
)
def test_what_is_no_url_is_refused(url):
    with pytest.raises(ConfigError, match="--url"):
        checked_url(url)


def test_a_url_with_a_password_is_refused_without_showing_it():
    with pytest.raises(ConfigError) as raised:
        checked_url("http://user:secret@host")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("verb", ["status", "workers", "scale", "pause", "resume", "checkpoint", "stop", "set"])
def test_every_verb_has_examples_and_warns_of_tokens_on_the_command_line(inside, verb):
    code, shown, _ = inside(verb, "--help")
    assert code == 0
    words = " ".join(shown.replace("│", " ").split())
    assert f"minichatgpt {verb} demo" in words
    assert "sees it" in words
    assert "--token-file" in words
