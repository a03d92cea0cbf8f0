"""Decoder layers of the Llama family in two pieces, with their gradients written out.

A layer of transformers is some sixty small operations around seven matrix products, and autograd notes each of them;
at the rows of a minibatch they take a seventh of the time. Here a layer is what stands before attention and what stands
after it. Attention itself stays transformers' interface, so that packed rows (`packed_rows.py`) work as ever, and
parameters stay where they are. The output head multiplies by our functions too. On CPUs only; elsewhere, and for other
architectures, nothing is changed.

    x ─▶ norm ─▶ q, k, v ─▶ turn q, k ─▶ attention ─▶ out, + x ─▶ norm ─▶ gate, up ─▶ silu(gate) · up ─▶ down, + ─▶ y
    └────────── BeforeAttention ─────┘               └──────────────────── AfterAttention ────────────────────────┘

A gradient is named after what it is taken by: `by_gate` is that of the loss by gate. Called by whoever trains a policy
or computes its logprobs.

Legend: N tokens (B · T of a padded batch), H width, h heads, D numbers of a head, I width of the feed-forward part, V
vocabulary.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu
from transformers import LlamaForCausalLM, LlamaModel
from transformers.activations import SiLUActivation
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaMLP,
    LlamaRMSNorm,
    eager_attention_forward,
)

from common.products import gradient_by_states, gradient_by_weight, project


def fuse_layers(model: nn.Module) -> str:
    """Have a model's layers compute as here, from now on.

    Args:
        model: a causal language model or its trunk, placed where it will compute.

    Returns:
        Empty; or, where nothing was changed, why.
    """
    trunk: Any = model.model if isinstance(model, LlamaForCausalLM) else model
    if type(trunk) is not LlamaModel:
        return f"{type(model).__name__} is not of the Llama family"
    if trunk.config.hidden_act not in ("silu", "swish"):
        return f"its activation is {trunk.config.hidden_act}"
    if foreign := [name for name, module in trunk.layers.named_modules() if not _is_computed_here(module)]:
        return f"its layers.{foreign[0]} is not that of a plain Llama"
    if not all(_is_exact_on_cpu(parameter) for parameter in trunk.layers.parameters()):
        return "its layers are not in float32 on the CPU"
    for layer in trunk.layers:
        layer.__class__ = FusedLlamaLayer
    head: Any = None if trunk is model else model.lm_head
    if type(head) is nn.Linear and head.bias is None and _is_exact_on_cpu(head.weight):
        head.__class__ = FusedHead
    return ""


_PLAIN = (LlamaDecoderLayer, LlamaAttention, LlamaMLP, LlamaRMSNorm, SiLUActivation, nn.SiLU, nn.ModuleList)


def _is_computed_here(module: nn.Module) -> bool:
    """Whether a part of the layers does nothing but what is written below: no adapter, no bias, no hook inside."""
    if isinstance(module, FusedLlamaLayer):
        return True
    if type(module) is nn.Linear:
        return module.bias is None and not _has_hooks(module)
    return type(module) in _PLAIN and (type(module) is LlamaDecoderLayer or not _has_hooks(module))


def _is_exact_on_cpu(parameter: Tensor) -> bool:
    return parameter.device.type == "cpu" and parameter.dtype in (torch.float32, torch.float64)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)


class FusedLlamaLayer(LlamaDecoderLayer):  # type: ignore[misc]
    """A Llama layer in two nodes of the graph, and attention between them."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """[B, T, H] to [B, T, H]; with a cache of keys and values, or in mixed precision, as the layer that it was."""
        if past_key_values is not None or position_embeddings is None or torch.is_autocast_enabled("cpu"):
            return super().forward(  # type: ignore[no-any-return]
                hidden_states, attention_mask, position_ids, past_key_values, use_cache, position_embeddings, **kwargs
            )
        attention, mlp = self.self_attn, self.mlp
        heads = BeforeAttention.apply(  # type: ignore[no-untyped-call]
            hidden_states, self.input_layernorm.weight, attention.q_proj.weight, attention.k_proj.weight,
            attention.v_proj.weight, *position_embeddings, self.input_layernorm.variance_epsilon,
        )  # fmt: skip
        kind = attention.config._attn_implementation
        interface = ALL_ATTENTION_FUNCTIONS.get_interface(kind, eager_attention_forward)
        attended, _ = interface(
            attention, *(part.transpose(1, 2) for part in heads), attention_mask, scaling=attention.scaling,
            dropout=attention.attention_dropout if self.training else 0.0, position_ids=position_ids, **kwargs,
        )  # fmt: skip
        norm = self.post_attention_layernorm
        after: Tensor = AfterAttention.apply(  # type: ignore[no-untyped-call]
            attended, hidden_states, attention.o_proj.weight, norm.weight, mlp.gate_proj.weight, mlp.up_proj.weight,
            mlp.down_proj.weight, norm.variance_epsilon,
        )  # fmt: skip
        return after


class FusedHead(nn.Linear):
    """An output head without bias, tied to the look-up or not, whose products are ours."""

    def forward(self, states: Tensor) -> Tensor:
        """States […, H] to logits […, V]; in mixed precision as the layer that it was."""
        if torch.is_autocast_enabled("cpu"):
            return super().forward(states)
        logits: Tensor = Head.apply(states, self.weight)  # type: ignore[no-untyped-call]
        return logits


class Head(torch.autograd.Function):
    """Logits = states · weight', and its gradients."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor) -> Tensor:
        """[…, H] and [V, H] to […, V]."""
        rows = states.reshape(-1, states.shape[-1])
        ctx.save_for_backward(rows, weight)
        return project(rows, weight).view(*states.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_logits: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """[…, V] to the gradients by states, […, H], and weight, [V, H]; None where one is not asked for."""
        rows, weight = ctx.saved_tensors
        by_rows = by_logits.reshape(len(rows), len(weight))
        by_states = gradient_by_states(by_rows, weight) if ctx.needs_input_grad[0] else None
        by_weight = gradient_by_weight(by_rows, rows) if ctx.needs_input_grad[1] else None
        return by_states if by_states is None else by_states.reshape(*by_logits.shape[:-1], rows.shape[1]), by_weight


class BeforeAttention(torch.autograd.Function):
    """Norm, projections and rotary positions."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm: Tensor, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, H] to queries, keys and values, [B, T, h, D] each; cos and sin are [B, T, D] of the positions."""
        rows, cos, sin = x.reshape(-1, x.shape[-1]), cos[:, :, None], sin[:, :, None]
        scale = _scale(rows, eps)
        normed = torch.mul(rows, scale).mul_(norm)
        heads = [project(normed, weight).view(*x.shape[:2], -1, cos.shape[-1]) for weight in (q, k, v)]
        ctx.save_for_backward(rows, scale, normed, norm, q, k, v, cos, sin)
        return _turn(heads[0], cos, sin), _turn(heads[1], cos, sin), heads[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_q: Tensor, by_k: Tensor, by_v: Tensor) -> tuple[Tensor | None, ...]:
        """Back by the opposite turn."""
        rows, scale, normed, norm, *weights, cos, sin = ctx.saved_tensors
        by_heads = [_turn(by_q, cos, -sin), _turn(by_k, cos, -sin), by_v]
        parts = [part.reshape(len(rows), -1) for part in by_heads]
        by_normed = _sum_of(parts, weights)
        by_rows, by_norm = _by_norm(by_normed, rows, scale, norm)
        needed = ctx.needs_input_grad[2:5]
        by_weights = [
            gradient_by_weight(part, normed) if wanted else None for part, wanted in zip(parts, needed, strict=True)
        ]
        return by_rows.view(*by_q.shape[:2], -1), by_norm, *by_weights, None, None, None


class AfterAttention(torch.autograd.Function):
    """Output projection and residual, norm, SwiGLU (arXiv:2002.05202, eq. 6) and residual."""

    @staticmethod
    def forward(
        ctx: Any, attended: Tensor, x: Tensor, out: Tensor, norm: Tensor, gate: Tensor, up: Tensor, down: Tensor,
        eps: float,
    ) -> Tensor:  # fmt: skip
        """[B, T, h, D] of attention and [B, T, H], the states before the layer, to the states after it."""
        wide = attended.reshape(-1, out.shape[1])
        rows = project(wide, out, plus=x.reshape(-1, x.shape[-1]))
        scale = _scale(rows, eps)
        normed = torch.mul(rows, scale).mul_(norm)
        gated, upped = project(normed, gate, any_order=True), project(normed, up, any_order=True)
        active = silu(gated)
        inner = active * upped
        ctx.save_for_backward(wide, rows, scale, normed, gated, active, upped, inner, out, norm, gate, up, down)
        ctx.shapes = attended.shape, x.shape
        return project(inner, down, plus=rows).view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_y: Tensor) -> tuple[Tensor | None, ...]:
        """In the opposite order."""
        wide, rows, scale, normed, gated, active, upped, inner, out, norm, gate, up, down = ctx.saved_tensors
        attended_shape, shape = ctx.shapes
        by_y = by_y.reshape(rows.shape)
        by_inner = project(by_y, down.t(), any_order=True)
        by_upped = active.mul(by_inner)
        by_gated = torch.ops.aten.silu_backward(by_inner.mul_(upped), gated)
        by_normed = _sum_of((by_gated, by_upped), (gate, up))
        by_rows, by_norm = _by_norm(by_normed, rows, scale, norm)
        by_rows += by_y
        by_attended = project(by_rows, out.t()).view(attended_shape)
        pairs = ((2, by_rows, wide), (4, by_gated, normed), (5, by_upped, normed), (6, by_y, inner))
        by_out, *by_others = [gradient_by_weight(a, b) if ctx.needs_input_grad[i] else None for i, a, b in pairs]
        return by_attended, by_rows.view(shape), by_out, by_norm, *by_others, None


