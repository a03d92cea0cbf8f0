"""The networks: policy, policy with value head, and how models get on disk and back, in Hugging Face's format.

Legend: B sequences, T tokens of a padded sequence, R response slots, H width, V vocabulary.
"""

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from common.errors import ConfigError
from common.fused_layers import fuse_layers
from common.hub import loading
from common.logprobs import live_slots, token_logprobs
from common.model_config import FreshModel
from common.narrow_head import head_at
from common.packed_rows import Layout, PackedRows
from common.placement_config import DType
from common.text import tokenizer_eos_ids

Network = TypeVar("Network", bound=nn.Module)


def resolve_device(device: str, num_gpus: float) -> torch.device:
    """`auto` is CUDA where the role holds a GPU and one is there, else the CPU."""
    if device == "auto":
        return torch.device("cuda" if num_gpus > 0 and torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError('device = "cuda", but torch sees no GPU here; set device = "auto" or num_gpus')
    return torch.device(device)


def resolve_dtype(dtype: DType, device: torch.device, *, serves: bool) -> torch.dtype:
    """`auto` is bfloat16 for a process that only generates, on a GPU that computes in it; else float32.

    Args:
        dtype: as the configuration has it.
        device: where the weights will be.
        serves: whether they only answer; trained weights stay in float32, for small updates round to zero below it.
    """
    if dtype != "auto":
        found: torch.dtype = getattr(torch, dtype)
        return found
    return torch.bfloat16 if serves and device.type == "cuda" and torch.cuda.is_bf16_supported() else torch.float32


def fresh_policy(config: FreshModel, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A Llama-shaped model with random weights for the given tokenizer."""
    shape = fresh_shape(config, vocab_size=len(tokenizer))
    shape.pad_token_id, shape.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id
    return LlamaForCausalLM(shape)


def fresh_shape(config: FreshModel, *, vocab_size: int) -> LlamaConfig:
    """The shape of a fresh model, without the ids of special tokens."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=int(config.mlp_ratio * config.hidden_size) // 8 * 8,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        max_position_embeddings=config.max_tokens,
        tie_word_embeddings=config.tie_embeddings,
        pad_token_id=None,
        eos_token_id=None,
        bos_token_id=None,
    )


def load_policy(path: str, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal language model from a folder or the hub (`name@revision`), dropout off, in evaluation mode."""
    with loading(path) as (name, revision):
        model = AutoModelForCausalLM.from_pretrained(name, revision=revision, dtype=dtype)
    return without_dropout(model)


def save_policy(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Leave model and tokenizer in Hugging Face's format; whoever generates with them ends where our workers end."""
    name_ends(policy, tokenizer)
    policy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def name_ends(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Put the ids of `common.text.eos_token_ids` into the model's generation configuration, the end of a turn too."""
    named = [policy.config.get_text_config().eos_token_id, policy.generation_config.eos_token_id]
    lists = [ids if isinstance(ids, list) else [ids] for ids in named if ids is not None]
    ends = sorted(tokenizer_eos_ids(tokenizer).union(*lists))
    policy.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]


def without_dropout(model: Network) -> Network:
    """Set every dropout to 0 and leave training mode: else old and new logprobs of equal weights differ."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model.eval()


def decoder_layers(policy: PreTrainedModel) -> nn.ModuleList:
    """The stack of decoder layers, whatever the architecture calls it: the ModuleList of as many as it says it has."""
    depth = policy.config.get_text_config().num_hidden_layers
    for module in policy.modules():  # from the outside in: the experts of a layer may be as many as the layers
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ConfigError(f"{type(policy).__name__} has no stack of {depth} layers; set ppo.trainable_layers to none")


def freeze_below(policy: PreTrainedModel, trainable_layers: int) -> None:
    """Leave only the top layers and what follows them (the final norm) trainable.

    The embeddings stay frozen, and with them the output head, tied or not: the trunk is then the same network for
    the policy and for its reference.
    """
    layers = decoder_layers(policy)
    if trainable_layers > len(layers):
        raise ConfigError(f"trainable_layers={trainable_layers} exceeds the model's {len(layers)} layers; lower it")
    for parameter in policy.parameters():
        parameter.requires_grad_(False)
    for layer in layers[len(layers) - trainable_layers :]:
        for parameter in layer.parameters():
            parameter.requires_grad_(True)
    head = policy.get_output_embeddings()
    left_alone = {id(p) for p in head.parameters()} if head is not None else set()
    everything = list(policy.parameters())
    last = max(i for i, p in enumerate(everything) if any(p is q for q in layers[-1].parameters()))
    for parameter in everything[last + 1 :]:  # what is registered after the layers, but for the head, is the norm
        parameter.requires_grad_(id(parameter) not in left_alone)


def add_embedding_gradient_in_place(policy: PreTrainedModel) -> None:
    """Where embeddings and output head are one matrix, add the rows that a batch looked up to the head's gradient.

    Else the look-up makes a gradient of its own as large as the matrix, nearly all of it zeros, and autograd adds both
    into a third. The sum stays dense as long as the head has a part in the loss.
    """
    table, head = policy.get_input_embeddings(), policy.get_output_embeddings()
    if isinstance(table, nn.Embedding) and head is not None and table.weight is head.weight:
        table.sparse = True


def twin_trunk(policy: PreTrainedModel) -> PreTrainedModel:
    """A copy of a policy without its output head, to be given values of its own; made before the policy is changed."""
    trunk: PreTrainedModel = copy.deepcopy(policy.base_model)
    return trunk


@dataclass(frozen=True, slots=True)
class PolicyOutput:
    """What one pass says of the response tokens; gradients flow through all but padding, which holds zeros."""

    logprobs: Tensor
    """[B, R] of the response tokens."""
    entropy: Tensor
    """[B, R] of the distributions that they were drawn from."""
    values: Tensor
    """[B, R] of the states before each token."""
    last_values: Tensor
    """[B] of the state after the last token."""


class PolicyWithValueHead(nn.Module):
    """A causal language model with a scalar value of each state, on a shared trunk or on one of its own.

    Args:
        policy: any Hugging Face causal language model; its dropout is turned off.
        value_trunk: a network of the same shape that values come from, see `twin_trunk`; None: the policy's trunk.
    """

    def __init__(self, policy: PreTrainedModel, *, value_trunk: PreTrainedModel | None = None) -> None:
        super().__init__()
        self.policy = without_dropout(policy)
        self.value_trunk = None if value_trunk is None else without_dropout(value_trunk)
        self._packing: tuple[PackedRows, ...] = ()
        self._narrows = policy.get_output_embeddings() is not None
        self.value_head = nn.Linear(policy.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(
        self,
        input_ids: Tensor,
        prompt_lengths: Tensor,
        response_lengths: Tensor,
        num_slots: int,
        temperature: float,
        num_live: int | None = None,
    ) -> PolicyOutput:
        """One pass for logprobs, entropy and values, with logits of response tokens only.

        Right padding needs no attention mask: under causal attention no live position sees what follows it.

        Args:
            input_ids: [B, T] int64, prompt then response then padding.
            prompt_lengths: [B] int64.
            response_lengths: [B] int64.
            num_slots: R, the padded number of response tokens.
            temperature: of the distribution that was sampled from.
            num_live: response tokens of all rows; None: counted.
        """
        lengths = prompt_lengths + response_lengths
        rows, slots = live_slots(response_lengths, num_live)
        before = prompt_lengths[rows] - 1 + slots  # the state before each response token
        layout = self.layout(lengths, input_ids.shape[1])
        row_of = torch.arange(len(lengths), device=lengths.device)
        start_of = torch.zeros_like(row_of)
        if layout is not None:
            row_of, start_of = start_of, lengths.cumsum(0) - lengths
        places = row_of[rows], start_of[rows] + before
        hidden, logits = self._states_and_logits(input_ids, layout, *places)
        if self.value_trunk is not None:
            hidden = self._value_states(input_ids, layout)
        logprobs, entropy = token_logprobs(logits, input_ids[rows, before + 1], temperature)

        def padded(flat: Tensor) -> Tensor:
            return flat.new_zeros(len(lengths), num_slots).index_put((rows, slots), flat)

        values, last_values = self._value(hidden[places]), self._value(hidden[row_of, start_of + lengths - 1])
        return PolicyOutput(padded(logprobs), padded(entropy), padded(values), last_values)

    def pack(self) -> None:
        """From now on compute ragged rows without padding, if the architecture allows it."""
        packing = PackedRows.of(self.policy)
        if packing is not None:
            self._packing = (packing, *(PackedRows(trunk) for trunk in [self.value_trunk] if trunk is not None))

    def fuse(self) -> None:
        """From now on compute the layers as `fused_layers.py` does, where it can; in the place where they will be."""
        fuse_layers(self.policy)
        if self.value_trunk is not None:
            fuse_layers(self.value_trunk)

    def value_parameters(self) -> Iterator[nn.Parameter]:
        """Those that only the value loss moves: of the head, and of its own trunk where it has one."""
        yield from self.value_head.parameters()
        if self.value_trunk is not None:
            yield from self.value_trunk.parameters()

    def layout(self, lengths: Tensor, width: int) -> Layout | None:
        """Where the tokens of packed rows stand; None where the rows are not packed, as where all are of one length."""
        if not self._packing:
            return None
        num_tokens = int(lengths.sum())
        return None if num_tokens == len(lengths) * width else Layout.of(lengths, width, num_tokens)

    def _states_and_logits(
        self, input_ids: Tensor, layout: Layout | None, rows: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """States before the output head, [B, T, H] or packed [1, N, H], and logits at the given of them, [n, V]."""
        with self._reading(input_ids, layout) as arguments, head_at(self.policy, rows, positions) as seen:
            out = self.policy(**arguments, use_cache=False, output_hidden_states=not self._narrows)
        if self._narrows and seen:
            return seen[0], out.logits.squeeze(0)
        if self._narrows:  # the model has a head and does not call it
            self._narrows = False
            return self._states_and_logits(input_ids, layout, rows, positions)
        return out.hidden_states[-1], out.logits[rows, positions]

    def _value_states(self, input_ids: Tensor, layout: Layout | None) -> Tensor:
        """What leaves the values' own trunk, [B, T, H] or packed [1, N, H]."""
        assert self.value_trunk is not None, "values have a trunk of their own"
        with self._reading(input_ids, layout) as arguments:
            states: Tensor = self.value_trunk(**arguments, use_cache=False).last_hidden_state
        return states

    @contextmanager
    def _reading(self, input_ids: Tensor, layout: Layout | None) -> Iterator[dict[str, Any]]:
        """Yields how the networks are to be told of the rows, padded or packed."""
        if layout is None:
            every = torch.arange(input_ids.shape[1], device=input_ids.device)[None, :].expand_as(input_ids)
            yield {"input_ids": input_ids, "position_ids": every}
            return
        packed_ids = input_ids[layout.rows, layout.positions][None]
        with ExitStack() as opened:
            for packing in self._packing:
                opened.enter_context(packing.open())
            yield {"input_ids": packed_ids, "position_ids": layout.positions[None], "layout": layout}

    def _value(self, hidden: Tensor) -> Tensor:
        """[..., H] to [...] float32, whatever the trunk's precision."""
        values: Tensor = self.value_head(hidden.to(self.value_head.weight.dtype)).squeeze(-1).float()
        return values
