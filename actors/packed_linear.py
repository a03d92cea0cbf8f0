"""A linear layer for inference, whose weights lie in memory as oneDNN's kernels read them, where that is available.

A copy of trained weights, to be loaded anew whenever they change. It learns nothing, and is no torch module. Made by
`llama_decoder.py`. At the shapes of decoding, some dozens of rows times a matrix, the packed product is up to twice as
fast as that of `F.linear`, which sorts the weights anew in every call.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

ROWS = 64
"""Rows for which the order of the weights is chosen; other numbers of rows work, and nearly as fast."""
PROBE_SHAPE = (ROWS, 96, 130)
PROBE_TOLERANCE = 1e-4


def why_not_packed(device: torch.device, dtype: torch.dtype) -> str:
    """Try a small product against `F.linear`: empty if packed weights serve here, else why they do not."""
    if device.type != "cpu" or dtype != torch.float32:
        return f"weights are packed in float32 on the CPU, not in {dtype} on {device.type}"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this torch has no oneDNN"
    rows, width, features = PROBE_SHAPE
    x = torch.linspace(-1, 1, rows * width).view(rows, width)
    weight = torch.linspace(-1, 1, features * width).sin().view(features, width)
    bias = torch.linspace(-1, 1, features)
    try:
        packed = _product(x, _pack(weight), bias)
    except (AttributeError, RuntimeError) as error:
        return f"oneDNN's packed product does not work here: {error}"
    gap = float((packed - linear(x, weight, bias)).abs().max())
    return "" if gap <= PROBE_TOLERANCE else f"oneDNN's packed product is {gap:.2g} off"


class PackedLinear:
    """y = x W' + b, with the weights of one or more layers on top of each other.

    Args:
        packs: whether weights are packed; else they are multiplied by `F.linear`.
    """

    def __init__(self, *, packs: bool) -> None:
        self._packs = packs
        self._weight: Tensor | None = None
        self._bias: Tensor | None = None

    def load(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        """Take on weights [N, K] each, and biases [N] or None.

        The only one of several that is neither packed nor stacked is not copied.
        """
        weight = weights[0] if len(weights) == 1 else torch.cat(tuple(weights))
        parts = [
            torch.zeros(len(w), dtype=w.dtype, device=w.device) if b is None else b
            for w, b in zip(weights, biases, strict=True)
        ]
        bias = None if all(b is None for b in biases) else torch.cat(parts)
        self._weight = _pack(weight) if self._packs else _kept(self._weight, weight)
        self._bias = None if bias is None else _kept(self._bias, bias)

    def __call__(self, x: Tensor) -> Tensor:
        """[M, K] to [M, N]."""
        assert self._weight is not None, "weights are loaded before the first product"
        if self._packs:
            return _product(x, self._weight, self._bias)
        return linear(x, self._weight, self._bias)


def _kept(held: Tensor | None, new: Tensor) -> Tensor:
    """The new values, in the memory that is held already: a CUDA graph reads the same addresses again."""
    return new if held is None else held.copy_(new)


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS)
    return packed


def _product(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return y
