"""What `config explain` says before a run is what the run then reports."""

import io
import json
import shutil
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors import safe_open

import actors.llama_decoder
import actors.lockstep
from actors.engine import SamplingEngine
from common.checkpoint import TENSORS
from common.classifiers import load_classifier
from common.config import RunConfig
from common.gguf_file import import_gguf
from common.modeling import PolicyWithValueHead, load_policy
from common.records import Identity, ModelPaths, Progress
from common.weights import weights_of
from deploy.explain.counts import chunks_per_update
from deploy.explain.explain import explain
from deploy.explain.memory import memory_of_learner, memory_of_replicas
from deploy.explain.model import policy_size, saved_bytes
from deploy.explain.sizes import PassSize, checkpoint_bytes, optimizer_bytes
from deploy.explain.view import to_json
from deploy.local import LocalRuntime
from deploy.pipeline import Pipeline
from deploy.preflight.models import policy_shape
from deploy.run import run_pipeline
from learner.service import build_learner
from learner.stages import StageRequest, run_stage
from reward_service.build import build_service

MUON = 'ppo.optimizer={type = "muon", lr = 1e-3, adamw_lr = 1e-3}'
CHANGED = (
    "ppo.trainable_layers=1",
    "ppo.reference=shared_trunk",
    MUON,
    "ppo.microbatch_sequences=4",
    "ppo.epochs=3",
    "ppo.updates=2",
    "ppo.checkpoint_every=1",
    "ppo.trajectories_per_update=48",
    "rollout.workers=3",
    "rollout.chunk_sequences=7",
    "evaluate.every_updates=1",
)


GROUPS = {
    "samples_per_prompt": 4,
    "advantage": "rloo",
    "microbatch_sequences": None,
    "microbatch_tokens": 40,
    "updates": 1,
}


def told(config, **options):
    """Values by group and name, as `--json` prints them."""
    return json.loads(to_json(config.name, explain(config, read=False, **options)))


class Passes:
    """Counts the passes of learners: rows and tokens, with gradients and without."""

    def __init__(self):
        self.with_gradients, self.without = [], []

    def __call__(self, module, arguments, output):
        if isinstance(module, PolicyWithValueHead):
            shape = arguments[0].shape
            (self.with_gradients if torch.is_grad_enabled() else self.without).append(tuple(shape))


@contextmanager
def counted():
    passes = Passes()
    handle = torch.nn.modules.module.register_module_forward_hook(passes)
    try:
        yield passes
    finally:
        handle.remove()


@pytest.fixture(scope="module", params=["tiny", "changed", "groups"])
def finished(request, tiny, tiny_run, tmp_path_factory):
    """What is told of a configuration, and a run of it: PPO and evaluation anew, the rest as in `tiny`."""
    config = tiny(*(CHANGED if request.param == "changed" else ()))
    if request.param == "groups":
        settings = tiny().model_dump()
        config = RunConfig.model_validate(settings | {"ppo": settings["ppo"] | GROUPS})
    folder = tmp_path_factory.mktemp("explained") / "tiny"
    shutil.copytree(tiny_run, folder)
    with counted() as passes:
        run_pipeline(config, folder, local=True, address=None, again=frozenset({"ppo"}))
    by_tokens = config.ppo.microbatch_tokens is not None
    return SimpleNamespace(said=told(config), folder=folder, passes=passes, by_tokens=by_tokens)


def rows_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def stage(folder, name):
    return json.loads((folder / "stages" / f"{name}.json").read_text(encoding="utf-8"))["metrics"]


def test_supervised_stages_take_the_steps_that_are_told(finished):
    said, folder = finished.said, finished.folder
    for name in ("pretrain", "sft"):
        assert (said[name]["texts"], said[name]["steps"]) == (
            stage(folder, name)["texts"],
            stage(folder, name)["steps"],
        )
    for name in ("reward_model", "judge"):
        assert said[name]["texts"] == stage(folder, name)["texts"]


def test_ppo_takes_the_steps_and_samples_that_are_told(finished):
    said, folder = finished.said, finished.folder
    rows = rows_of(folder)
    assert len(rows) == said["sampling"]["updates"]
    assert [row["metrics"]["optimizer_steps"] for row in rows] == [said["optimizing"]["steps_per_update"]] * len(rows)
    assert sum(row["metrics"]["optimizer_steps"] for row in rows) == said["optimizing"]["steps"]
    assert rows[-1]["ledger"]["trained"] == said["sampling"]["trajectories"]
    tokens = [row["metrics"]["response_tokens"] for row in rows]
    assert 0 < max(tokens) <= said["sampling"]["response_tokens_per_update"]
    assert sum(tokens) <= said["sampling"]["response_tokens"]


