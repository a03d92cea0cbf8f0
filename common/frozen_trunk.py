"""The frozen layers of a policy of which only the top learns: computed once per batch, then put in their own place.

The model's own forward runs all the same, with embeddings, positions and masks as ever, so that this works for every
architecture whose layers take the states as their first argument and return them, alone or first in a tuple;
`FrozenTrunk.of` tries it out, and says None where it does not hold. Used by `learner/passes.py`, which keeps the
states.

    pass for old logprobs    embeddings ▶ layer 1 … k ──▶ layer k + 1 … ▶ norm ▶ head
                                                     └─▶ states, kept
    every pass after it                    states ──▶ layer k + 1 … ▶ norm ▶ head

Legend: B sequences, T tokens of a padded sequence, H width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.modeling import decoder_layers
from common.trial import REFUSED, tolerance


class _Through(nn.Module):
    """In the place of a layer: what comes in goes out, in the form in which the layer returns it."""

    def __init__(self) -> None:
        super().__init__()
        self._others: int | None = None
        """Further members of the tuple that a layer returns; None: it returns the states alone."""

    def imitate(self, _: nn.Module, __: object, returned: object) -> None:
        """A forward hook of a layer: have its form."""
        self._others = len(returned) - 1 if isinstance(returned, tuple) else None

    def forward(self, states: Tensor, *_: object, **__: object) -> Tensor | tuple[Tensor | None, ...]:
        """The states as they came."""
        return states if self._others is None else (states, *[None] * self._others)


class FrozenTrunk:
    """The layers below the first trained one.

    Args:
        policy: its lowest layers are frozen.
        trainable_layers: top layers that are not.
    """

    def __init__(self, policy: PreTrainedModel, trainable_layers: int) -> None:
        self._layers = decoder_layers(policy)
        self._cut = len(self._layers) - trainable_layers
        self._through = _Through()

    @classmethod
    def of(cls, policy: PreTrainedModel, trainable_layers: int) -> "FrozenTrunk | None":
        """A trunk of at least one layer that can be skipped in this architecture; None where there is none."""
        trunk = cls(policy, trainable_layers)
        try:
            return trunk if trunk._cut > 0 and trunk._is_skipped_rightly(policy) else None
        except REFUSED:
            return None

    @contextmanager
    def watched(self) -> Iterator[list[Any]]:
        """Yields a list into which every forward puts the states [B, T, H] that leave the trunk."""
        seen: list[Any] = []

        def note(states: Any) -> Any:
            seen.append(states)
            return states

        with self._at_the_cut(note):
            yield seen

    @contextmanager
    def replaced(self, states: Tensor) -> Iterator[None]:
        """While this is open, `states` [B, T, H] are what leaves the trunk, and its layers are not computed."""
        below = list(self._layers)[: self._cut]
        with self._at_the_cut(lambda _: states):
            try:
                self._put([self._through] * self._cut)
                yield
            finally:
                self._put(below)

    def _put(self, below: Sequence[nn.Module]) -> None:
        for index, layer in enumerate(below):
            self._layers[index] = layer

    @contextmanager
    def _at_the_cut(self, change: Callable[[Any], Any]) -> Iterator[None]:
        """Changes what goes into the first layer above, given as its first argument."""

        def before(_: object, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            return (change(arguments[0]), *arguments[1:]) if arguments else arguments

        handle = self._layers[self._cut].register_forward_pre_hook(before)
        try:
            yield
        finally:
            handle.remove()

    @torch.no_grad()
    def _is_skipped_rightly(self, policy: PreTrainedModel) -> bool:
        """Whether a short text has the same logits with and without the trunk's layers."""
        ids = torch.arange(6, device=policy.device)[None] % policy.config.get_text_config().vocab_size
        with self.watched() as seen, self._layers[0].register_forward_hook(self._through.imitate):
            whole = policy(input_ids=ids, use_cache=False).logits
        if len(seen) != 1 or not isinstance(seen[0], Tensor) or seen[0].shape[:2] != ids.shape:
            return False
        with self.replaced(seen[0]):
            top = policy(input_ids=ids, use_cache=False).logits
        return bool((top - whole).abs().max() <= tolerance(whole.dtype) * whole.abs().max())
