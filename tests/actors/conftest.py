"""Tiny policies with random weights large enough that a mistake shows, and a policy whose probabilities are a table."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

EOS = 2


def make_llama(*, vocab_size=97, seed=0, **changes):
    torch.manual_seed(seed)
    settings = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings |= {"max_position_embeddings": 64, "initializer_range": 0.25, "tie_word_embeddings": True}
    settings |= {"pad_token_id": 0, "eos_token_id": EOS, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **settings | changes)).eval()


def make_gpt2(*, vocab_size=97, seed=0, **changes):
    torch.manual_seed(seed)
    settings = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.25}
    settings |= {"eos_token_id": EOS, "bos_token_id": None, "pad_token_id": None}
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocab_size, **settings | changes)).eval()


class TablePolicy(nn.Module):
    """P(next token | this token) is a table; has the parts of a Hugging Face causal model that the engine uses."""

    def __init__(self, probabilities):
        super().__init__()
        self.table = nn.Parameter(torch.from_numpy(np.array(probabilities, dtype=np.float64)).log().float())
        self.config = LlamaConfig(vocab_size=len(self.table), num_hidden_layers=1)

    def forward(self, input_ids, position_ids, past_key_values, use_cache, logits_to_keep):
        return SimpleNamespace(logits=self.table[input_ids[:, -logits_to_keep:]])


@pytest.fixture(scope="session")
def llama():
    return make_llama


@pytest.fixture(scope="session")
def gpt2():
    return make_gpt2


@pytest.fixture(params=["llama", "gpt2"])
def architecture(request):
    return {"llama": make_llama, "gpt2": make_gpt2}[request.param]


@pytest.fixture(scope="session")
def table_policy():
    return TablePolicy
