"""Logits only where they are wanted: a causal language model's own forward, its output head applied to chosen states.

Not a head of its own: what a model does before and after its output layer, as scaling or soft-capping its logits, it
does to these. Used by `common/modeling.py` and by the reference (at response tokens).

Legend: B sequences, T tokens of a padded sequence, n chosen states, H width, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel


@contextmanager
def head_at(policy: PreTrainedModel, rows: Tensor, positions: Tensor) -> Iterator[list[Tensor]]:
    """While this is open, a forward of the policy computes logits of the chosen states only: [1, n, V] not [B, T, V].

    Args:
        policy: whose output head is a module of its own.
        rows: [n] int64, 0 … B - 1.
        positions: [n] int64, 0 … T - 1.

    Yields:
        A list into which a forward puts all states before the head, [B, T, H]; it stays empty if the model does not
        call its head, and the logits are then of all positions.
    """
    seen: list[Tensor] = []
    head = policy.get_output_embeddings()

    def narrow(_: object, arguments: tuple[Any, ...]) -> tuple[Tensor]:
        seen.append(arguments[0])
        return (arguments[0][rows, positions][None],)

    handle = head.register_forward_pre_hook(narrow) if head is not None else None
    try:
        yield seen
    finally:
        if handle is not None:
            handle.remove()
