"""The size of models, from their shapes: tensors of torch's device `meta` hold no memory, and its fake tensors carry
shapes through a real pass besides, which costs four times as much.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode  # where torch's own guides import it from
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DynamicCache,
    PretrainedConfig,
    PreTrainedModel,
)

from common.classifier_config import (
    BagOfNgrams,
    ConvClassifier,
    PolicyClassifier,
    PreferenceTraining,
    PretrainedClassifier,
    RewardModelConfig,
)
from common.classifiers import BagClassifier, BagConfig, ConvConfig, ConvTextClassifier
from common.config import RunConfig
from common.hub import join_revision
from common.modeling import PolicyWithValueHead, decoder_layers, freeze_below, resolve_dtype
from common.optimizer_config import Muon
from common.ppo_config import PPOConfig
from deploy.explain.counts import learns_on_cpu, microbatch_rows
from deploy.explain.sizes import PassSize, PolicySize, bytes_of
from deploy.preflight.models import load_shape
from learner.optimizers import is_table


def policy_size(shape: PretrainedConfig, config: RunConfig) -> PolicySize:
    """Count a policy that is never loaded.

    Args:
        shape: of the policy.
        config: the run; what is trained, and how, follows from its PPO stage.
    """
    with torch.device("meta"):  # where transformers too builds a model before it loads it
        policy = _unloaded_policy(shape, config)
    parameters = list(policy.named_parameters())
    trained = [(name, p) for name, p in parameters if p.requires_grad]
    is_muon = config.ppo is not None and isinstance(config.ppo.optimizer, Muon)
    matrices = [p for name, p in trained if is_muon and p.ndim == 2 and not is_table(name)]
    text = shape.get_text_config()
    value_trunk = [p.numel() for p in policy.base_model.parameters()] if _has_own_values(config) else []
    return PolicySize(
        parameters=sum(p.numel() for _, p in parameters),
        value_bytes=bytes_of(config.learner.dtype),
        tensors=len(parameters),
        trained=sum(p.numel() for _, p in trained),
        trained_tensors=len(trained),
        by_muon=sum(p.numel() for p in matrices),
        muon_tensors=len(matrices),
        trains_head=config.ppo is None or config.ppo.uses_value_head,
        value_trunk=sum(value_trunk),
        value_trunk_tensors=len(value_trunk),
        width=text.hidden_size,
        vocabulary=text.vocab_size,
        layers=len(decoder_layers(policy)),
    )


def pass_size(shape: PretrainedConfig, config: RunConfig) -> PassSize | None:
    """What passes of the PPO stage hold; None where an architecture cannot be followed without its numbers."""
    ppo = config.ppo
    assert ppo is not None, "the passes are those of PPO"
    try:
        with FakeTensorMode():
            policy = _unloaded_policy(shape, config)
            cache = _cache_values(policy)
            value_trunk = _unloaded_policy(shape, config).base_model if _has_own_values(config) else None
            model = PolicyWithValueHead(policy, value_trunk=value_trunk)
            if learns_on_cpu(config):
                model.fuse()
            return PassSize(cache, _live_bytes(model, ppo))
    except RuntimeError:  # torch's word for a pass that depends on values; fake tensors have none
        return None


def _has_own_values(config: RunConfig) -> bool:
    return config.ppo is not None and config.ppo.value_network == "own"


def _unloaded_policy(shape: PretrainedConfig, config: RunConfig) -> PreTrainedModel:
    """To be called with fake tensors on, each FakeTensorMode knows its own only, or on the device `meta`."""
    policy = AutoModelForCausalLM.from_config(
        shape, dtype=resolve_dtype(config.learner.dtype, torch.device("cpu"), serves=False)
    )
    if config.ppo is not None and config.ppo.trainable_layers is not None:
        freeze_below(policy, config.ppo.trainable_layers)
    return policy


def _cache_values(policy: PreTrainedModel) -> int:
    """Numbers that the key-value cache holds after one token."""
    cache = DynamicCache(config=policy.config)
    with torch.no_grad():
        policy(input_ids=torch.zeros(1, 1, dtype=torch.int64), past_key_values=cache, use_cache=True)
    return sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)


def _live_bytes(model: PolicyWithValueHead, ppo: PPOConfig) -> int:
    """Bytes that a pass keeps for its backward pass, parameters left out."""
    rows, prompt, response = microbatch_rows(ppo), ppo.prompt_tokens.max, ppo.response_tokens.max
    with saved_bytes(model) as saved:
        ids = torch.zeros(rows, prompt + response, dtype=torch.int64)
        prompts, responses = torch.full((rows,), prompt), torch.full((rows,), response)
        out = model(ids, prompts, responses, response, ppo.temperature, num_live=rows * response)
        _ = out.logprobs.sum() + out.entropy.sum() + out.values.sum()
    return sum(saved.values())


@contextmanager
def saved_bytes(model: torch.nn.Module) -> Iterator[dict[int, int]]:
    """Sizes of the storages that autograd keeps inside; those of parameters are not counted."""
    own = {p.untyped_storage()._cdata for p in model.parameters()}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []  # else a storage that is let go gives its address to the next

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            sizes[storage._cdata] = storage.nbytes()
            alive.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield sizes


def classifier_parameters(table: RewardModelConfig, policy: PretrainedConfig | None) -> int | None:
    """Parameters of a classifier; of a fresh one at most, for its vocabulary may turn out smaller.

    Args:
        table: of the classifier.
        policy: shape of the policy, for a classifier that starts from it; None: then its size is not known either.

    Raises:
        ConfigError: a pre-trained one cannot be had.
    """
    num_labels = 1 if isinstance(table.training, PreferenceTraining) else 2
    with FakeTensorMode():
        match table.classifier:
            case BagOfNgrams() as bag:
                buckets = bag.pair_buckets
                model = BagClassifier(BagConfig(bag.vocabulary_size, buckets, num_labels=num_labels))
            case ConvClassifier() as conv:
                sizes = (conv.vocabulary_size, conv.embedding_size, conv.num_filters, conv.kernel_words)
                model = ConvTextClassifier(ConvConfig(*sizes, num_labels=num_labels))
            case PolicyClassifier() if policy is None:
                return None
            case PolicyClassifier():
                model = _classifier_of(policy, num_labels)
            case PretrainedClassifier(path=path, revision=revision):
                shape = load_shape(join_revision(path, revision))
                model = _classifier_of(shape, shape.num_labels if table.training is None else num_labels)
    return int(sum(p.numel() for p in model.parameters()))


def _classifier_of(shape: PretrainedConfig, num_labels: int) -> PreTrainedModel:
    shape = copy.deepcopy(shape)
    shape.num_labels = num_labels
    return AutoModelForSequenceClassification.from_config(shape)
