"""Models to measure with: well-known shapes with random weights, for speed does not depend on what they have learnt."""

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig, PreTrainedModel

from common.errors import ConfigError
from common.modeling import load_policy, without_dropout
from common.seeds import seed_everything

SHAPES: dict[str, PretrainedConfig] = {
    "tiny": LlamaConfig(
        vocab_size=4096, hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0, pad_token_id=1,
    ),
    "gpt2-small": GPT2Config(bos_token_id=None, eos_token_id=0, pad_token_id=1),
    "smollm2-135m": LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=2048, tie_word_embeddings=True, rms_norm_eps=1e-5,
        rope_theta=100000.0, bos_token_id=None, eos_token_id=0, pad_token_id=1,
    ),
}  # fmt: skip
"""By the name that `--model` takes."""


def model_of(name: str, *, seed: int = 0) -> PreTrainedModel:
    """A model of a known shape with random weights, or that of a folder or the hub.

    Raises:
        ConfigError: it is neither.
    """
    if name not in SHAPES:
        try:
            return load_policy(name)
        except OSError as error:
            raise ConfigError(
                f"--model {name}: neither a shape ({', '.join(SHAPES)}) nor a model folder or name of the hub: {error}"
            ) from error
    with torch.random.fork_rng():
        seed_everything(seed)
        return without_dropout(AutoModelForCausalLM.from_config(SHAPES[name], dtype=torch.float32))
