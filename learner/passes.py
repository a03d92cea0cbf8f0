"""Passes of the model over an update's samples, in microbatches, and what one pass leaves to the next.

Where only the top layers learn, the first pass of an update, for old logprobs and values, also keeps the states that
leave the frozen trunk. The reference's pass and all epochs then begin there. Owned by `ppo.py`.

Legend: B sequences, T tokens of a padded sequence, N tokens of all sequences, R response slots, H width.
"""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from common.frozen_trunk import FrozenTrunk
from common.modeling import PolicyOutput, PolicyWithValueHead
from common.packed_rows import Layout
from common.padding import mask_of
from common.ppo_config import PPOConfig
from learner.batch import Batch
from learner.packing import by_sequences, by_tokens, rows_together, widen

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrunkStates:
    """What leaves the frozen trunk for each token of a batch."""

    states: Tensor
    """[N, H] without padding."""
    starts: Tensor
    """[B] int64, where each row begins."""

    def rows(self, index: Tensor, width: int, layout: Layout | None) -> Tensor:
        """Of the chosen rows: [b, T, H], padding holding states of other rows, or packed [1, n, H]."""
        if layout is not None:
            return self.states[self.starts[index][layout.rows] + layout.positions][None]
        places = self.starts[index][:, None] + torch.arange(width, device=index.device)
        return self.states[places.clamp(max=len(self.states) - 1)]


class Passes:
    """Runs a model over a batch.

    Args:
        model: as gradients want it, wrapped for several processes or not.
        plain: the same without wrapping.
        config: the PPO stage; its layers below `trainable_layers` are frozen.
    """

    def __init__(self, model: nn.Module, plain: PolicyWithValueHead, config: PPOConfig) -> None:
        self._model = model
        self._plain = plain
        self._config = config
        self._trunk = None
        self._kept: TrunkStates | None = None
        plain.pack()
        if config.trainable_layers is not None:
            self._trunk = FrozenTrunk.of(plain.policy, config.trainable_layers)
            if self._trunk is None:
                log.warning("%s: every pass computes the frozen layers anew", type(plain.policy).__name__)

    @torch.no_grad()
    def first(self, batch: Batch, temperature: float) -> PolicyOutput:
        """Of the policy as it is, over all rows; what leaves the trunk is kept until `forget`."""
        self.forget()
        cuts, outs, states = self._cuts(batch), [], []
        with self._watched() as seen:
            for index in cuts:
                part = batch.rows(index)
                outs.append(self._plain(*_arguments(part, temperature)))
                if seen:
                    states.append(self._live(seen.pop(), part))
        if states:
            order = torch.cat(cuts)
            lengths = batch.lengths[order]
            starts = torch.empty_like(lengths).index_copy(0, order, lengths.cumsum(0) - lengths)
            self._kept = TrunkStates(torch.cat(states), starts)
        return _in_order(outs, cuts, batch.num_slots)

    @torch.no_grad()
    def reference(self, batch: Batch, temperature: float, weights: Mapping[str, Tensor]) -> Tensor:
        """[B, R] logprobs of the same tokens with `weights` in the place of the trained layers' own."""
        cuts, outs = self._cuts(batch), []
        for index in cuts:
            part = batch.rows(index)
            with self._from_the_cut(index, part):
                outs.append(functional_call(self._plain, dict(weights), _arguments(part, temperature)))
        return _in_order(outs, cuts, batch.num_slots).logprobs

    def learning(self, part: Batch, index: Tensor, temperature: float) -> PolicyOutput:
        """Of a microbatch, with gradients.

        Args:
            part: rows of the batch that `first` saw.
            index: which rows these are.
            temperature: of the distribution that was sampled from.
        """
        with self._from_the_cut(index, part):
            out: PolicyOutput = self._model(*_arguments(part, temperature))
            return out

    def forget(self) -> None:
        """Let go of what was kept."""
        self._kept = None

    def microbatches(self, lengths: Tensor, size: int) -> list[Tensor]:
        """Positions of rows in pieces: of like length within the token budget, where there is one, else `size` each."""
        budget = self._config.microbatch_tokens
        pieces = by_sequences(len(lengths), size) if budget is None else by_tokens(lengths.cpu(), budget)
        return [piece.to(lengths.device) for piece in pieces]

    def _cuts(self, batch: Batch) -> list[Tensor]:
        """Microbatches of a pass over the whole batch, which keeps nothing for gradients.

        On a CPU small minibatches go together, unless somebody said how much may be in memory at a time.
        """
        size = self._config.minibatch_sequences
        if batch.input_ids.device.type == "cpu":
            size = rows_together(size, batch.input_ids.shape[1])
        return self.microbatches(batch.lengths, self._config.microbatch_sequences or size)

    def _watched(self) -> AbstractContextManager[list[Tensor]]:
        return nullcontext([]) if self._trunk is None else self._trunk.watched()

    def _from_the_cut(self, index: Tensor, part: Batch) -> AbstractContextManager[None]:
        if self._trunk is None or self._kept is None:
            return nullcontext()
        width = part.input_ids.shape[1]
        return self._trunk.replaced(self._kept.rows(index, width, self._plain.layout(part.lengths, width)))

    def _live(self, states: Tensor, part: Batch) -> Tensor:
        """[n, H] of [B, T, H] or packed [1, n, H]."""
        width = part.input_ids.shape[1]
        return states[mask_of(part.lengths, width)] if self._plain.layout(part.lengths, width) is None else states[0]


def _arguments(part: Batch, temperature: float) -> tuple[Tensor, Tensor, Tensor, int, float]:
    return part.input_ids, part.prompt_lengths, part.response_lengths, part.num_slots, temperature


def _in_order(outs: list[PolicyOutput], cuts: list[Tensor], slots: int) -> PolicyOutput:
    """The microbatches' outputs as one, rows in the order of the batch."""
    pieces = [(widen(o.logprobs, slots), widen(o.entropy, slots), widen(o.values, slots), o.last_values) for o in outs]
    back = torch.argsort(torch.cat(cuts))
    return PolicyOutput(*(torch.cat(parts)[back] for parts in zip(*pieces, strict=True)))
