"""Decoding for the Llama family, with less around its matrix products than the model's own forward has.

The same arithmetic as `transformers.LlamaForCausalLM`, on copies of its weights: queries, keys and values in one
product, gate and up in one, all by `packed_linear.py`; rotary positions as one complex multiplication; rows of any
lengths side by side, without padding, over `kv_cache.py`. It learns nothing, and its copies must be renewed with
`load` whenever the policy's weights change. Called by `engine.py` and `ragged.py`. On CUDA it has never run: tested on
the CPU are its arithmetic, in float32 and bfloat16, and steps that are rounded up and replayed by a stand-in.

Legend: N tokens of a pass, B running rows and J joining ones, H query heads, K key-value heads, D numbers of a head,
W width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers import LlamaForCausalLM, MistralForCausalLM, PreTrainedModel, Qwen2ForCausalLM

from actors.cuda_graphs import CUDAGraphs
from actors.kv_cache import CacheShape, KVCache
from actors.packed_linear import PackedLinear, why_not_packed
from actors.rows import Index
from common.fused_layers import FusedHead

FIXED_ROPE = ("default", "linear", "llama3", "yarn")
"""Rotary frequencies that do not change with the length of the text."""
GRAPHED_ROWS, GRAPHED_TOKENS = 16, 64
"""On CUDA, rows and width of a step are rounded up to multiples of these, so that few graphs serve all steps."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")


def why_not_llama(policy: PreTrainedModel) -> str:
    """Empty if `LlamaDecoder` computes what the policy does, else what the policy has that it does not."""
    if type(policy) not in (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM):
        return f"{type(policy).__name__} is decoded by its own forward"
    config = policy.config
    if not isinstance(policy, LlamaForCausalLM) and "sliding_attention" in _attention_kinds(policy):
        return "its attention has a sliding window"
    if config.hidden_act not in ("silu", "swish"):
        return f"its activation is {config.hidden_act}"
    rotary = policy.model.rotary_emb
    if rotary.rope_type not in FIXED_ROPE:
        return f"its rotary frequencies ({rotary.rope_type}) change with the length of the text"
    if 2 * len(rotary.inv_freq) != policy.model.layers[0].self_attn.head_dim:
        return "its rotary positions do not turn whole heads"
    linear = {name.rsplit(".", 1)[-1]: type(module) for name, module in policy.named_modules()}
    if foreign := [name for name in PROJECTIONS if linear.get(name) not in (nn.Linear, FusedHead)]:
        return f"its {foreign[0]} is a {linear[foreign[0]].__name__}"
    if len({(p.dtype, p.device) for p in policy.parameters()}) != 1:
        return "its weights are of several precisions, or on several devices"
    return ""


def _attention_kinds(policy: PreTrainedModel) -> list[str]:
    config = policy.config
    if isinstance(policy, Qwen2ForCausalLM):
        return list(config.layer_types)
    return ["full_attention" if config.sliding_window is None else "sliding_attention"]


@dataclass(frozen=True, slots=True)
class _Layer:
    """One decoder layer: the policy's, and copies of its weights."""

    source: Any
    qkv: PackedLinear
    out: PackedLinear
    gate_up: PackedLinear
    down: PackedLinear


@dataclass(frozen=True, slots=True)
class _Tokens:
    """What one pass reads: a token of each of the first B slots, then the prompts of the J slots after them."""

    ids: Tensor
    """[N] int64."""
    slots: Tensor
    """[N] int64."""
    positions: Tensor
    """[N] int64."""
    num_running: int
    """B, with the rows that only fill up the step."""
    width: int
    """Positions that running rows attend to: those of the longest."""
    mask: Tensor | None
    """[B, 1, 1, width] 0, or -inf behind a row's end; None where all end together."""
    num_joining: int
    """J."""
    prompt_width: int
    """Tokens of the longest prompt."""
    last: Tensor
    """[B + J] where the last token of each slot is among the N."""


