"""Scoring functions for tests: the sound one, and one for each way to go wrong. Texts say what happens to them."""

import os
import re
import sys
import time
from pathlib import Path

NOT_CALLABLE = 3


def length(prompts: list[str], responses: list[str]) -> list[float]:
    """Letters of prompt and response, the prompt's as hundredths."""
    return [len(response) + len(prompt) / 100 for prompt, response in zip(prompts, responses, strict=True)]


def with_arguments(prompts, responses, *, bonus, words=()):
    """A bonus for each word that is wanted."""
    return [float(bonus * sum(response.split().count(word) for word in words)) for response in responses]


def picky(prompts, responses):
    """Cannot score responses of an even number of words; the probe text's has seven."""
    return [float(len(r)) if len(r.split()) % 2 else float("nan") for r in responses]


def hopeless(prompts, responses):
    """Scores what begins with a capital, as the probe text does and no text of `tiny`."""
    if not all(prompt[:1].isupper() for prompt in prompts):
        raise ValueError("nothing is good enough")
    return [1.0] * len(prompts)


def chatty(prompts, responses):
    """Prints by every way that leads to stdout, and reads stdin."""
    print('{"scores": [666.0]}', flush=True)
    sys.__stdout__.write("x" * 200_000 + "\n")
    os.write(1, b'{"scores": [667.0]}\n')
    assert sys.stdin.read() == ""
    return length(prompts, responses)


def by_the_text(prompts, responses):
    """Does what a response asks for; others score 1."""
    scores = []
    for response in responses:
        match response.strip():
            case "hang":
                while True:
                    time.sleep(3600)
            case "shout":
                while True:
                    print("still here")
            case "backtrack":
                re.match(r"(a+)+$", "a" * 50 + "b")  # for hours, and no other thread of Python runs meanwhile
            case "raise":
                raise KeyError("no such word")
            case "leave":
                sys.exit(3)
            case "die":
                print("the last words", file=sys.stderr, flush=True)
                os._exit(7)
            case "crash":
                os.abort()
            case "nan" | "inf" | "-inf" | "1e39":
                scores.append(float(response))
            case "none":
                scores.append(None)
            case "word":
                scores.append("high")
            case "too few":
                return scores
            case "too many":
                scores += [1.0, 1.0]
            case _:
                scores.append(1.0)
    return scores


def marked(prompts, responses):
    """Leaves a file, named by the prompt, before it does what the response asks for."""
    Path(prompts[0]).touch()
    return by_the_text(prompts, responses)


def one_number(prompts, responses):
    return 1.0


def a_word(prompts, responses):
    return "good"


def where(prompts, responses):
    """The process that scores."""
    return [float(os.getpid())] * len(responses)


class Counted:
    """Numbers of a library."""

    def __float__(self):
        return 2.5


def of_a_library(prompts, responses):
    return (Counted() for _ in responses)


def always_one(prompts, responses):
    """Right for one text by chance."""
    return [1.0]
