"""Settings: what cannot be run is refused, and each message says what was got, what is legal and what to change."""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from pydantic_core import PydanticUndefined

from common import config as config_module
from common import data_config, kl_config, model_config, optimizer_config, ppo_config, scorer_config
from common.config import RunConfig
from common.config_base import Config
from common.config_file import load_config
from common.errors import ConfigError
from common.model_config import FreshModel
from common.ppo_config import PPOConfig

TINY = Path(__file__).parents[2] / "deploy" / "configs" / "tiny.toml"
NO_KL = "ppo.kl={type='fixed', coef=0}"


def error(*changes: str) -> str:
    """What is said of the tiny configuration after these changes."""
    with pytest.raises(ConfigError) as raised:
        load_config(TINY, changes)
    return str(raised.value)


def ppo(**settings: Any) -> PPOConfig:
    return PPOConfig(data=["reviews"], updates=3, **settings)


def all_configs() -> list[type[Config]]:
    modules = (config_module, data_config, kl_config, model_config, optimizer_config, ppo_config, scorer_config)
    found = {c for m in modules for c in vars(m).values() if isinstance(c, type) and issubclass(c, Config)}
    return sorted(found - {Config}, key=lambda c: c.__name__)


# --- unknown keys


@pytest.mark.parametrize(
    ("change", "place", "wrong", "close"),
    [
        ("sede=3", "the run", "sede", "seed"),
        ("ppo.clipeps=0.1", "ppo", "clipeps", "clip_eps"),
        ("ppo.response_tokens.maximum=3", "ppo.response_tokens", "maximum", "max"),
        ("ppo.optimizer.learning_lr=1", "ppo.optimizer.adamw", "learning_lr", None),
        ("ppo.optimizer.bettas=[0.9, 0.9]", "ppo.optimizer.adamw", "bettas", "betas"),
        ("ppo.kl={type='adaptive', horizn=3}", "ppo.kl.adaptive", "horizn", "horizon"),
        ("reward_model.classifier.pair_bucket=3", "reward_model.classifier.bag", "pair_bucket", "pair_buckets"),
        ("judge.training.epoch=3", "judge.training.labels", "epoch", "epochs"),
        ("data.reviews.prepare.lowercas=true", "data.reviews.inline.prepare", "lowercas", "lowercase"),
        ("rollout.worker=4", "rollout", "worker", "workers"),
    ],
)
def test_a_misspelt_key_is_named_with_the_close_one(change, place, wrong, close):
    message = error(change)
    assert f"  {place}: unknown key {wrong!r}:" in message
    assert (f"did you mean {close!r}?" if close else "legal keys are") in message


def test_a_misspelt_key_comes_with_all_legal_ones():
    message = error("rollout.zzz=1")
    assert "did you mean" not in message
    listed = message.split("legal keys are ")[1].strip().split(", ")
    assert listed == list(config_module.RolloutConfig.model_fields)


def test_every_problem_has_its_line():
    lines = error("ppo.updates=0", "rollout.workers=0", "control.port=70000").splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["ppo.updates", "rollout.workers", "control.port"]
    assert "(got 70000)" in lines[2]


def test_an_unknown_tag_names_the_legal_ones():
    message = error("ppo.optimizer={type='sgd', lr=1}")
    assert "ppo.optimizer" in message
    assert "'sgd'" in message
    assert "'adamw', 'muon'" in message


