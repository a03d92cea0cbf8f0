"""What a replay found, in the terminal: many updates that are the same are one line."""

import io

from rich.console import Console

from deploy.replay.result import LargestDifference, Replay, UpdateReplay, compare_metrics
from deploy.replay.view import MAX_DIFFERENT, print_replay


def update(number, *, recomputed=1.0, weights="same", tensors=None):
    metrics = compare_metrics({"entropy": 1.0}, {"entropy": recomputed})
    return UpdateReplay(update=number, metrics=metrics, weights=weights, weights_hash="00", tensors=tensors)


def shown(*updates):
    """Rows of the first table, as words."""
    console = Console(file=io.StringIO(), width=100)
    print_replay(Replay.of("tiny", "policy before PPO", 0, updates), console)
    lines = console.file.getvalue().splitlines()
    end = next(number for number, line in enumerate(lines) if line.endswith("difference") and number > 1)
    return [line.split() for line in lines[2:end]]


def test_updates_that_are_the_same_are_one_line_with_the_checkpoints_that_tell_so_too():
    same = LargestDifference(name="", difference=0.0)
    updates = [update(number, tensors=same if number % 50 == 0 else None) for number in range(1, 1201)]
    assert shown(*updates) == [["1", "–", "1200", "same", "0", "0,", "each", "of", "24"]]
    assert shown(update(7)) == [["7", "same", "0", "–"]]


def test_updates_that_differ_are_told_one_by_one_up_to_a_limit_and_apart_from_the_others():
    updates = [update(1), update(2), *(update(number, recomputed=1.5, weights="differ") for number in range(3, 20))]
    first, *differing, rest = shown(*updates)
    assert first == ["1", "–", "2", "same", "0", "–"]
    assert [row[0] for row in differing] == [str(number) for number in range(3, 3 + MAX_DIFFERENT)]
    assert differing[0] == ["3", "differ", "0.5", "(entropy)", "–"]
    assert rest[:4] == ["…", "5", "more", "that"]
