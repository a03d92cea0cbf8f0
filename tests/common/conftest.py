"""Tiny policies with random weights large enough that a mistake shows."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM


def make_llama(*, vocab_size=97, seed=0, **changes):
    torch.manual_seed(seed)
    settings = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    settings |= {"max_position_embeddings": 64, "initializer_range": 0.25, "tie_word_embeddings": True}
    settings |= {"attention_dropout": 0.5, "pad_token_id": None, "eos_token_id": 2, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **settings | changes))


def make_gpt2(*, vocab_size=97, seed=0, **changes):
    torch.manual_seed(seed)
    settings = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "initializer_range": 0.25}
    settings |= {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5, "eos_token_id": 2, "bos_token_id": None}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **settings | changes))


@pytest.fixture(scope="session")
def llama():
    return make_llama


@pytest.fixture(scope="session")
def gpt2():
    return make_gpt2


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def architecture(request):
    """Both with dropout 0.5 in their configuration."""
    return {"llama": make_llama, "gpt2": make_gpt2}[request.param]
