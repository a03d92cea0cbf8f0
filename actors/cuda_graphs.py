"""Steps of decoding recorded once and replayed: on a GPU, launching small kernels one by one takes longer than they do.

A graph reads and writes the same memory in every replay, so it serves one number of rows and one width, and lasts as
long as cache and weights stay where they are. Used by `llama_decoder.py` on CUDA only, and never yet run there: no
machine of this project's tests has a GPU.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Compute = Callable[[Sequence[Tensor]], Tensor]


class CUDAGraphs:
    """Recorded computations by their sizes."""

    def __init__(self) -> None:
        self._recorded: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]] = {}

    def forget(self) -> None:
        """What was recorded reads memory that is used no more."""
        self._recorded.clear()

    def run(self, sizes: tuple[int, int], inputs: Sequence[Tensor], compute: Compute) -> Tensor:
        """What `compute` makes of the inputs; valid until the next run of these sizes."""
        if sizes not in self._recorded:
            self._recorded[sizes] = _record(inputs, compute)
        graph, held, result = self._recorded[sizes]
        for mine, given in zip(held, inputs, strict=True):
            mine.copy_(given)
        graph.replay()
        return result


def _record(inputs: Sequence[Tensor], compute: Compute) -> tuple[torch.cuda.CUDAGraph, list[Tensor], Tensor]:
    held = [given.clone() for given in inputs]
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        compute(held)  # libraries make their workspaces in the first call, which must not be recorded
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = compute(held)
    return graph, held, result
