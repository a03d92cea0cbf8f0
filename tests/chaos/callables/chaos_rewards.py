"""Scoring functions that go wrong for some texts: which ones follows from the text alone."""

import time


def _is_rare(response):
    return sum(map(ord, response)) % 23 == 0


def hangs(prompts, responses):
    """Hangs on a few responses for ever."""
    if any(map(_is_rare, responses)):
        time.sleep(3600)
    return [float(len(r)) / 10 for r in responses]


def raises(prompts, responses):
    """Raises on a few responses."""
    if any(map(_is_rare, responses)):
        raise ValueError("this text cannot be judged")
    return [float(len(r)) / 10 for r in responses]


def nan(prompts, responses):
    """Has no number for a few responses."""
    return [float("nan") if _is_rare(r) else float(len(r)) / 10 for r in responses]


def always_nan(prompts, responses):
    """Has no number for anything but the probe."""
    return [1.0 if len(responses) == 1 else float("nan") for _ in responses]