def test_passes_of_the_learner_are_as_many_and_as_large_as_told(finished):
    said, passes = finished.said, finished.passes
    optimizing = said["optimizing"]
    number, most = len(passes.with_gradients), optimizing["steps"] * optimizing["passes_per_step"]
    assert number == most or (finished.by_tokens and 0.5 * most < number < most)
    largest = max(rows * tokens for rows, tokens in passes.with_gradients)
    assert 0.7 * optimizing["tokens_per_pass"] <= largest <= optimizing["tokens_per_pass"]
    read = sum(rows for rows, _ in passes.with_gradients)
    read += sum(rows for rows, tokens in passes.without if tokens != 12)  # those of 12 are probes
    assert read == optimizing["learner_forwards_per_sequence"] * said["sampling"]["trajectories"]


def test_the_policy_has_the_parameters_that_are_told(finished):
    said, folder = finished.said, finished.folder
    assert said["model"]["parameters"] == stage(folder, "pretrain")["parameters"]
    published = weights_of(str(folder / "models" / "ppo"), Identity(0, 0))
    assert published.ref.nbytes == said["traffic"]["bytes_per_publish"]


def test_files_are_as_large_as_told(finished):
    said, folder = finished.said, finished.folder
    files = list((folder / "trajectories").iterdir())
    assert len(files) == said["sampling"]["updates"]
    for file in files:
        assert (
            0.6 * said["disk"]["trajectory_file_bytes"] < file.stat().st_size <= said["disk"]["trajectory_file_bytes"]
        )
    kept = sorted((folder / "checkpoints").iterdir())
    assert len(kept) <= said["optimizing"]["checkpoints_written"]
    size = (kept[-1] / TENSORS).stat().st_size
    assert size == pytest.approx(said["disk"]["checkpoint_bytes"], rel=0.01)