def test_a_missing_tag_is_asked_for():
    assert '  ppo.kl: type is missing, and the other keys depend on it; add type = "..."' in error("ppo.kl.coef=0.1")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("heldout_fraction=0", "heldout_fraction"),
        ("heldout_fraction=1", "heldout_fraction"),
        ("seed=-1", "seed"),
        ("seed=2147483648", "seed"),
        ("name='../escape'", "name"),
        ("name='.hidden'", "name"),
        ("ppo.temperature=0", "ppo.temperature"),
        ("ppo.gamma=1.01", "ppo.gamma"),
        ("ppo.gae_lambda=-0.1", "ppo.gae_lambda"),
        ("ppo.clip_eps=0", "ppo.clip_eps"),
        ("ppo.kl={type='fixed', coef=-0.1}", "ppo.kl.fixed.coef"),
        ("ppo.updates=2.5", "ppo.updates"),
        ("ppo.optimizer.betas=[0.9, 1.0]", "ppo.optimizer.adamw.betas.1"),
        ("ppo.optimizer.eps=-1e-8", "ppo.optimizer.adamw.eps"),
        ("rollout.chunk_sequences=0", "rollout.chunk_sequences"),
        ("rollout.num_cpus=0", "rollout.num_cpus"),
        ("learner.threads=0", "learner.threads"),
        ("learner.device='tpu'", "learner.device"),
        ("reward_model.training.half='c'", "reward_model.training.labels.half"),
        ("reward_model.classifier.vocabulary_size=3", "reward_model.classifier.bag.vocabulary_size"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_place(change, place):
    message = error(change)
    assert f"  {place}: " in message
    assert "(got " in message


# --- sizes


def test_indivisible_minibatches_get_a_suggestion():
    message = error("ppo.trajectories_per_update=30", "ppo.minibatch_sequences=8", "ppo.microbatch_sequences=8")
    assert "trajectories_per_update=30 must divide by minibatch_sequences=8" in message
    assert "trajectories_per_update=32" in message


@given(n=st.integers(1, 600), m=st.integers(1, 600), u=st.none() | st.integers(1, 64))
def test_every_suggested_size_is_legal(n, m, u):
    try:
        ppo(trajectories_per_update=n, minibatch_sequences=m, microbatch_sequences=u)
    except ValueError as problem:
        message = str(problem)
    else:
        assert n % m == 0
        assert u is None or m % u == 0
        return
    if n % m:
        keeps_microbatch = u is not None and any(n % d == 0 for d in range(u, n + 1, u))
        [a] = re.findall(r"try minibatch_sequences=(\d+)", message)
        [b] = re.findall(r"or trajectories_per_update=(\d+)", message)
        ppo(trajectories_per_update=n, minibatch_sequences=int(a), microbatch_sequences=u if keeps_microbatch else None)
        ppo(trajectories_per_update=int(b), minibatch_sequences=m)
    else:
        [c] = re.findall(r"must divide by microbatch_sequences=\d+; try (\d+)", message)
        ppo(trajectories_per_update=n, minibatch_sequences=m, microbatch_sequences=int(c))


def test_microbatches_must_divide_minibatches():
    message = error("ppo.microbatch_sequences=5")
    assert "minibatch_sequences=16 must divide by microbatch_sequences=5; try 4" in message


@example(width=8, heads=3)
@given(width=st.integers(8, 300), heads=st.integers(1, 40))
def test_every_suggested_width_is_legal(width, heads):
    try:
        model = FreshModel(hidden_size=width, num_heads=heads)
    except ValueError as problem:
        [suggested] = re.findall(r"try hidden_size=(\d+)", str(problem))
        assert FreshModel(hidden_size=int(suggested), num_heads=heads).hidden_size == int(suggested)
    else:
        assert model.hidden_size % (2 * model.num_heads) == 0, "rotary embeddings turn pairs of dimensions"


# --- the objective


def test_kl_may_not_count_twice():
    message = error("ppo.kl_loss_coef=0.1")
    assert "kl.coef=0.1" in message
    assert "kl_loss_coef=0.1" in message
    assert "set one of them to 0" in message
    assert load_config(TINY, ["ppo.kl_loss_coef=0.1", NO_KL]).ppo.kl_loss_coef == 0.1


@pytest.mark.parametrize("kl", [[], [NO_KL, "ppo.kl_loss_coef=0.1"]])
def test_kl_needs_a_reference(kl):
    message = error('ppo.reference="none"', *kl)
    assert 'reference="none" leaves nothing to measure KL against' in message
    assert 'reference = "service"' in message


def test_without_kl_no_reference_is_needed():
    assert load_config(TINY, ["ppo.reference=none", NO_KL]).ppo.reference == "none"


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_only_k1_may_be_the_penalty_in_the_reward(estimator):
    message = error(f"ppo.kl_estimator={estimator}")
    assert f"kl_estimator='{estimator}' for a penalty in the reward: only k1 there gives the gradient" in message
    assert "set kl_estimator = 'k1', or leave it out" in message


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_only_k2_may_be_the_penalty_in_the_loss(estimator):
    message = error(f"ppo.kl_estimator={estimator}", NO_KL, "ppo.kl_loss_coef=0.1")
    assert f"kl_estimator='{estimator}' for a penalty in the loss: only k2 there gives the gradient" in message
    assert load_config(TINY, ["ppo.kl_estimator=k2", NO_KL, "ppo.kl_loss_coef=0.1"]).ppo.kl_estimator == "k2"


def test_a_nucleus_is_refused_in_training_and_allowed_in_evaluation():
    message = error("ppo.top_p=0.9")
    assert "top_p=0.9 in training" in message
    assert "the ratio and the KL of such samples do not exist; set ppo.top_p = 1" in message
    assert load_config(TINY, ["evaluate.top_p=0.9", "ppo.top_p=1"]).evaluate.top_p == 0.9


# --- groups


FOUR = "ppo.samples_per_prompt=4"


@pytest.mark.parametrize("kind", ["rloo", "group_norm"])
def test_comparing_samples_needs_two_or_more(kind):
    message = error(f"ppo.advantage={kind}")
    assert f"advantage='{kind}' compares the samples of one prompt, and samples_per_prompt=1 leaves nothing" in message
    assert "set samples_per_prompt to 2 or more" in message


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("ppo.gamma=0.9", "gamma=0.9"),
        ("ppo.bootstrap_truncated=true", "bootstrap_truncated=True"),
        ("ppo.value_warmup_updates=1", "value_warmup_updates=1"),
    ],
)
def test_what_only_a_value_head_can_do_is_refused_without_one(change, named):
    message = error(FOUR, "ppo.advantage=rloo", change)
    assert f"{named} is for a value head, and advantage='rloo' has none" in message
    assert load_config(TINY, [FOUR, change]).ppo.advantage == "gae"


