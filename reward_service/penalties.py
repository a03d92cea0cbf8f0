"""Ready-made functions for scorers of type `function`, as `callable = "reward_service.penalties:repetition"`.

Each gives 0 where nothing is wrong and falls to -1 with what is, so that its weight in the mixture is positive and says
what the worst costs. Parameters come from the scorer's `arguments`. Run in the process of `function_host.py`, so this
file imports the standard library, and what reads a tokenizer only where one is asked for.

Written as `0.0 - x`, for a negative zero would be shown as -0.
"""

import functools
from collections.abc import Callable
from pathlib import Path


def length(
    prompts: list[str],
    responses: list[str],
    *,
    fewest: int = 0,
    most: int | None = None,
    margin: int = 10,
    tokenizer: str | None = None,
) -> list[float]:
    """0 from `fewest` to `most`, and linearly down to -1 over `margin` further on either side, and no lower.

    With `most` = L_max - L_cache and `margin` = L_cache the upper side is the soft overlong punishment of DAPO
    (arXiv:2503.14476, eq. 13).

    Args:
        prompts: not looked at.
        responses: what is measured.
        fewest: shorter responses are too short.
        most: longer ones are too long; None: none is.
        margin: lengths from the first that costs something to the first that costs all; 0: each costs all at once.
        tokenizer: folder or hub name of a tokenizer (`tokenizer.json`), in whose tokens lengths are; special tokens,
            as EOS, do not count. None: in words, which are what stands between spaces.

    Raises:
        ValueError: numbers that make no sense, or a tokenizer that cannot be loaded.
    """
    if fewest < 0 or margin < 0 or (most is not None and most < fewest):
        got = f"fewest={fewest}, most={most}, margin={margin}"
        raise ValueError(f"got {got}; needed is 0 <= fewest <= most, and margin >= 0")
    measure = _words if tokenizer is None else _counter(tokenizer)
    return [0.0 - _share(_beyond(measure(response), fewest, most), margin) for response in responses]


def repetition(prompts: list[str], responses: list[str], *, ngram_words: int = 3) -> list[float]:
    """Minus the share of word n-grams that stood in the response before.

    With n = 2, `good film good film good film` has five pairs: two are new and three come again, so -3/5. Upper and
    lower case are the same; a response of fewer words than n has 0.

    Args:
        prompts: not looked at: what the response takes from its prompt is no repetition.
        responses: what is measured.
        ngram_words: n.

    Raises:
        ValueError: n is below 1.
    """
    if ngram_words < 1:
        raise ValueError(f"ngram_words={ngram_words} must be at least 1")
    return [0.0 - _repeated(response.lower().split(), ngram_words) for response in responses]


def non_ascii(prompts: list[str], responses: list[str], *, allowed: str = "") -> list[float]:
    """Minus the share of characters beyond ASCII.

    Args:
        prompts: not looked at.
        responses: what is measured; an empty one has 0.
        allowed: characters that count as ASCII, as in "äöüß–’".
    """
    return [
        0.0 - sum(not c.isascii() and c not in allowed for c in response) / max(1, len(response))
        for response in responses
    ]


def empty(prompts: list[str], responses: list[str]) -> list[float]:
    """-1 where a response holds no letter and no digit, else 0."""
    return [0.0 if any(c.isalnum() for c in response) else -1.0 for response in responses]


def _beyond(size: int, fewest: int, most: int | None) -> int:
    """By how much a length is outside of the range."""
    return max(fewest - size, 0 if most is None else size - most, 0)


def _share(beyond: int, margin: int) -> float:
    return min(1.0, beyond / margin) if margin else float(beyond > 0)


def _repeated(words: list[str], n: int) -> float:
    ngrams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def _words(text: str) -> int:
    return len(text.split())


@functools.cache
def _counter(tokenizer: str) -> Callable[[str], int]:
    """Counts tokens; the tokenizer is loaded once in the life of the process."""
    from tokenizers import Tokenizer

    file = Path(tokenizer, "tokenizer.json")
    if Path(tokenizer).is_dir() and not file.is_file():
        raise ValueError(f"tokenizer={tokenizer!r} holds no tokenizer.json; name a folder that does, or leave it out")
    loaded = Tokenizer.from_file(str(file)) if file.is_file() else Tokenizer.from_pretrained(tokenizer)
    loaded.no_truncation()
    loaded.no_padding()
    return lambda text: len(loaded.encode(text, add_special_tokens=False).ids)
