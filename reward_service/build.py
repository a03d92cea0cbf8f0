"""From a configuration to a reward replica, in the process that calls this."""

from collections.abc import Mapping, Sequence

from common.classifier_config import RewardModelConfig
from common.classifiers import load_classifier
from common.config import RunConfig
from common.modeling import load_policy, resolve_device, resolve_dtype
from common.placement_config import RewardServiceConfig
from common.records import ModelPaths
from common.scorer_config import FunctionScorerConfig, HttpScorerConfig, ModelScorerConfig, ScorerConfig
from common.text import load_classifier_tokenizer, load_tokenizer
from reward_service.function_scorer import FunctionScorer
from reward_service.http_scorer import HttpScorer
from reward_service.mixture import Mixture, Term
from reward_service.model_scorer import ModelScorer, TextClassifier
from reward_service.reference import Reference
from reward_service.scorers import Scorer
from reward_service.service import RewardService


def build_service(config: RunConfig, paths: ModelPaths, secrets: Mapping[str, str]) -> RewardService:
    """A replica with the scorers, the judge where `paths` names one, and the reference where it is kept here.

    Where a judge is named, the reference is always here, for evaluations measure KL whoever computes it in training.
    The judge is in a mixture of its own, which has no prompt baseline and shares the scorers: the numbers, and the
    scorer version, of training are the same with and without it.

    Args:
        config: the run.
        paths: of the models.
        secrets: values of the environment variables that scorers name.

    Raises:
        ConfigError: a scorer cannot be built: its function cannot be imported, say.
    """
    ppo, placement = config.ppo, config.reward_service
    assert ppo is not None, "a reward service is of a PPO stage"
    reference = None
    if ppo.reference == "service" or paths.judge is not None:
        device = resolve_device(placement.device, placement.num_gpus)
        dtype = resolve_dtype(config.learner.dtype, device, serves=False)  # the learner's: KL is their difference
        policy = load_policy(paths.policy, dtype=dtype)
        policy.to(device)
        reference = Reference(policy, batch_sequences=placement.batch_sequences)
    terms = _terms(config, paths, secrets)
    evaluator = _evaluator(terms, config, paths) if paths.judge is not None else None
    return RewardService(_mixture(terms, config, paths), reference, evaluator)


def build_mixture(config: RunConfig, paths: ModelPaths, secrets: Mapping[str, str]) -> Mixture:
    """The scorers alone, as training sees them; arguments and errors as of `build_service`."""
    return _mixture(_terms(config, paths, secrets), config, paths)


def _terms(config: RunConfig, paths: ModelPaths, secrets: Mapping[str, str]) -> list[Term]:
    return [Term(_scorer(one, config, paths, secrets), one.weight) for one in config.reward_service.scorers]


def _mixture(terms: Sequence[Term], config: RunConfig, paths: ModelPaths) -> Mixture:
    placement = config.reward_service
    return Mixture(
        terms,
        load_tokenizer(paths.policy),
        budget_s=placement.scoring_budget_s,
        probe_budget_s=placement.sync_timeout_s / 2,
    )


def _evaluator(terms: Sequence[Term], config: RunConfig, paths: ModelPaths) -> Mixture:
    """The same scorers without a prompt baseline, and the judge at weight 0."""
    assert config.judge is not None, "the configuration demands a judge"
    assert paths.judge is not None, "whoever evaluates names the judge"
    judge = ModelScorer("judge", text_classifier(config.reward_service, config.judge, paths.judge))
    return _mixture([*(_without_baseline(term) for term in terms), Term(judge, 0.0)], config, paths)


def _without_baseline(term: Term) -> Term:
    """The same term, its number that of the whole text."""
    scorer = term.scorer
    return Term(ModelScorer(scorer.name, scorer.classifier), term.weight) if isinstance(scorer, ModelScorer) else term


def _scorer(scorer: ScorerConfig, config: RunConfig, paths: ModelPaths, secrets: Mapping[str, str]) -> Scorer:
    match scorer:
        case ModelScorerConfig():
            assert config.ppo is not None, "a reward service is of a PPO stage"
            assert config.reward_model is not None, "the configuration demands a reward model"
            assert paths.reward_model is not None, "the pipeline names the reward model that a scorer needs"
            return ModelScorer(
                scorer.name,
                text_classifier(config.reward_service, config.reward_model, paths.reward_model),
                prompt_baseline=config.ppo.score_baseline == "prompt",
            )
        case FunctionScorerConfig():
            function = FunctionScorer(scorer)
            function.start()
            return function
        case HttpScorerConfig():
            return HttpScorer.from_config(scorer, secrets[scorer.token_env] if scorer.token_env is not None else None)


def text_classifier(placement: RewardServiceConfig, table: RewardModelConfig, path: str) -> TextClassifier:
    """Reward model or judge, from its folder or hub name, where `placement` wants it."""
    model = load_classifier(path)
    model.to(resolve_device(placement.device, placement.num_gpus))
    return TextClassifier(
        model,
        load_classifier_tokenizer(path),
        positive_class=table.positive_class,
        max_tokens=table.max_tokens,
        batch_sequences=placement.batch_sequences,
    )
