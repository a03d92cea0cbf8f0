"""A reward that a policy can get by saying the same again and again."""

import itertools


def repeated(prompts: list[str], responses: list[str]) -> list[float]:
    """How many words of each response are the one before."""
    words = [response.split() for response in responses]
    return [float(sum(a == b for a, b in itertools.pairwise(w))) for w in words]
