"""A talk in the terminal: lines are read with readline, answers are shown as they come."""

import readline
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.chat.run import Verdict
from deploy.chat.session import ChatSession

PROMPT = "> "
AGAIN = "Ctrl-C once more ends the talk"


class Terminal:
    """Implements `Screen`: answers go to `out` as they come, all else to the console.

    Args:
        out: where answers are written.
        console: where remarks and tables are written.
    """

    def __init__(self, out: TextIO, console: Console) -> None:
        self._out = out
        self._console = console

    def prompt(self, text: str) -> None:
        """See `Screen`."""
        self.piece(text)

    def piece(self, text: str) -> None:
        """See `Screen`."""
        self._out.write(printable(text))
        self._out.flush()

    def end(self) -> None:
        """See `Screen`."""
        self.piece("\n")

    def note(self, text: str) -> None:
        """See `Screen`."""
        self._console.print(Text(printable(text), "yellow"), soft_wrap=True)

    def table(self, rows: Mapping[str, str]) -> None:
        """See `Screen`."""
        table = Table.grid(padding=(0, 2))
        for name, words in rows.items():
            table.add_row(Text(name, "bold"), Text(words))
        self._console.print(table)

    def verdict(self, verdict: Verdict) -> None:
        """See `Screen`."""
        self.table(in_words(verdict))

    def compare(self, sides: Sequence[tuple[str, Verdict | None]]) -> None:
        """See `Screen`."""
        table = Table(box=None, expand=True, pad_edge=False, padding=(0, 3, 1, 0))
        cells = []
        for title, (text, verdict) in zip(("before PPO", "after PPO"), sides, strict=True):
            table.add_column(Text(title, "dim"), ratio=1, overflow="fold")
            below = "" if verdict is None else f"\n{in_short(verdict)}"
            cells.append(Text.assemble(printable(text), (below, "dim")))
        table.add_row(*cells)
        self._console.print(table)


def in_words(verdict: Verdict) -> dict[str, str]:
    """Lines of a verdict, by name: the scorers' numbers, what PPO makes of them, and what PPO does not see."""
    words = {name: f"{number:+.3f}" for name, number in verdict.parts.items() if not name.endswith("_p_positive")}
    for name in words.keys() & {part.removesuffix("_p_positive") for part in verdict.parts.keys() - words.keys()}:
        words[name] += f"  {verdict.parts[f'{name}_p_positive']:.1%} positive"
    words["score"] = f"{verdict.score:+.3f}  what PPO maximises, less the KL penalty"
    words["KL to the policy before PPO"] = f"{verdict.kl_seq_sum:.2f} nats, {verdict.kl_token_mean:.3f} per token"
    if verdict.judge_p_positive is not None:
        words["judge"] = f"{verdict.judge_p_positive:.1%} positive  PPO never sees it"
    return words


def in_short(verdict: Verdict) -> str:
    """A verdict on one line, as in the report."""
    judge = "" if verdict.judge_p_positive is None else f" · judge {verdict.judge_p_positive:.1%}"
    return f"score {verdict.score:+.2f}{judge} · KL {verdict.kl_seq_sum:.1f}"


def printable(text: str) -> str:
    """The text without characters that would steer the terminal."""
    return "".join("\N{REPLACEMENT CHARACTER}" if _steers(letter) else letter for letter in text)


def _steers(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t"


def talk(session: ChatSession, read: Callable[[], str]) -> None:
    """Take lines until there are no more, or the talk is to end.

    Args:
        session: the talk.
        read: one line; raises EOFError where there are no more.

    Raises:
        KeyboardInterrupt: for the second time with nothing between.
    """
    was_interrupted = False
    while True:
        try:
            line = read()
            was_interrupted = False
            session.take(line)
        except EOFError:
            return
        except KeyboardInterrupt:
            if was_interrupted:
                raise
            was_interrupted = True
            session.screen.note(f"\n{AGAIN}")


def read_line() -> str:
    """A line from the terminal, with editing and history."""
    readline.set_auto_history(True)
    return input(PROMPT)
