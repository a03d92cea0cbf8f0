"""Ragged rows without padding: all tokens of a batch in one row, and rectangles only inside of attention.

Every linear layer, norm and activation then works on live tokens alone; attention, a few hundredths of the work at a
learner's lengths, sees each row by itself. It goes through transformers' attention interface, so that it holds for
every architecture that uses it and does not mix tokens elsewhere; `refusal` says which kinds of attention are not
rebuilt here, `PackedRows.of` tries the rest out, and says None where it does not hold. Used by `common/modeling.py`.

    rows     a a a · ·     packed   a a a b b b b b c c       positions   0 1 2 0 1 2 3 4 0 1
             b b b b b
             c c · · ·

Legend: B sequences, T tokens of the longest, N tokens of all, h heads, d width of a head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from common.trial import REFUSED, tolerance

_NAME = "packed_rows"
_REBUILT = frozenset({"full_attention", "sliding_attention"})
"""Kinds of layers, by transformers' names, whose attention `_attention` computes."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the tokens of ragged rows stand."""

    rows: Tensor
    """[N] int64, 0 … B - 1."""
    positions: Tensor
    """[N] int64, 0 … T - 1, within the row."""
    shape: tuple[int, int]
    """B and T."""

    @classmethod
    def of(cls, lengths: Tensor, width: int, num_tokens: int) -> "Layout":
        """Of rows of so many tokens."""
        rows = torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths, output_size=num_tokens)
        starts = lengths.cumsum(0) - lengths
        return cls(rows, torch.arange(num_tokens, device=lengths.device) - starts[rows], (len(lengths), width))

    def spread(self, packed: Tensor) -> Tensor:
        """[1, h, N, d] to [B, h, T, d], zeros at padding."""
        tokens = packed[0].transpose(0, 1)
        count = self.shape[0] * self.shape[1]
        wide = tokens.new_zeros(count, *tokens.shape[1:]).index_copy(0, self._places, tokens)
        return wide.view(*self.shape, *tokens.shape[1:]).transpose(1, 2)

    def gather(self, wide: Tensor) -> Tensor:
        """[B, T, h, d] to [1, N, h, d]."""
        return wide.flatten(0, 1).index_select(0, self._places)[None]

    @property
    def _places(self) -> Tensor:
        return self.rows * self.shape[1] + self.positions


def refusal(config: PretrainedConfig) -> str:
    """Why rows of this architecture are never packed; empty where it is worth a trial, whose two texts are too short to
    show what a mask does further on.
    """
    settings = config.get_text_config().to_dict()
    if settings.get("attention_chunk_size") is not None:
        return f"its attention sees chunks of {settings['attention_chunk_size']} tokens (attention_chunk_size)"
    if foreign := sorted(set(settings.get("layer_types") or ()) - _REBUILT):
        return f"its layers are of a kind that is not rebuilt here: {', '.join(foreign)} (layer_types)"
    return ""


class PackedRows:
    """A policy whose attention can be told where each row of a packed one begins.

    Args:
        policy: of an architecture that uses transformers' attention interface.
    """

    def __init__(self, policy: PreTrainedModel) -> None:
        self._policy = policy

    @classmethod
    def of(cls, policy: PreTrainedModel) -> "PackedRows | None":
        """What packs rows for this policy, if its architecture allows it."""
        if refusal(policy.config) or not policy.is_backend_compatible() or policy.config._attn_implementation != "sdpa":
            return None
        AttentionInterface.register(_NAME, _attention)
        packing = cls(policy)
        try:
            return packing if packing._is_like_padding() else None
        except REFUSED:
            return None

    @contextmanager
    def open(self) -> Iterator[None]:
        """While this is open, forwards of the policy take one packed row, and its `layout` as a keyword."""
        before = self._policy.config._attn_implementation
        try:
            self._policy.set_attn_implementation(_NAME)
            yield
        finally:
            self._policy.set_attn_implementation(before)

    @torch.no_grad()
    def _is_like_padding(self) -> bool:
        """Whether two short texts have the same logits packed and padded."""
        lengths = torch.tensor([3, 5], device=self._policy.device)
        ids = torch.arange(10, device=self._policy.device).view(2, 5) % self._policy.config.get_text_config().vocab_size
        layout = Layout.of(lengths, 5, 8)
        padded = self._policy(input_ids=ids, use_cache=False).logits[layout.rows, layout.positions]
        row = {"input_ids": ids[layout.rows, layout.positions][None], "position_ids": layout.positions[None]}
        with self.open():
            packed = self._policy(**row, use_cache=False, layout=layout).logits[0]
        return bool((packed - padded).abs().max() <= tolerance(padded.dtype) * padded.abs().max())


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    sliding_window: int | None = None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention of each row to itself, by the signature of transformers' interface; never a mask comes in."""
    width = layout.shape[1]
    mask = None
    if sliding_window is not None and sliding_window < width:
        ones = torch.ones(width, width, dtype=torch.bool, device=query.device)
        mask = ones.tril().triu(1 - sliding_window)[None, None]
    wide = (layout.spread(part) for part in (query, key, value))
    out, _none = sdpa_attention_forward(module, *wide, mask, scaling=scaling, is_causal=True)
    return layout.gather(out), None