def test_parameters_of_a_checkpoint_are_those_that_are_trained(finished):
    said, folder = finished.said, finished.folder
    (newest,) = sorted((folder / "checkpoints").iterdir())[-1:]
    with safe_open(newest / TENSORS, "np") as tensors:
        sizes = {name: np.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    policy = sum(size for name, size in sizes.items() if name.startswith("model.policy."))
    head = sum(size for name, size in sizes.items() if name.startswith("model.value_head."))
    first = sum(size for name, size in sizes.items() if name.endswith((".exp_avg", ".momentum_buffer")))
    assert (policy, head) == (said["model"]["parameters"], said["model"]["value_head_parameters"])
    assert first - (0 if finished.by_tokens else head) == said["model"]["trained_parameters"]


LABELS = ("reward_model.training.epochs=4", "reward_model.training.batch_sequences=5")
PAIRS = (
    'data.reviews.rows={type = "label_pairs"}',
    'reward_model.training={type = "preferences", data = ["reviews"], half = "a", epochs = 3, batch_rankings = 4, '
    'optimizer = {type = "adamw", lr = 1e-2}}',
)


@pytest.mark.parametrize("changes", [LABELS, PAIRS, (*PAIRS, "reward_model.training.batch_rankings=1000")])
def test_a_reward_model_takes_the_steps_that_are_told(tiny, tmp_path, changes):
    config = tiny(*changes)
    items = list(run_stage(StageRequest("reward_model", config, None, str(tmp_path / "model"))))
    progress = [item for item in items if isinstance(item, Progress)][-1]
    said = told(config)["reward_model"]
    assert said["steps"] == progress.step == progress.total
    metrics = items[-1].metrics
    assert said["texts"] == metrics.get("texts", metrics.get("rankings"))


def test_demonstrations_are_counted_as_the_learner_counts_them(tiny, tiny_run, tmp_path):
    rows = ", ".join(
        f'{{prompt = "the film {word}", response = "is good"}}' for word in ("i", "it", "a", "the", "good")
    )
    source = f'data.chats={{type = "inline", rows = {{type = "demonstrations"}}, records = [{rows}]}}'
    config = tiny(source, 'sft.data=["reviews", "chats"]', "sft.epochs=3", "sft.weights={reviews = 1, chats = 2}")
    request = StageRequest("sft", config, str(tiny_run / "models" / "pretrained"), str(tmp_path / "model"))
    metrics = list(run_stage(request))[-1].metrics
    said = told(config)["sft"]
    assert (said["texts"], said["steps"]) == (metrics["texts"], metrics["steps"])


def test_evaluations_are_as_many_as_told(finished):
    said, file = finished.said["evaluation"], finished.folder / "evaluations.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    assert said["evaluations_in_training"] == len(lines)
    assert said["responses_in_training"] == sum(json.loads(line)["prompts"] for line in lines)
    assert said["responses"] == 2 * stage(finished.folder, "evaluate")["prompts"]
    judged = said["responses"] + said["responses_in_training"]
    assert finished.said["sampling"]["evaluation_sequences"] == judged


# --- memory


@pytest.mark.parametrize(
    "changes",
    [
        [],
        ["ppo.trainable_layers=1"],
        ["ppo.trainable_layers=1", "ppo.reference=shared_trunk"],
        [MUON],
        ["learner.dtype=bfloat16"],
        [MUON, "learner.dtype=bfloat16", "ppo.trainable_layers=2"],
        ["ppo.value_network=own"],
        ["ppo.value_network=own", "ppo.reference=shared_trunk"],
        [MUON, "learner.dtype=bfloat16", "ppo.value_network=own"],
    ],
)
def test_the_learner_holds_what_is_told(tiny, tiny_run, changes):
    """Of the real learner after a step: weights, gradients, optimizer state."""
    config = tiny(*changes)
    models = tiny_run / "models"
    learner = build_learner(config, ModelPaths(str(models / "sft"), str(models / "reward_model")), tiny_run).learner
    for parameter in learner.plain.parameters():
        parameter.grad = parameter.detach().clone() if parameter.requires_grad else None
    for optimizer in learner.optimizers:
        optimizer.step()
    parameters = list(learner.plain.parameters())
    state = [value for o in learner.optimizers for slots in o.state.values() for value in slots.values()]
    size = policy_size(learner.plain.policy.config, config)
    said = {f.name: f.value for f in memory_of_learner(config, config.ppo, size, PassSize(0, 0)).figures}
    assert said["weights_bytes"] == sum(p.nbytes for p in parameters)
    assert said["gradients_bytes"] == sum(p.grad.nbytes for p in parameters if p.grad is not None)
    assert said["optimizer_bytes"] == optimizer_bytes(size) == sum(value.nbytes for value in state)
    frozen = learner._ref_weights or {}
    assert said.get("frozen_bytes", 0) == sum(value.nbytes for value in frozen.values())
    assert checkpoint_bytes(size) > said["weights_bytes"] + said["optimizer_bytes"]


def parameters_of(service):
    """Bytes of all that a replica has loaded, each model once."""
    mixtures = [service.scorer, *([service._evaluator] if service._evaluator else [])]
    models = {id(term.scorer.classifier.model): term.scorer.classifier.model for m in mixtures for term in m.terms}
    held = [*models.values(), *([service._reference.policy] if service._reference else [])]
    return sum(p.nbytes for model in held for p in model.parameters())


REFERENCES = {
    "service": [],
    "shared_trunk": ["ppo.reference=shared_trunk", "ppo.trainable_layers=1"],
    "none": ["ppo.reference=none", "ppo.kl={type = 'fixed', coef = 0}"],
}


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize("evaluates", [True, False])
def test_a_replica_holds_what_is_told(tiny, tiny_run, reference, every, evaluates):
    """Of a real replica, as the pipeline asks for it: while PPO learns, and in the evaluation."""
    config = tiny(*REFERENCES[reference], f"evaluate.every_updates={every}", "learner.dtype=bfloat16")
    if not evaluates:
        config = config.model_copy(update={"evaluate": None})
    models = {name: str(tiny_run / "models" / name) for name in ("sft", "reward_model", "judge")}
    size = policy_size(load_policy(models["sft"]).config, config)
    loaded = {name: load_classifier(models[name]) for name in ("reward_model", "judge")}
    classifiers = {name: sum(p.numel() for p in model.parameters()) for name, model in loaded.items()}
    groups = memory_of_replicas(config, config.ppo, size, classifiers)
    held = {"memory_replica": "ppo"} | ({"memory_replica_evaluation": "evaluate"} if evaluates else {})
    assert [group.name for group in groups] == list(held)
    for group, (name, stage) in zip(groups, held.items(), strict=True):
        judge = models["judge"] if names_judge(config, tiny_run, stage) else None
        service = build_service(config, ModelPaths(models["sft"], models["reward_model"], judge), {})
        figures = {f.name: f.value for f in group.figures}
        weights = {key: n for key, n in figures.items() if key not in ("logits_bytes", "total_bytes")}
        assert sum(weights.values()) == parameters_of(service)
        assert figures["total_bytes"] == sum(weights.values()) + figures.get("logits_bytes", 0)
        assert set(told(config)[name]) == set(figures)


def names_judge(config, folder, stage):
    """Whether the pipeline gives its replicas a judge in this stage."""
    pipeline = Pipeline(
        config, folder, start_runtime=LocalRuntime, console=Console(file=io.StringIO()), again=frozenset()
    )
    return pipeline._judge(stage) is not None


@pytest.mark.parametrize(("kind", "batch"), [("auto", None), ("auto", 3), ("generic", None), ("generic", 3)])
def test_a_worker_holds_the_cache_that_is_told(tiny, tiny_run, monkeypatch, kind, batch):
    caches = []

    def recorded(cache):
        def made(*args, **settings):
            caches.append(cache(*args, **settings))
            return caches[-1]

        return made

    monkeypatch.setattr(actors.lockstep, "DynamicCache", recorded(actors.lockstep.DynamicCache))
    monkeypatch.setattr(actors.llama_decoder, "KVCache", recorded(actors.llama_decoder.KVCache))
    config = tiny(f"rollout.engine={kind}", *([f"rollout.batch_sequences={batch}"] if batch else []))
    rows, ppo = config.rollout.chunk_sequences, config.ppo
    policy = load_policy(str(tiny_run / "models" / "sft"))
    engine = SamplingEngine(policy, frozenset(), kind=kind, batch_sequences=batch)
    engine.sample(
        [np.ones(ppo.prompt_tokens.max, np.int32)] * rows,
        max_new_tokens=[ppo.response_tokens.max] * rows,
        seeds=list(range(rows)),
        temperature=1.0,
    )
    if kind == "auto":
        real = [cache.num_bytes for cache in caches]
        assert len(real) == 1, "its memory serves all batches of a call"
    else:
        real = [sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) for cache in caches]
    assert told(config)["memory_worker"]["cache_bytes"] == max(real)
    assert ("engine_bytes" in told(config)["memory_worker"]) == (kind == "auto")


