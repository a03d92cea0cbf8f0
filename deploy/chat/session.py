"""A talk: lines in, answers and notices out. Holds the history; knows neither terminal nor files.

`take` is given one line. What begins with a slash is a command, `//` begins a text with a slash, all else is answered.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
from pydantic import ValidationError

from actors.chat import Answer, Reply, Sampling, Speaker
from actors.conversation import Asked, ask_chat, ask_text, prompt_room
from common.chat import Message, plain_text
from common.errors import ConfigError, DataError, MiniChatGPTError
from common.records import Ids
from common.text import decode
from deploy.chat.run import RunView, Verdict


class Screen(Protocol):
    """Where a talk is shown."""

    def prompt(self, text: str) -> None:
        """A text that the next pieces go on with."""

    def piece(self, text: str) -> None:
        """A piece of an answer; pieces follow each other without a gap."""

    def end(self) -> None:
        """The answer has ended."""

    def note(self, text: str) -> None:
        """A remark that is no part of an answer."""

    def table(self, rows: Mapping[str, str]) -> None:
        """Names and what is to be said of them."""

    def verdict(self, verdict: Verdict) -> None:
        """What a run says of an answer."""

    def compare(self, sides: Sequence[tuple[str, Verdict | None]]) -> None:
        """The same answered before and after PPO, side by side, and what the run says of either."""


class ChatSession:
    """One talk with one policy.

    Args:
        speaker: the policy.
        screen: where it is shown.
        sampling: how answers are drawn at first.
        is_chat: by the chat template, with history; else each text is continued.
        view: of the run that the policy belongs to; None where it belongs to none.
    """

    def __init__(
        self, speaker: Speaker, screen: Screen, sampling: Sampling, *, is_chat: bool, view: RunView | None = None
    ) -> None:
        self.speaker = speaker
        self.screen = screen
        self.sampling = sampling
        self.is_chat = is_chat
        self.view = view
        self.system: str | None = None
        self.answer: Answer | None = None
        self._question: str | None = None
        self._history: list[Message] = []
        self._num_answers = 0
        self._commands: Mapping[str, tuple[Callable[[str], None], str]] = {
            "/help": (self._help, "this list"),
            "/retry": (self._retry, "answer the same once more, with other noise"),
            "/more": (self._more, "go on with the last answer"),
            "/clear": (self._clear, "forget the conversation; the system message stays"),
            "/system": (self._system, "/system TEXT: how the model shall behave; without TEXT: no system message"),
            "/set": (self._set, "/set temperature 0.7: a setting; without a name: all of them"),
            "/score": (self._score, "what reward model, judge and KL say of the last answer: what PPO sees"),
            "/compare": (self._compare, "/compare [TEXT]: the same, answered before and after PPO, with equal noise"),
            "/quit": (self._quit, "end; so do Ctrl-D, and Ctrl-C twice"),
        }

    def take(self, line: str) -> None:
        """Answer a line, or carry it out; what cannot be done is said, and the talk goes on.

        Raises:
            EOFError: the talk is to end.
            KeyboardInterrupt: it was interrupted; what had been said is kept.
        """
        text = line.strip()
        try:
            if text.startswith("//"):
                self.ask(text[1:])
            elif text.startswith("/"):
                name, _, rest = text.partition(" ")
                self._command(name)(rest.strip())
            elif text:
                self.ask(text)
        except MiniChatGPTError as error:
            self.screen.note(str(error))

    @property
    def messages(self) -> list[Message]:
        """The conversation so far, without the system message."""
        if self._question is None or self.answer is None or not self.answer.text:
            return self._history
        user: Message = {"role": "user", "content": self._question}
        return [*self._history, user, {"role": "assistant", "content": self.answer.text}]

    def ask(self, text: str) -> Answer:
        """Answer a text, piece by piece on the screen, and keep it.

        Raises:
            DataError: it cannot be asked; says why.
        """
        return self._ask(text, self.messages)

    def _ask(self, text: str, history: list[Message]) -> Answer:
        asked = self._prepare(text, history)
        if not self.is_chat:
            self.screen.prompt(decode(self.speaker.tokenizer, asked.ids))
        reply = self._begin(self.speaker, asked.ids, continues=not self.is_chat)
        self._question, self._history = text, history[asked.num_dropped :] if self.is_chat else []
        return self._say(reply, None)

    def _begin(self, speaker: Speaker, ids: Ids, *, continues: bool) -> Reply:
        self._num_answers += 1
        return speaker.answer(ids, self.sampling, self._num_answers, continues=continues)

    def _say(self, reply: Reply, earlier: Answer | None) -> Answer:
        """Show an answer and keep it, also where it is interrupted."""
        self.answer = earlier
        try:
            for piece in reply:
                self.screen.piece(piece)
        finally:
            self.screen.end()
            self.answer = answer = reply.answer() if earlier is None else _joined(earlier, reply.answer())
        if answer.ending == "length":
            self.screen.note(self._why_cut(answer))
        return answer

    def _why_cut(self, answer: Answer) -> str:
        limit = self.speaker.context_tokens
        if limit is not None and len(answer.prompt_ids) + len(answer.response_ids) >= limit:
            return f"cut: the model's context of {limit} tokens is full"
        return f"cut after max_tokens = {self.sampling.max_tokens}; /more goes on"

    def _prepare(self, text: str, history: Sequence[Message]) -> Asked:
        """The prompt; what is left out of it is said."""
        tokenizer, limit = self.speaker.tokenizer, self.speaker.context_tokens
        room = prompt_room(limit, self.sampling.max_tokens)
        if self.is_chat:
            before: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
            messages: list[Message] = [*before, *history, {"role": "user", "content": text}]
            asked = ask_chat(tokenizer, messages, room=room, context_tokens=limit)
        else:
            asked = ask_text(tokenizer, text, room=room)
        if asked.num_dropped:
            what = "messages are forgotten" if self.is_chat else "tokens of the text are left out"
            self.screen.note(f"the oldest {asked.num_dropped} {what}: the model's context has {limit} tokens")
        if asked.unknown:
            self.screen.note(f"not in the model's vocabulary, so it does not see: {', '.join(asked.unknown)}")
        return asked

    def _command(self, name: str) -> Callable[[str], None]:
        if name not in self._commands:
            raise ConfigError(f"{name} is no command; there are {', '.join(self._commands)}")
        return self._commands[name][0]

    def _help(self, _: str) -> None:
        self.screen.table({name: words for name, (_, words) in self._commands.items()})

    def _quit(self, _: str) -> None:
        raise EOFError

    def _retry(self, _: str) -> None:
        if self._question is None:
            raise DataError("nothing has been asked yet")
        self._ask(self._question, self._history)

    def _more(self, _: str) -> None:
        answer = self._last()
        ids = np.concatenate([answer.prompt_ids, answer.response_ids])
        if answer.ending == "stop":
            raise DataError("the last answer is complete; /retry asks for another one")
        if self.speaker.context_tokens is not None and len(ids) >= self.speaker.context_tokens:
            raise DataError(f"the model's context of {self.speaker.context_tokens} tokens is full")
        if not self.is_chat:
            self.screen.prompt(decode(self.speaker.tokenizer, ids))
        self._say(self._begin(self.speaker, ids, continues=True), answer)

    def clear(self) -> None:
        """Forget the conversation; the system message stays."""
        self._history, self.answer, self._question = [], None, None

    def _clear(self, _: str) -> None:
        self.clear()
        self.screen.note("forgotten")

    def set_system(self, text: str | None) -> None:
        """Say how the model shall behave; raises ConfigError where there is no conversation."""
        if not self.is_chat:
            raise ConfigError(
                "a system message needs a chat template, and here texts are continued; where it has one: --chat"
            )
        self.system = text

    def _system(self, text: str) -> None:
        self.set_system(text or None)
        self.screen.note(f"system message: {text}" if text else "no system message")

    def _set(self, rest: str) -> None:
        name, _, value = rest.replace("=", " ").partition(" ")
        if name:
            self.sampling = changed(self.sampling, name.replace("-", "_"), value.strip())
        if name.startswith("seed"):
            self._num_answers = 0
        self.screen.table({key: str(number) for key, number in self.sampling.model_dump().items()})

    def _score(self, _: str) -> None:
        self.screen.verdict(self.score())

    def score(self) -> Verdict:
        """What the run says of the last answer; raises ConfigError or DataError where it says nothing."""
        return self._run().score(self._last(), self.speaker, self._plain(self._question or "", self._history))

    def _plain(self, question: str, history: Sequence[Message]) -> str | None:
        """What scorers read as the prompt, as in `Prompt.text`."""
        return plain_text([*history, {"role": "user", "content": question}]) if self.is_chat else None

    def _compare(self, text: str) -> None:
        view = self._run()
        before = view.before()
        question, history = (text, self.messages) if text else (self._question, self._history)
        if question is None:
            raise DataError("nothing has been asked yet; give a text, as in /compare TEXT")
        asked = self._prepare(question, history)
        number = self._num_answers
        answers = []
        for speaker in (before, self.speaker):
            self._num_answers = number
            reply = self._begin(speaker, asked.ids, continues=not self.is_chat)
            for _ in reply:
                pass
            answers.append((reply.answer(), speaker))
        start = "" if self.is_chat else decode(self.speaker.tokenizer, asked.ids)
        plain = self._plain(question, history[asked.num_dropped :])
        self.screen.compare([(start + answer.text, self._verdict(answer, by, plain)) for answer, by in answers])

    def _verdict(self, answer: Answer, by: Speaker, plain: str | None) -> Verdict | None:
        """What the run says of an answer, or None, with a note, where it says nothing."""
        try:
            return self._run().score(answer, by, plain)
        except (ConfigError, DataError) as error:
            self.screen.note(str(error))
            return None

    def _run(self) -> RunView:
        if self.view is None:
            raise ConfigError("this model belongs to no run, so there is no reward model, judge or earlier policy")
        return self.view

    def _last(self) -> Answer:
        if self.answer is None:
            raise DataError("nothing has been answered yet")
        return self.answer


def changed(sampling: Sampling, name: str, value: str | float) -> Sampling:
    """The settings with another value for one of them; raises ConfigError with what is legal."""
    try:
        return Sampling.model_validate({**sampling.model_dump(), name: value})
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        message = problem["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{name} {value}: {message}") from error


def _joined(earlier: Answer, later: Answer) -> Answer:
    """An answer and how it went on."""
    ids = np.concatenate([earlier.response_ids, later.response_ids])
    return Answer(earlier.prompt_ids, ids, earlier.text + later.text, later.ending)
