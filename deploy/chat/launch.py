"""What `minichatgpt chat` does after parsing: open the policy, then talk in the terminal, or answer one by one."""

import json
import secrets
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import transformers
from rich.console import Console

from actors.chat import Answer
from common.errors import ConfigError
from common.modeling import resolve_device
from deploy.chat.manner import Manner, manner_of
from deploy.chat.open import Opened, open_policy
from deploy.chat.run import RunView, speaker_of
from deploy.chat.session import ChatSession, changed
from deploy.chat.terminal import Terminal, read_line, talk
from deploy.run_folder.models import PolicyName


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """What the command line says."""

    name: str
    """Run or model."""
    runs: Path
    """Where run folders are."""
    model: PolicyName | None
    checkpoint: str | None
    prompts: tuple[str, ...]
    """To be answered; empty: lines from standard input, a terminal's as a talk."""
    as_json: bool
    with_score: bool
    is_chat: bool | None
    """A conversation, or texts that are continued; None: what the model was trained for."""
    system: str | None
    settings: Mapping[str, float]
    """Of Sampling, where given."""
    device: str
    environ: Mapping[str, str]


def launch_chat(request: ChatRequest) -> None:
    """Talk, or answer.

    Raises:
        ConfigError: the name, a setting or a prompt is not legal; says what is.
        KeyboardInterrupt: somebody had enough.
    """
    is_talk = not request.prompts and sys.stdin.isatty()
    if is_talk and (request.as_json or request.with_score):
        raise ConfigError("--json and --score need --prompt TEXT or lines from a pipe; in a talk there is /score")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    remarks = Console(stderr=not is_talk)
    with remarks.status("loading"):
        opened = open_policy(request.name, request.runs, model=request.model, checkpoint=request.checkpoint)
    manner = manner_of(opened, request.is_chat)
    screen = Terminal(StringIO() if request.as_json else sys.stdout, remarks)
    session = _session(request, opened, screen, is_chat=manner.is_chat)
    try:
        words = f"{request.name}: {opened.policy.words}"
        session.screen.note(words)
        if is_talk:
            session.screen.note(_greeting(session, manner))
            talk(session, read_line)
        else:
            lines = request.prompts or (line.rstrip("\n") for line in sys.stdin)
            answer_all(session, lines, request, words)
    finally:
        if session.view is not None:
            session.view.close()


def _session(request: ChatRequest, opened: Opened, screen: Terminal, *, is_chat: bool) -> ChatSession:
    policy, run = opened.policy, opened.run
    speaker = speaker_of(policy, resolve_device(request.device, 1.0))
    sampling = opened.sampling.model_copy(update={"seed": secrets.randbelow(2**31)})
    for name, value in request.settings.items():
        sampling = changed(sampling, name, value)
    view = None if run is None else RunView(run, policy, speaker, request.environ)
    session = ChatSession(speaker, screen, sampling, is_chat=is_chat, view=view)
    if request.system is not None:
        session.set_system(request.system)
    return session


def _greeting(session: ChatSession, manner: Manner) -> str:
    sampling = session.sampling
    how = "It answers" if session.is_chat else "It goes on with what you write"
    return (
        f"{how}{manner.why}: temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, "
        f"at most {sampling.max_tokens} tokens. /help lists the commands."
    )


def answer_all(session: ChatSession, prompts: Iterable[str], request: ChatRequest, words: str) -> None:
    """Answer each prompt by itself, to standard output; empty ones are passed over.

    Args:
        session: answers; its screen shows the answers where they are not wanted as JSON.
        prompts: texts.
        request: whether as JSON, and with scores.
        words: which policy it is, for the JSON.
    """
    for prompt in prompts:
        if not prompt.strip():
            continue
        session.clear()
        answer = session.ask(prompt.strip())
        verdict = session.score() if request.with_score else None
        if request.as_json:
            scores = {} if verdict is None else {"verdict": asdict(verdict)}
            line = {"prompt": prompt.strip(), **_numbers(session, answer), **scores, "policy": words}
            sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
            sys.stdout.flush()
        elif verdict is not None:
            session.screen.verdict(verdict)


def _numbers(session: ChatSession, answer: Answer) -> dict[str, Any]:
    return {
        "response": answer.text,
        "ending": answer.ending,
        "prompt_tokens": len(answer.prompt_ids),
        "response_tokens": len(answer.response_ids),
        **session.sampling.model_dump(),
    }
