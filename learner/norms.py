"""The length of all gradients together. Called by `ppo.py`."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """[] 2-norm of all numbers of all tensors; NaN or infinite where one of them, or its square, is.

    On a CPU by dot products of float32 tensors with themselves, added up in float64: they use all threads, where
    torch's own norm uses one, and lose less to rounding.

    Args:
        tensors: of any shapes; none: 0.
    """
    if not all(map(_is_plain, tensors)):
        return torch.nn.utils.get_total_norm(tensors)
    return _root([_square(t) for t in tensors])


class GradientNorm:
    """`total_norm` of gradients, each looked at as soon as autograd has made it and the processor's caches hold it:
    read from memory at the end, they took 2 to 3 % of an optimizer step.

    Args:
        parameters: whose gradients nobody changes but autograd, or operations that it can see; those of others are read
            when they are asked for.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._squares: dict[int, tuple[tuple[int, int], Tensor]] = {}  # by id: a reference would keep them for ever
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._look)  # type: ignore[no-untyped-call]

    def of(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        """[] 2-norm of their gradients as they are now; those without one are left out."""
        present = [(p, p.grad) for p in parameters if p.grad is not None]
        if not all(_is_plain(gradient) for _, gradient in present):
            return total_norm([gradient for _, gradient in present])
        return _root([self._square_of(parameter, gradient) for parameter, gradient in present])

    def _look(self, parameter: nn.Parameter) -> None:
        if parameter.grad is not None and _is_plain(parameter.grad):
            self._squares[id(parameter)] = _state(parameter.grad), _square(parameter.grad)

    def _square_of(self, parameter: nn.Parameter, gradient: Tensor) -> Tensor:
        state, square = self._squares.get(id(parameter), (None, None))
        return square if square is not None and state == _state(gradient) else _square(gradient)


def _state(gradient: Tensor) -> tuple[int, int]:
    """Another one where the gradient is another one, or was changed."""
    return gradient.data_ptr(), gradient._version


def _is_plain(tensor: Tensor) -> bool:
    is_dense = tensor.layout == torch.strided and tensor.is_contiguous()
    return is_dense and tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _square(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    return torch.dot(flat, flat)


def _root(squares: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(squares)).double().sum().sqrt() if squares else torch.zeros(())
