"""Long histories in few rows: the newest in full, of older ones every k-th, k a power of two.

By numbers, not by places: who thins the same history later, or what is left of it, keeps some of the same rows and no
others. So the page, which keeps what it has and asks for what is new (`deploy/page/history.js` has the same rule), and
the server, which reads it anew for a page that was just opened, draw the same curve. Called by `run_folder/history.py`.
"""


def every(first: int, newest: int, *, most: int) -> tuple[int, int]:
    """How rows with the numbers first…newest are thinned to at most `most`: k, and the number from which all stay.

    A row stays if its number is that or higher, or a multiple of k.
    """
    whole_from = max(first, newest - most // 2 + 1)
    room = most - (newest - whole_from + 1)
    k = 1
    while _multiples(first, whole_from, k) > room:
        k *= 2
    return k, whole_from


def _multiples(first: int, end: int, k: int) -> int:
    """How many numbers from `first` to before `end` are multiples of k."""
    return max(0, (end - 1) // k - (first - 1) // k)