def _sum_of(by_outputs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The gradient by what several layers read, [N, H], of those by what each made, [N, its width]."""
    total = project(by_outputs[0], weights[0].t())
    for by_output, weight in zip(by_outputs[1:], weights[1:], strict=True):
        total = project(by_output, weight.t(), plus=total)
    return total


def _scale(rows: Tensor, eps: float) -> Tensor:
    """[N, 1] one over the root mean square of each row (arXiv:1910.07467, eq. 4)."""
    length = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
    scale: Tensor = length.square_().div_(rows.shape[-1]).add_(eps).rsqrt_()
    return scale


def _by_norm(by_normed: Tensor, rows: Tensor, scale: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of rows · scale · weight: the gradient by the rows, of which scale is a function too, and that by the weight."""
    unit = rows * scale
    product = by_normed * unit
    along = torch.mv(product, weight).div_(rows.shape[-1])
    by_rows = by_normed.mul_(weight).addcmul_(unit, along[:, None], value=-1).mul_(scale)
    return by_rows, product.sum(0)


def _turn(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[B, T, h, D] turned by rotary angles, [B, T, 1, D] with two halves that are alike (arXiv:2104.09864, eq. 34)."""
    half = heads.shape[-1] // 2
    turned = heads * cos
    turned[..., :half].addcmul_(heads[..., half:], sin[..., :half], value=-1)
    turned[..., half:].addcmul_(heads[..., :half], sin[..., half:])
    return turned