class LlamaDecoder:
    """A second form of a policy, that decodes fast.

    Args:
        policy: one of which `why_not_llama` has nothing to say.
    """

    def __init__(self, policy: PreTrainedModel) -> None:
        self.policy = policy
        attention, weight = policy.model.layers[0].self_attn, policy.lm_head.weight
        self.num_heads, self.head_dim = policy.config.num_attention_heads, attention.head_dim
        self.kv_heads, self.scaling = policy.config.num_key_value_heads, attention.scaling
        self.device = weight.device
        self.why_not_packed = why_not_packed(weight.device, weight.dtype)
        self.shape = CacheShape(len(policy.model.layers), self.kv_heads, self.head_dim, weight.dtype, weight.device)
        packs = not self.why_not_packed
        self._layers = [
            _Layer(source, *(PackedLinear(packs=packs) for _ in range(4))) for source in policy.model.layers
        ]
        self._head = PackedLinear(packs=packs)
        self._turns = torch.zeros(0)
        self._cache: KVCache | None = None
        self._graphs = CUDAGraphs() if weight.device.type == "cuda" else None
        self.rounding = (1, 1) if self._graphs is None else (GRAPHED_ROWS, GRAPHED_TOKENS)
        """Multiples to which rows and width of a step are rounded up."""
        self.load()

    @torch.no_grad()
    def load(self) -> None:
        """Renew all copies from the policy."""
        for layer in self._layers:
            attention, mlp = layer.source.self_attn, layer.source.mlp
            q, k, v = attention.q_proj, attention.k_proj, attention.v_proj
            layer.qkv.load(
                [self._paired(q.weight), self._paired(k.weight), v.weight],
                [None if p.bias is None else (self._paired(p.bias) if p is not v else p.bias) for p in (q, k, v)],
            )
            layer.out.load([attention.o_proj.weight], [attention.o_proj.bias])
            layer.gate_up.load([mlp.gate_proj.weight, mlp.up_proj.weight], [mlp.gate_proj.bias, mlp.up_proj.bias])
            layer.down.load([mlp.down_proj.weight], [mlp.down_proj.bias])
        self._head.load([self.policy.lm_head.weight], [self.policy.lm_head.bias])

    def _paired(self, rows: Tensor) -> Tensor:
        """[heads · D, …] with the two numbers that are turned together side by side; dot products stay the same."""
        halves = torch.unflatten(rows, 0, (-1, 2, self.head_dim // 2))
        return halves.transpose(1, 2).flatten(0, 2)

    def cache_of(self, rows: int, tokens: int) -> KVCache:
        """A cache without content, in the memory of the last call where that is large enough; steps that are filled up
        have room in it.
        """
        rows, tokens = _rounded(rows, self.rounding[0]), _rounded(tokens, self.rounding[1])
        if self._cache is None or self._cache.rows < rows or self._cache.tokens < tokens:
            self._cache = None  # let go of the old one first
            self._cache = KVCache(self.shape, rows, tokens)
            if self._graphs is not None:
                self._graphs.forget()
        else:
            self._cache.clear()
        if len(self._turns) < self._cache.tokens:
            self._turns = self._turns_of(self._cache.tokens)
        return self._cache

    def _turns_of(self, tokens: int) -> Tensor:
        """[tokens, D / 2] complex64: by how much each pair is turned at each position, as the model has it."""
        positions = torch.arange(tokens, device=self.device)[None]
        cos, sin = self.policy.model.rotary_emb(torch.zeros(1, device=self.device), positions)
        half = self.head_dim // 2
        return torch.complex(cos[0, :, :half], sin[0, :, :half])

    def advance(
        self, cache: KVCache, tokens: npt.NDArray[np.int64], positions: Index, prompts: list[npt.NDArray[np.int64]]
    ) -> Tensor:
        """See `RaggedDecoder`."""
        if prompts:
            return self._logits(cache, self._arrange(tokens, positions, prompts))
        read = self._arrange(*self._filled_up(tokens, positions), prompts)
        if self._graphs is None or read.mask is None:
            return self._logits(cache, read)[: len(tokens)]
        inputs = (read.ids, read.slots, read.positions, read.mask, read.last)

        def compute(held: Sequence[Tensor]) -> Tensor:
            ids, slots, places, mask, last = held
            again = replace(read, ids=ids, slots=slots, positions=places, mask=mask, last=last)
            return self._logits(cache, again)

        return self._graphs.run((read.num_running, read.width), inputs, compute)[: len(tokens)]

    def _filled_up(self, tokens: npt.NDArray[np.int64], positions: Index) -> tuple[npt.NDArray[np.int64], Index]:
        """As many rows as `rounding` has them: what is added writes to the beginning of slots that are free."""
        missing = _rounded(len(tokens), self.rounding[0]) - len(tokens)
        return np.pad(tokens, (0, missing)), np.pad(positions, (0, missing))

    def _logits(self, cache: KVCache, read: _Tokens) -> Tensor:
        """[B + J, V]."""
        return self._head(self._hidden(cache, read)[read.last])

    def read(self, ids: npt.NDArray[np.int64]) -> Tensor:
        """Texts [J, n] from their beginning, all but the last column in one pass: [J, n, V] logits of all tokens."""
        num_texts, length = ids.shape
        cache = self.cache_of(num_texts, length)
        none = np.zeros(0, dtype=np.int64)
        before = self._head(self._hidden(cache, self._arrange(none, none, list(ids[:, :-1]))))
        last = self.advance(cache, ids[:, -1], np.full(num_texts, length - 1), [])
        return torch.cat((torch.unflatten(before, 0, (num_texts, length - 1)), last[:, None]), dim=1)

    def _arrange(
        self, tokens: npt.NDArray[np.int64], positions: Index, prompts: list[npt.NDArray[np.int64]]
    ) -> _Tokens:
        running, lengths = len(tokens), np.array([len(p) for p in prompts], dtype=np.int64)
        width = _rounded(int(positions.max()) + 1, self.rounding[1]) if running else 0
        mask = None
        if running and (self._graphs is not None or int(positions.min()) + 1 < width):
            behind = np.arange(width)[None, :] > positions[:, None]
            mask = self._on_device(np.where(behind, -np.inf, 0.0)).to(self.shape.dtype)[:, None, None, :]
        slots = np.concatenate((np.arange(running), running + np.repeat(np.arange(len(prompts)), lengths)))
        return _Tokens(
            ids=self._on_device(np.concatenate((tokens, *prompts))),
            slots=self._on_device(slots),
            positions=self._on_device(np.concatenate((positions, *(np.arange(n) for n in lengths)))),
            num_running=running,
            width=width,
            mask=mask,
            num_joining=len(prompts),
            prompt_width=int(lengths.max(initial=0)),
            last=self._on_device(np.concatenate((np.arange(running), running - 1 + np.cumsum(lengths)))),
        )

    def _on_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device)

    def _hidden(self, cache: KVCache, read: _Tokens) -> Tensor:
        """[N, W] after the last norm."""
        x = self.policy.model.embed_tokens(read.ids)
        turns = self._turns[read.positions][:, None]
        for number, layer in enumerate(self._layers):
            source = layer.source
            qkv = layer.qkv(_normed(x, source.input_layernorm)).view(len(x), -1, self.head_dim)
            _turn(qkv[:, : self.num_heads + self.kv_heads], turns)
            keys_values = torch.unflatten(qkv[:, self.num_heads :], 1, (2, self.kv_heads))
            cache.write(number, read.slots, read.positions, keys_values)
            x = x + layer.out(self._attended(cache, number, qkv[:, : self.num_heads], read))
            gate, up = layer.gate_up(_normed(x, source.post_attention_layernorm)).chunk(2, dim=-1)
            x = x + layer.down(silu(gate).mul_(up))
        return _normed(x, self.policy.model.norm)

    def _attended(self, cache: KVCache, layer: int, queries: Tensor, read: _Tokens) -> Tensor:
        """Queries [N, H, D] to what each token finds, [N, H · D]."""
        parts = []
        if read.num_running:
            parts.append(self._attended_by_running(cache, layer, queries[: read.num_running], read))
        if read.num_joining:
            parts.append(self._attended_by_prompts(cache, layer, queries[read.num_running :], read))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attended_by_running(self, cache: KVCache, layer: int, queries: Tensor, read: _Tokens) -> Tensor:
        """One token of each row: the heads that share keys and values are the rows of one product."""
        keys, values = cache.read(layer, 0, read.num_running, read.width)
        grouped = torch.unflatten(queries, 1, (self.kv_heads, -1))
        mask = None if read.mask is None else read.mask.expand(-1, 1, grouped.shape[2], -1)
        found = scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=self.scaling)
        return found.reshape(read.num_running, -1)

    def _attended_by_prompts(self, cache: KVCache, layer: int, queries: Tensor, read: _Tokens) -> Tensor:
        """Whole prompts, padded for this product alone: no token sees what follows it, so that padding is not seen."""
        first, last = read.num_running, read.num_running + read.num_joining
        keys, values = cache.read(layer, first, last, read.prompt_width)
        places = read.slots[first:] - first, read.positions[first:]
        padded = queries.new_zeros((read.num_joining, read.prompt_width, *queries.shape[1:]))
        padded[places] = queries
        found = scaled_dot_product_attention(
            padded.transpose(1, 2), keys, values, is_causal=True, scale=self.scaling, enable_gqa=True
        )
        return found.transpose(1, 2)[places].flatten(1)


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _normed(x: Tensor, norm: Any) -> Tensor:
    """RMS norm in float32; reads x once less than torch's own."""
    wide = x.float()
    squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_()
    scale = squares.div_(x.shape[-1]).add_(norm.variance_epsilon).rsqrt_()
    normed: Tensor = (wide * scale).to(x.dtype).mul_(norm.weight)
    return normed


def _turn(heads: Tensor, turns: Tensor) -> None:
    """Turn the pairs of [N, H + K, D] in place by [N, 1, D / 2]."""
    pairs = torch.unflatten(heads, -1, (-1, 2))
    if heads.dtype == torch.float32:
        torch.view_as_complex(pairs).mul_(turns)
    else:  # there are no complex numbers of two halves of 16 bits
        pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()) * turns))
