"""Logits and ids to logprobs and entropy: THE one place of the next-token shift and of the temperature.

Legend: B sequences, T tokens of a padded sequence, R response slots, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def log_distribution(logits: Tensor, temperature: float, top_p: float = 1.0) -> Tensor:
    """The distribution that is sampled from, and the only one whose logprobs are ever recorded.

    Args:
        logits: [..., V] as the model gives them; raw, never processed by a generation config.
        temperature: positive; divides the logits before the softmax.
        top_p: keeps the nucleus of this mass, see `nucleus`; 1 in training.

    Returns:
        [..., V] float32 (float64 stays) natural logarithms of probabilities.
    """
    log_p = torch.log_softmax(_tempered(logits, temperature), dim=-1)
    return log_p if top_p >= 1 else nucleus(log_p, top_p)


def distribution(logits: Tensor, temperature: float, top_p: float = 1.0) -> Tensor:
    """The probabilities of `log_distribution`, in one pass over the vocabulary where top_p is 1.

    Args:
        logits: [..., V] as the model gives them.
        temperature: positive; divides the logits before the softmax.
        top_p: keeps the nucleus of this mass.

    Returns:
        [..., V] float32 (float64 stays) probabilities.
    """
    if top_p < 1:
        return log_distribution(logits, temperature, top_p).exp()
    return torch.softmax(_tempered(logits, temperature), dim=-1)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide if temperature == 1 else wide / temperature


def nucleus(log_p: Tensor, top_p: float) -> Tensor:
    """The distribution cut to its likeliest tokens, the fewest that hold `top_p` of it (arXiv:1904.09751).

    Args:
        log_p: [..., V] logarithms of probabilities.
        top_p: above 0; the likeliest token is always kept.

    Returns:
        [..., V] renormalised; -inf outside of the nucleus. No ratio can be formed with it: see docs/ppo.md.
    """
    ranked, order = log_p.sort(dim=-1, descending=True, stable=True)
    p = ranked.exp()
    before = p.cumsum(-1) - p
    is_kept = before < top_p
    is_kept[..., 0] = True  # also where top_p is smaller than rounding leaves of 0
    kept = torch.zeros_like(is_kept).scatter(-1, order, is_kept)
    return torch.log_softmax(log_p.masked_fill(~kept, -torch.inf), dim=-1)


def response_positions(prompt_lengths: Tensor, num_slots: int) -> Tensor:
    """Where the logits of each response token stand: the logits at t are about token t + 1.

    Args:
        prompt_lengths: [B] int64, at least 1.
        num_slots: R.

    Returns:
        [B, R] int64 positions into [B, T]; slot j is prompt_length - 1 + j.
    """
    slots = torch.arange(num_slots, device=prompt_lengths.device)
    return prompt_lengths[:, None] - 1 + slots[None, :]


def live_slots(response_lengths: Tensor, num_live: int | None = None) -> tuple[Tensor, Tensor]:
    """Row and slot of every response token, rows in order.

    Args:
        response_lengths: [B] int64.
        num_live: their sum, n, where the caller knows it; None: computed.

    Returns:
        [n] int64 rows 0 … B - 1, and [n] int64 slots 0 … R - 1.
    """
    count = int(response_lengths.sum()) if num_live is None else num_live
    rows = torch.arange(len(response_lengths), device=response_lengths.device)
    rows = rows.repeat_interleave(response_lengths, output_size=count)
    starts = response_lengths.cumsum(0) - response_lengths
    return rows, torch.arange(count, device=rows.device) - starts[rows]


def gather_response(per_position: Tensor, prompt_lengths: Tensor, num_slots: int) -> Tensor:
    """Pick each response token's position out of a padded tensor.

    Args:
        per_position: [B, T, ...] one entry per input position.
        prompt_lengths: [B] int64.
        num_slots: R; what slots past a row's response hold is its padding: they are dead by the mask.

    Returns:
        [B, R, ...].
    """
    index = response_positions(prompt_lengths, num_slots).clamp(max=per_position.shape[1] - 1)
    rows = torch.arange(per_position.shape[0], device=per_position.device)[:, None]
    return per_position[rows, index]


class _TokenLogprobs(torch.autograd.Function):
    """Of all that a softmax over a vocabulary makes, one tensor as large as the logits is kept, and one made back."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """See `token_logprobs`."""
        log_p = log_distribution(logits, temperature)
        logprobs = log_p.gather(-1, ids[..., None]).squeeze(-1)
        p = log_p.exp()
        entropy = -torch.linalg.vecdot(p, log_p)
        ctx.save_for_backward(p, ids, entropy)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logprobs: Tensor | None, of_entropy: Tensor | None) -> tuple[Tensor | None, None, None]:
        """Of logprob by logits: (one-hot - p) / T; of entropy by logits: -p (log p + entropy) / T."""
        p, ids, entropy = ctx.saved_tensors
        slope = torch.zeros_like(entropy) if of_logprobs is None else of_logprobs / ctx.temperature
        gradient = p * -slope[..., None]
        gradient.scatter_add_(-1, ids[..., None], slope[..., None])
        if of_entropy is not None:
            gradient -= (of_entropy / ctx.temperature)[..., None] * (torch.xlogy(p, p) + p * entropy[..., None])
        return gradient.to(ctx.dtype), None, None


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Logprobs of the given tokens and the entropy of their distributions.

    Args:
        logits: [..., V] those that predict `ids`.
        ids: [...] int64.
        temperature: see `log_distribution`.

    Returns:
        logprobs [...] and entropy [...], in nats; gradients flow through both.
    """
    logprobs, entropy = _TokenLogprobs.apply(logits, ids, temperature)  # type: ignore[no-untyped-call]
    return logprobs, entropy


def next_token_loss(
    logits: Tensor, ids: Tensor, lengths: Tensor, learned: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the live tokens of right-padded texts, the first token of each left out.

    Args:
        logits: [B, T, V].
        ids: [B, T] int64.
        lengths: [B] int64 live tokens per row.
        learned: [B, T] bool, which of the tokens count, as those of a response; None: all.

    Returns:
        [] sum of nats, gradients flow; [] number of tokens in it.
    """
    live = torch.arange(1, ids.shape[1], device=ids.device)[None, :] < lengths[:, None]
    if learned is not None:
        live = live & learned[:, 1:]
    nats = torch.nn.functional.cross_entropy(logits[:, :-1][live].float(), ids[:, 1:][live], reduction="sum")
    return nats, live.sum()