@pytest.mark.parametrize(
    "changes", [[], ["ppo.trainable_layers=1"], ["ppo.microbatch_sequences=16"], ["ppo.value_network=own"]]
)
def test_activations_are_near_to_what_a_real_pass_keeps(tiny, tiny_run, changes):
    """An estimate, for kernels differ; on the CPU within a tenth."""
    config = tiny(*changes)
    ppo = config.ppo
    paths = ModelPaths(str(tiny_run / "models" / "sft"), None)
    model = build_learner(config, paths, tiny_run).learner.plain
    rows, prompt, response = ppo.microbatch_sequences, ppo.prompt_tokens.max, ppo.response_tokens.max
    with saved_bytes(model) as saved:
        lengths = torch.full((rows,), prompt), torch.full((rows,), response)
        model(torch.zeros(rows, prompt + response, dtype=torch.int64), *lengths, response, 1.0)
    assert told(config)["memory_learner"]["activations_bytes"] == pytest.approx(sum(saved.values()), rel=0.1)


@pytest.mark.parametrize("role", ["rollout", "learner"])
def test_a_precision_that_is_left_open_is_counted_as_float32_and_said_so(tiny, role):
    def because(dtype):
        groups = {group.name: group for group in explain(tiny(f"{role}.dtype={dtype}"), read=False)}
        figures = groups["memory_worker" if role == "rollout" else "memory_learner"].figures
        return next(f for f in figures if f.name == "weights_bytes")

    assert because("auto").value == because("float32").value
    assert "float32" in because("auto").because
    assert 'dtype = "auto"' in because("auto").because
    assert "auto" not in because("float32").because


# --- what is dispatched


@pytest.mark.parametrize("chunk", [5, 8, 32, 100])
def test_chunks_are_dispatched_as_told(tiny, make_bench, chunk):
    change = f"rollout.chunk_sequences={chunk}"
    bench = make_bench(change)
    bench.collect(32)
    requests, config = bench.requests(), tiny(change)
    assert len(requests) == chunks_per_update(config, config.ppo) == told(config)["sampling"]["chunks_per_update"]
    assert all(len(r.prompts) + r.fill == chunk for r in requests)


