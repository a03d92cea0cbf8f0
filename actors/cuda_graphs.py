"""Steps of decoding recorded once and replayed: on a GPU, launching small kernels one by one takes longer than they do.

A graph reads and writes the same memory in every replay, so it serves one number of rows and one width, and lasts as
long as cache and weights stay where they are. Used by `llama_decoder.py` on CUDA only. Recording and replaying have
never run: no machine of this project's tests has a GPU, where only the choice of what is recorded and kept is tested.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_GRAPHS = 32
"""Kept at a time, as an estimate: each holds memory for the activations of its step, and took some steps to record."""

Compute = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True, slots=True)
class Recorded:
    """A computation, and where it reads and writes."""

    replay: Callable[[], None]
    held: list[Tensor]
    result: Tensor


def record(inputs: Sequence[Tensor], compute: Compute) -> Recorded:
    """Compute once to warm up and once to record; the values of the result come with the first replay."""
    held = [given.clone() for given in inputs]
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        compute(held)  # libraries make their workspaces in the first call, which must not be recorded
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = compute(held)
    return Recorded(graph.replay, held, result)


class CUDAGraphs:
    """Recorded computations by their sizes; beyond `most` of them the one that was not used for longest goes.

    Args:
        most: kept at a time.
        record: makes one.
    """

    def __init__(
        self, most: int = MOST_GRAPHS, *, record: Callable[[Sequence[Tensor], Compute], Recorded] = record
    ) -> None:
        self._most, self._record = most, record
        self._recorded: dict[tuple[int, int], Recorded] = {}

    def forget(self) -> None:
        """What was recorded reads memory that is used no more."""
        self._recorded.clear()

    def run(self, sizes: tuple[int, int], inputs: Sequence[Tensor], compute: Compute) -> Tensor:
        """What `compute` makes of the inputs; valid until the next run, which may give its memory away."""
        recorded = self._recorded.pop(sizes, None)
        if recorded is None:
            while len(self._recorded) >= self._most:
                del self._recorded[next(iter(self._recorded))]  # first, so that its memory serves the new one
            recorded = self._record(inputs, compute)
        self._recorded[sizes] = recorded  # behind all others: the order is that of their last use
        for mine, given in zip(recorded.held, inputs, strict=True):
            mine.copy_(given)
        recorded.replay()
        return recorded.result