@pytest.mark.parametrize(
    ("beside", "named"),
    [((FOUR, "ppo.advantage=rloo"), "advantage='rloo' needs none"), (("ppo.trainable_layers=1",), "the top 1 layers")],
)
def test_a_value_network_of_its_own_is_refused_where_nothing_would_come_of_it(beside, named):
    assert named in error(*beside, "ppo.value_network=own")
    assert load_config(TINY, ["ppo.value_network=own"]).ppo.value_network == "own"


@pytest.mark.parametrize(("kind", "whitening"), [("gae", "batch"), ("rloo", "none"), ("group_norm", "none")])
def test_advantages_are_whitened_unless_groups_centre_them(kind, whitening):
    changes = [FOUR, NO_KL, f"ppo.advantage={kind}"]
    assert load_config(TINY, changes).ppo.whitening == whitening
    told = load_config(TINY, [*changes, "ppo.advantage_whitening=minibatch"])
    assert told.ppo.whitening == "minibatch"


@pytest.mark.parametrize(("kl", "coef"), [([], "0.1"), (["ppo.kl={type='adaptive'}"], "0.2")])
def test_group_norm_takes_its_kl_in_the_loss_alone(kl, coef):
    message = error(FOUR, "ppo.advantage=group_norm", *kl)
    assert f"advantage='group_norm' with kl.coef={coef} in the reward" in message
    assert 'set kl = { type = "fixed", coef = 0 } and kl_loss_coef above 0 instead' in message
    right = load_config(TINY, [FOUR, "ppo.advantage=group_norm", NO_KL, "ppo.kl_loss_coef=0.04"]).ppo
    assert (right.kl.coef, right.kl_loss_coef) == (0, 0.04)
    assert load_config(TINY, [FOUR, "ppo.advantage=rloo", *kl]).ppo.kl.coef == float(coef)


@given(n=st.integers(1, 40), m=st.integers(1, 12), k=st.integers(1, 9))
def test_every_suggested_number_of_samples_is_legal(n, m, k):
    sizes = {"minibatch_sequences": m, "samples_per_prompt": k}
    try:
        ppo(trajectories_per_update=n * m, **sizes)
    except ValueError as problem:
        [suggested] = re.findall(
            r"counts samples, and must divide by samples_per_prompt=\d+; try trajectories_per_update=(\d+)",
            str(problem),
        )
        ppo(trajectories_per_update=int(suggested), **sizes)
    else:
        assert n * m % k == 0


def test_a_chunk_holds_whole_groups():
    message = error("ppo.samples_per_prompt=16")
    assert "rollout.chunk_sequences=8 counts samples, and must divide by ppo.samples_per_prompt=16" in message
    assert "try rollout.chunk_sequences=16" in message


# --- schedule and microbatches


def test_a_schedule_and_its_final_share_agree():
    assert "never reaches lr_final_fraction=0.5" in error("ppo.lr_schedule=constant", "ppo.lr_final_fraction=0.5")
    assert "never falls; set lr_final_fraction = 0" in error("ppo.lr_schedule=cosine")


def test_microbatches_are_cut_by_samples_or_by_tokens():
    message = error("ppo.microbatch_tokens=64")
    assert "microbatch_sequences=8 and microbatch_tokens=64 both say how a minibatch is cut" in message
    document = tomllib.loads(TINY.read_text())
    del document["ppo"]["microbatch_sequences"]
    document["ppo"]["microbatch_tokens"] = 10
    with pytest.raises(ValueError, match=r"cannot hold one sample of up to 11 tokens .*set it to 11 or more"):
        RunConfig.model_validate(document)
    document["ppo"]["microbatch_tokens"] = 11
    assert RunConfig.model_validate(document).ppo.microbatch_tokens == 11


