"""From a configuration to a reward replica, in the process that calls this."""

from common.classifier_config import RewardModelConfig
from common.classifiers import load_classifier
from common.config import RunConfig
from common.modeling import load_policy, resolve_device
from common.placement_config import RewardServiceConfig
from common.records import ModelPaths
from common.text import load_classifier_tokenizer, load_tokenizer
from reward_service.reference import Reference
from reward_service.scorers import ModelScorer, TextClassifier
from reward_service.service import RewardService


def build_service(config: RunConfig, paths: ModelPaths) -> RewardService:
    """A replica with the reward model, the judge where `paths` names one, and the reference where it is kept here.

    For evaluation (a judge is named) the reference is always here, for KL is measured whoever trained.
    """
    ppo = config.ppo
    assert ppo is not None, "a reward service is of a PPO stage"
    assert config.reward_model is not None, "the configuration demands a reward model"
    classifiers = {"reward_model": _classifier(config.reward_service, config.reward_model, paths.reward_model)}
    if paths.judge is not None:
        assert config.judge is not None, "the configuration demands a judge"
        classifiers["judge"] = _classifier(config.reward_service, config.judge, paths.judge)
    scorer = ModelScorer(
        classifiers, load_tokenizer(paths.policy), prompt_baseline=ppo.score_baseline == "prompt" and not paths.judge
    )
    reference = None
    if ppo.reference == "service" or paths.judge is not None:
        placement = config.reward_service
        policy = load_policy(paths.policy, dtype=config.learner.dtype)
        policy.to(resolve_device(placement.device, placement.num_gpus))
        reference = Reference(
            policy, temperature=ppo.temperature, batch_sequences=config.reward_service.batch_sequences
        )
    return RewardService(scorer, reference)


def _classifier(placement: RewardServiceConfig, table: RewardModelConfig, path: str) -> TextClassifier:
    model = load_classifier(path)
    model.to(resolve_device(placement.device, placement.num_gpus))
    return TextClassifier(
        model,
        load_classifier_tokenizer(path),
        positive_class=table.positive_class,
        max_tokens=table.max_tokens,
        batch_sequences=placement.batch_sequences,
    )