@pytest.mark.parametrize(("workers", "busiest"), [(1, 4), (2, 2), (3, 2), (4, 1), (9, 1)])
def test_the_busiest_worker_gets_its_share(tiny, workers, busiest):
    said = told(tiny(f"rollout.workers={workers}"))
    assert said["sampling"]["chunks_per_worker"] == busiest
    assert said["sampling"]["sequences_per_worker"] == 8 * busiest
    assert said["traffic"]["publish_bytes_per_update"] == workers * said["traffic"]["bytes_per_publish"]


# --- what cannot be known


def test_a_fresh_policy_whose_data_are_not_read_is_told_from_above(tiny, tiny_run):
    real = (tiny_run / "models" / "sft" / "model.safetensors").stat().st_size
    assert real <= policy_size(policy_shape(tiny()), tiny()).weights_bytes < 2 * real


def test_a_model_that_is_not_here_leaves_its_bytes_out(tiny):
    settings = tiny().model_dump() | {"model": {"type": "pretrained", "path": "nobody/nothing"}, "pretrain": None}
    groups = {group.name: group for group in explain(RunConfig.model_validate(settings), read=False)}
    (figure,) = groups["model"].figures
    assert (figure.value, figure.shown) == (None, "?")
    assert "nobody/nothing is not on this machine" in figure.because
    assert groups["optimizing"].figures, "what needs no model is told all the same"
    assert not groups.keys() & {"memory_learner", "traffic", "disk"}


def from_gguf(tiny, **model):
    settings = tiny("sft.max_tokens=32").model_dump() | {"pretrain": None, "model": {"type": "gguf", **model}}
    return RunConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({"package": "no_such_wheel", "file": "x.gguf", "install": "wheel==1"}, "pip install wheel==1"),
        ({"path": "/nowhere/x.gguf"}, "'/nowhere/x.gguf' is no file; name a GGUF file"),
    ],
)
@pytest.mark.parametrize("read", [False, True])
def test_a_gguf_file_that_is_not_here_leaves_its_numbers_out_and_says_why(tiny, model, why, read):
    groups = {g.name: {f.name: f for f in g.figures} for g in explain(from_gguf(tiny, **model), read=read)}
    assert groups["model"]["parameters"].shown == groups["sft"]["steps"].shown == "?"
    assert why in groups["model"]["parameters"].because
    assert groups["sft"]["texts"].because == "it is known once the policy's tokenizer is here"


def test_texts_are_counted_by_the_tokenizer_in_a_gguf_file(tiny, tiny_gguf, tmp_path):
    config = from_gguf(tiny, path=str(tiny_gguf[0]))
    *_, base = import_gguf(tiny_gguf[0], tmp_path / "base")
    request = StageRequest("sft", config, str(tmp_path / "base"), str(tmp_path / "model"))
    metrics = list(run_stage(request))[-1].metrics
    said = told(config)
    assert said["model"]["parameters"] == base.metrics["parameters"]
    assert (said["sft"]["texts"], said["sft"]["steps"]) == (metrics["texts"], metrics["steps"])


def test_files_are_read_only_when_asked_for(tiny, tmp_path):
    (tmp_path / "a.csv").write_text("text\n" + "\n".join(f"a good film {i}" for i in range(40)), encoding="utf-8")
    change = f'data.mine={{type="files", paths=["{tmp_path / "a.csv"}"]}}'
    config = tiny(change, 'sft.data=["mine"]', 'ppo.data=["mine"]')
    groups = {g.name: {f.name: f for f in g.figures} for g in explain(config, read=False)}
    assert groups["sft"]["steps"].value is None
    assert "--read" in groups["data"]["mine_train"].because
    read = {g.name: {f.name: f for f in g.figures} for g in explain(config, read=True)}
    texts = read["data"]["mine_train"].value
    assert texts + read["data"]["mine_heldout"].value == 40
    assert read["sft"]["texts"].value == texts
    assert read["sft"]["steps"].value == max(1, round(2 * texts / 8))


@pytest.mark.parametrize("missing", ["ppo", "evaluate", "sft", "judge"])
def test_a_run_without_a_stage_is_explained_without_it(tiny, missing):
    gone = {"judge": {"judge": None, "evaluate": None}, "ppo": {"ppo": None, "evaluate": None}}
    config = tiny().model_copy(update=gone.get(missing, {missing: None}))
    said = told(config)
    assert missing not in said
    assert said["disk"]["models_bytes"] > 0
    assert ("sampling" in said) == (missing != "ppo")