def test_staleness_is_as_large_as_one_likes_and_its_weights_are_cut_at_one_or_more():
    ppo = load_config(TINY, ["ppo.max_staleness=4", "ppo.importance_cap=inf"]).ppo
    assert ppo is not None
    assert ppo.max_staleness == 4
    assert "importance_cap" in error("ppo.importance_cap=0.9")


@pytest.mark.parametrize("warmup", [3, 4])
def test_value_warmup_leaves_updates_for_the_policy(warmup):
    message = error(f"ppo.value_warmup_updates={warmup}")
    assert f"value_warmup_updates={warmup} leaves none of updates=3" in message
    assert "lower it" in message


def test_value_warmup_may_take_all_but_one_update():
    assert load_config(TINY, ["ppo.value_warmup_updates=2"]).ppo.value_warmup_updates == 2


def test_a_short_adaptive_horizon_would_turn_the_coefficient_negative():
    message = error("ppo.kl={type='adaptive', horizon=6}")
    assert "kl.horizon=6 with trajectories_per_update=32" in message
    [suggested] = re.findall(r"set it to (\d+) or more", message)
    for horizon in (7, int(suggested)):
        assert load_config(TINY, [f"ppo.kl={{type='adaptive', horizon={horizon}}}"]).ppo.kl.horizon == horizon


def test_a_length_range_is_ordered():
    message = error("ppo.prompt_tokens={min=5, max=3}")
    assert "ppo.prompt_tokens: min=5 is above max=3; swap them or make them equal" in message
    assert load_config(TINY, ["ppo.prompt_tokens={min=3, max=3}"]).ppo.prompt_tokens.min == 3


# --- stages


def test_a_fresh_model_needs_pretraining(tiny):
    with pytest.raises(ValueError, match=r"a fresh model knows nothing; add a \[pretrain\] table"):
        RunConfig.model_validate({**tiny().model_dump(), "pretrain": None})


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("{type='pretrained', path='m.gguf'}", 'is a GGUF file, and type = "pretrained" takes a folder'),
        ("{type='gguf', path='m.gguf', file='x.gguf'}", "remove one of them"),
        ("{type='gguf', package='p'}", "a GGUF model needs path"),
        ("{type='gguf'}", "a GGUF model needs path"),
        ("{type='gguf', path='m.gguf'}", "[pretrain] is for fresh models"),
    ],
)
def test_a_model_file_is_named_in_one_way(model, said):
    assert said in error(f"model={model}")


def test_a_pretrained_model_is_not_pretrained_again():
    assert "[pretrain] is for fresh models; remove the table" in error("model={type='pretrained', path='gpt2'}")


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("reward_model", r"\[ppo\] has nothing to maximise; add a \[reward_model\] table"),
        ("ppo", r"\[evaluate\] compares before and after PPO; add a \[ppo\] table"),
        ("judge", r"\[evaluate\] needs a judge that PPO never sees; add a \[judge\] table"),
    ],
)
def test_a_stage_without_what_it_needs_is_named(tiny, missing, message):
    with pytest.raises(ValueError, match=message):
        RunConfig.model_validate({**tiny().model_dump(), missing: None})


def test_an_untrained_classifier_of_ours_is_refused(tiny):
    document = tiny().model_dump()
    document["judge"]["training"] = None
    with pytest.raises(ValueError, match='classifier type "conv" starts untrained; add a training table'):
        RunConfig.model_validate(document)


def test_a_pretrained_classifier_needs_no_training(tiny):
    document = tiny().model_dump()
    document["judge"] = {"classifier": {"type": "pretrained", "path": "some/judge"}}
    assert RunConfig.model_validate(document).judge.training is None


@pytest.mark.parametrize(("a", "b"), [("a", "a"), ("b", "b"), ("all", "b"), ("a", "all"), ("all", "all")])
def test_judge_and_reward_model_may_not_share_labels(a, b):
    message = error(f"reward_model.training.half={a}", f"judge.training.half={b}")
    assert f"reward_model and judge train on the same labels of reviews (halves {a!r} and {b!r})" in message
    assert "set half to 'a' in one and 'b' in the other" in message


def test_judge_and_reward_model_may_use_all_of_different_data():
    other = "data.other={type='inline', texts=['x y', 'z'], labels=[0, 1]}"
    halves = ("reward_model.training.half=all", "judge.training.half=all")
    assert load_config(TINY, [other, "judge.training.data=['other']", *halves]).judge.training.half == "all"


