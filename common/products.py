"""Products of a linear layer on CPUs, by whichever library computes them faster there.

torch multiplies by MKL, which oneDNN outruns on processors of another maker. The choice hangs on processor and shape
alone, so that a run that is resumed on a like machine rounds alike.

Legend: N rows, I and O widths of a layer's input and output; its weight is [O, I]. Of a head: H width, V vocabulary.
"""

import functools
from pathlib import Path

import torch
from torch import Tensor

CPUINFO = Path("/proc/cpuinfo")
FOREIGN = "AuthenticAMD"
"""Maker of processors on which oneDNN was found to be faster."""
ROWS, LARGE = 64, 1 << 24
"""oneDNN compiles each product anew for another number of rows, which takes a millisecond and half a megabyte that
stays: it gets multiples of so many rows, and products of so many multiplications at least."""
LONG = 4096
"""A side that is longer, as the vocabulary's, is cut into pieces of so many, which stay in the caches."""


@functools.cache
def has_faster_onednn() -> bool:
    """Whether this is a processor on which torch's own products are the slower ones, and oneDNN's are to be had."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        if FOREIGN not in CPUINFO.read_text(encoding="utf-8"):
            return False
        _by_onednn(torch.ones(2, 3), torch.ones(4, 3))
    except (OSError, AttributeError, RuntimeError):  # the operation is no part of torch's public interface
        return False
    return True


def project(rows: Tensor, weight: Tensor, *, plus: Tensor | None = None, any_order: bool = False) -> Tensor:
    """Rows · weight', [N, I] and [O, I] to [N, O]: a layer's output, or with weight' the gradient by its input.

    Args:
        rows: in float32 or float64, as the weight.
        weight: of any strides.
        plus: [N, O], added; stays as it is.
        any_order: the result may lie column by column in memory, which MKL is faster at where O is large.
    """
    if _comes_again(len(rows), weight) and _has_both(rows):
        product = _by_onednn(rows, weight)
        return product if plus is None else product.add_(plus)
    if plus is not None:
        return torch.addmm(plus, rows, weight.t())
    return torch.mm(weight, rows.t()).t() if any_order else torch.mm(rows, weight.t())


def gradient_by_weight(by_output: Tensor, rows: Tensor) -> Tensor:
    """by_output' · rows, [N, O] and [N, I] to [O, I]: by MKL everywhere, in pieces where oneDNN does the rest."""
    if by_output.shape[1] <= LONG or not _has_both(rows):
        return torch.mm(by_output.t(), rows)
    gradient = rows.new_empty(by_output.shape[1], rows.shape[1])
    for piece, part in zip(torch.split(gradient, LONG), torch.split(by_output, LONG, dim=1), strict=True):
        torch.mm(part.t(), rows, out=piece)
    return gradient


def gradient_by_states(by_logits: Tensor, weight: Tensor) -> Tensor:
    """by_logits · weight, [N, V] and [V, H] to [N, H], which may lie column by column in memory.

    Where V is long, a sum over pieces of the transposed product, at which even MKL is faster than oneDNN at the whole.
    """
    if not _has_both(by_logits):
        return torch.mm(by_logits, weight)
    columns, matrices = torch.split(by_logits.t(), LONG), torch.split(weight.t(), LONG, dim=1)
    total = torch.mm(matrices[0], columns[0])
    for matrix, column in zip(matrices[1:], columns[1:], strict=True):
        total.addmm_(matrix, column)
    return total.t()


def _by_onednn(rows: Tensor, weight: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
    return product


def _has_both(rows: Tensor) -> bool:
    """Whether these could be multiplied by either library, and which one is the faster differs."""
    return rows.dtype == torch.float32 and has_faster_onednn()


def _comes_again(num_rows: int, weight: Tensor) -> bool:
    """Whether a product is large, and of a number of rows as batches of equal texts have it, not ragged ones."""
    return num_rows % ROWS == 0 and num_rows * weight.numel() >= LARGE
