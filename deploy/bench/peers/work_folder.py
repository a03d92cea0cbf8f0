"""Writes what all peers work on: models with the same random weights, prompts, a tokenizer. Read by `programs/`.

Files are such that libraries of three ages read the same out of them.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, LlamaConfig, PretrainedConfig, PreTrainedModel

from common.seeds import generator, seed_everything
from deploy.bench.peers.programs.task import END, PADDING, Task

PROGRAMS = Path(__file__).parent / "programs"
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
"""Shape of the reward model, and of the smallest value model."""
_PROMPTS = 1


def write_work(folder: Path, policy: PreTrainedModel, task: Task) -> None:
    """Fill a folder for a task.

    Args:
        folder: exists.
        policy: is changed so that nothing ends a response.
        task: which hyperparameters, and how many steps.
    """
    task.write(folder)
    size = policy.config.vocab_size
    drawn = generator(task.seed, _PROMPTS).integers(size, size=(task.steps * task.batch, task.prompt_tokens))
    (folder / "prompts.json").write_text(json.dumps(np.asarray(drawn).tolist()), encoding="utf-8")
    _tokenizer(size).save(str(folder / "tokenizer.json"))
    policy.config.eos_token_id = policy.generation_config.eos_token_id = None
    _save(policy, folder / "policy")
    _save(_value_model(policy), folder / "value")
    small = LlamaConfig(vocab_size=size, pad_token_id=1, eos_token_id=None, bos_token_id=None, num_labels=1, **SMALL)
    with torch.random.fork_rng():
        seed_everything(task.seed)
        judge = AutoModelForSequenceClassification.from_config(small)
        value = AutoModelForSequenceClassification.from_config(small)
    torch.nn.init.zeros_(value.score.weight)
    _save(judge, folder / "reward")
    _save(value, folder / "small_value")
    shutil.copytree(PROGRAMS, folder / "code" / "deploy" / "bench" / "peers" / "programs", ignore=_not_source)


def _not_source(_folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".py")]


def _value_model(policy: PreTrainedModel) -> PreTrainedModel:
    """The policy's network with a number in place of its words, 0 everywhere as that of a value head."""
    config: PretrainedConfig = type(policy.config)(**(policy.config.to_dict() | {"num_labels": 1}))
    value: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    prefix = value.base_model_prefix
    getattr(value, prefix).load_state_dict(getattr(policy, prefix).state_dict())
    torch.nn.init.zeros_(value.score.weight)
    return value


def _save(model: PreTrainedModel, folder: Path) -> None:
    """In Hugging Face's format, with the entries too that older libraries look for."""
    model.save_pretrained(folder)
    path = folder / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    rope = written.get("rope_parameters") or {}
    written |= {"torch_dtype": "float32"} | ({"rope_theta": rope["rope_theta"]} if "rope_theta" in rope else {})
    path.write_text(json.dumps(written, indent=1), encoding="utf-8")


def _tokenizer(size: int) -> Tokenizer:
    """A word for each id, so that text and ids are the same; its special tokens are beyond what a model can sample."""
    words = {f"w{i}": i for i in range(size)} | {END: size, PADDING: size + 1}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=END))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([END, PADDING])
    return tokenizer