@pytest.mark.parametrize("stage", ["pretrain", "sft", "ppo", "reward_model.training", "judge.training"])
def test_an_unknown_data_source_is_named_with_those_that_are_defined(stage):
    message = error(f"{stage}.data=['reviws']")
    assert f"{stage}.data names 'reviws', which is no data source; defined are: reviews" in message
    assert "add [data.reviws]" in message


@pytest.mark.parametrize(
    ("source", "key"),
    [
        ("{type='inline', texts=['x']}", "labels"),
        ("{type='files', paths=['x.csv']}", "label_column"),
        ("{type='package', package='x', file='x.csv'}", "label_column"),
    ],
)
@pytest.mark.parametrize("stage", ["reward_model", "judge"])
def test_classifiers_need_labels(stage, source, key):
    message = error(f"data.bare={source}", f"{stage}.training.data=['bare']")
    assert f"{stage} trains on data.bare, which has no labels; set data.bare.{key}" in message


def test_prompt_and_response_fit_the_model():
    message = error("ppo.response_tokens={min=4, max=30}")
    assert "prompts of 3 and responses of 30 tokens exceed model.max_tokens=32; set it to 33 or more" in message
    assert load_config(TINY, ["ppo.response_tokens={min=4, max=29}"]).ppo.response_tokens.max == 29
    assert load_config(TINY, ["ppo.response_tokens.max=30", "model.max_tokens=33"]).model.max_tokens == 33


# --- the tree itself


def test_configurations_cannot_be_changed(tiny):
    with pytest.raises(ValueError, match="frozen"):
        tiny().ppo.updates = 4


@pytest.mark.parametrize("config", all_configs(), ids=lambda c: c.__name__)
def test_every_setting_says_what_it_is(config):
    assert config.__doc__
    for name, field in config.model_fields.items():
        assert field.description, f"{config.__name__}.{name} has no docstring under it"
        assert field.description.strip().endswith((".", "!", ")")), f"{config.__name__}.{name}: {field.description!r}"


@pytest.mark.parametrize("config", all_configs(), ids=lambda c: c.__name__)
def test_what_can_be_nothing_is_nothing_unless_set(config):
    """TOML has no null: where the default were something, nothing could not be written."""
    for name, field in config.model_fields.items():
        if type(None) in get_args(field.annotation):
            assert field.default is None, f"{config.__name__}.{name}"


def test_no_default_is_written_twice():
    """A setting that a subclass inherits is not declared again, and tables that default do so to their own defaults."""
    for config in all_configs():
        inherited = {name for base in config.__mro__[1:] for name in vars(base).get("__annotations__", {})}
        again = (inherited & set(vars(config).get("__annotations__", {}))) - {"model_config"}
        assert not again, f"{config.__name__} declares {again} again"
    for config in (RunConfig, PPOConfig, data_config.Columns, data_config.InlineSource):
        for name, field in config.model_fields.items():
            value = field.default
            if isinstance(value, Config) and not any(f.is_required() for f in type(value).model_fields.values()):
                assert value == type(value)(), f"{config.__name__}.{name}"


def test_defaults_are_legal():
    """Pydantic does not check defaults of its own accord."""
    for config in all_configs():
        for field in config.model_fields.values():
            if field.default is not PydanticUndefined:
                assert TypeAdapter(Annotated[field.annotation, field]).validate_python(field.default) == field.default


@pytest.mark.parametrize(("num_cpus", "threads"), [(0.1, 1), (1, 1), (1.5, 1), (2, 2), (4.9, 4), (64, 64)])
def test_threads_follow_the_cpus_unless_set(tiny, num_cpus, threads):
    assert tiny(f"learner.num_cpus={num_cpus}").learner.num_threads == threads
    assert tiny(f"learner.num_cpus={num_cpus}", "learner.threads=3").learner.num_threads == 3
    assert tiny(f"learner.num_cpus={num_cpus}", "learner.threads='cpus'").learner.num_threads == threads


@pytest.mark.parametrize("threads", ["0", "-1", "1.5", "true", "'all'"])
def test_threads_that_are_no_number_are_one_error_with_both_legal_forms(threads):
    message = error(f"rollout.threads={threads}")
    assert message.count("rollout.threads: ") == 1
    assert 'must be a whole number of at least 1, or "cpus" to follow num_cpus (got ' in message


def test_a_process_has_a_part_of_one_gpu_or_whole_ones(tiny):
    assert "num_gpus=1.5: a process has a fraction of one GPU, or whole ones; try 1 or 2" in error(
        "learner.num_gpus=1.5"
    )
    assert [tiny(f"learner.num_gpus={gpus}").learner.num_gpus for gpus in (0.3, 1, 2)] == [0.3, 1, 2]
