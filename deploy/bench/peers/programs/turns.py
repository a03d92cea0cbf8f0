"""The talk of a peer with whoever measures: it does one step when it is told to, and says how long each phase took.

    measurer ── "step" ──────────────────────────────────────────────────────────────────> standard input
    measurer <── {"versions": …} once, then {"total": 1.9, …} after each step ── standard output

Anything but "step", and the end of the input, end the program. What libraries print goes to stderr instead. Standard
library only.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

STEP = "step"


class Turns:
    """A peer's side.

    Args:
        asked: where steps are asked for.
        answers: where they are answered.
    """

    def __init__(self, asked: IO[str], answers: IO[str]) -> None:
        self._asked = asked
        self._answers = answers
        self._seconds: dict[str, float] = {}
        self._start = 0.0

    @classmethod
    def of_this_process(cls) -> "Turns":
        """On standard input and output, of which the latter is then nobody else's."""
        answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        return cls(sys.stdin, answers)

    def ready(self, **versions: str) -> None:
        """Say that everything is loaded, and what."""
        self._say({"versions": versions})

    def wait(self) -> None:
        """Return once a step is asked for, from which on time counts.

        Raises:
            SystemExit: no more steps are wanted.
        """
        if self._asked.readline().strip() != STEP:
            raise SystemExit(0)
        self._seconds = {"generation": 0.0, "forward": 0.0}
        self._start = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what is done inside as `generation` or `forward`."""
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Count seconds as of a phase."""
        self._seconds[name] += seconds

    def seconds(self, name: str) -> float:
        """Counted so far in this step."""
        return self._seconds[name]

    def done(self, *, score: float, kl: float | None) -> None:
        """Answer; what no phase took was the update.

        Args:
            score: mean reward of the step's samples.
            kl: mean over samples of the KL to the reference, summed over the response, in nats; None: not known.
        """
        total = time.perf_counter() - self._start
        update = total - sum(self._seconds.values())
        self._say(self._seconds | {"update": update, "total": total, "score": score, "kl": kl})

    def run(self, step: Callable[[int], tuple[float, float]]) -> None:
        """Steps as they are asked for, of a peer that can be stepped from outside: number in, score and KL out."""
        number = 0
        while True:
            self.wait()
            score, kl = step(number)
            self.done(score=score, kl=kl)
            number += 1

    def _say(self, answer: object) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()
