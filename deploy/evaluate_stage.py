"""The evaluation stage: the policies before and after PPO answer the same held-out prompts, and are judged."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from actors.evaluate import distinct_n, win_rate
from actors.prompt_texts import build_prompts
from common.config import RunConfig
from common.errors import DataError
from common.metrics import RunMetrics
from common.ports import Transport
from common.records import ChunkHandle, Identity, ModelPaths, Prompt, Rollout, StageResult
from common.text import decode, eos_token_ids, load_tokenizer
from deploy.ppo_stage import clear_samples, make_conductor
from deploy.progress import stage_bar
from deploy.recorder import append_json
from deploy.runtime import Runtime
from deploy.stop_signal import StopSignal

FETCH_TIMEOUT_S = 120.0
BEFORE, AFTER = Identity(-1, 0), Identity(-1, 1)
"""Weights of an evaluation belong to no lineage of training."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Responses of one policy to the evaluation's prompts, judged. N prompts."""

    rollouts: list[Rollout]
    parts: dict[str, npt.NDArray[np.float64]]
    """[N] each, by name."""
    kl_seq_sum: npt.NDArray[np.float64]
    """[N] sampled KL to the policy before PPO, in nats."""


def evaluate_stage(
    config: RunConfig, runtime: Runtime, folder: Path, paths: dict[str, str], console: Console, stop: StopSignal
) -> StageResult:
    """Compare the policies before and after PPO on held-out prompts, by the reward model and by the judge."""
    assert config.evaluate is not None, "the pipeline runs the stages that the configuration names"
    assert config.ppo is not None, "evaluation compares before and after PPO"
    start = time.monotonic()
    clear_samples(folder, heldout=True)
    models = ModelPaths(paths["policy"], paths["reward_model"], paths["judge"])
    stream = build_prompts(config, models, heldout=True)
    if len(stream) < config.evaluate.prompts:
        raise DataError(
            f"evaluate.prompts={config.evaluate.prompts}, but {', '.join(config.ppo.data)} hold only {len(stream)} "
            "held-out texts that a prompt can begin; lower it, or raise heldout_fraction"
        )
    prompts = stream.take(config.evaluate.prompts)
    with (
        stage_bar(console, "evaluate") as show,
        runtime.members(config, models, folder) as members,
    ):
        show(0, 2, "before")
        conductor = make_conductor(config, members, RunMetrics(CollectorRegistry()), stream)
        conductor.publish(members.weights_of(paths["policy"], BEFORE))
        before = _answers(members.transport, conductor.sample(prompts))
        stop.raise_if_requested()
        show(1, 2, "after")
        conductor.publish(members.weights_of(paths["ppo"], AFTER))
        after = _answers(members.transport, conductor.sample(prompts))
    tokenizer = load_tokenizer(models.policy)
    _keep_texts(folder, tokenizer, prompts[: config.evaluate.shown], before, after)
    compared = compare(before, after, ignore=eos_token_ids(tokenizer), seed=config.seed)
    return StageResult({"prompts": len(prompts), **compared}, {"total": time.monotonic() - start})


def _answers(transport: Transport, chunks: Sequence[ChunkHandle]) -> Answers:
    rollouts, parts, kl = [], [], []
    for chunk in chunks:
        generated = transport.fetch(chunk.rollouts, FETCH_TIMEOUT_S).rollouts
        reference = transport.fetch(chunk.reference, FETCH_TIMEOUT_S).logprobs
        rollouts += generated
        parts += [j.parts for j in transport.fetch(chunk.judgements, FETCH_TIMEOUT_S).judgements]
        kl += [float((r.logprobs - ref).sum()) for r, ref in zip(generated, reference, strict=True)]
    columns = {name: np.array([p[name] for p in parts]) for name in parts[0]}
    return Answers(rollouts, columns, np.array(kl))


def compare(before: Answers, after: Answers, *, ignore: frozenset[int], seed: int) -> dict[str, Any]:
    """The numbers of summary.json that follow from the answers."""
    rate, interval = win_rate(before.parts["judge"], after.parts["judge"], seed=seed)
    numbers: dict[str, Any] = {}
    for when, answers in (("before", before), ("after", after)):
        numbers |= {
            f"reward_{when}": float(answers.parts["reward_model"].mean()),
            f"p_positive_{when}": float(answers.parts["reward_model_p_positive"].mean()),
            f"judge_p_positive_{when}": float(answers.parts["judge_p_positive"].mean()),
            f"distinct_2_{when}": distinct_n([r.response_ids for r in answers.rollouts], 2, ignore=ignore),
            f"response_tokens_{when}": float(np.mean([len(r.response_ids) for r in answers.rollouts])),
        }
    tokens = sum(len(r.response_ids) for r in after.rollouts)
    return numbers | {
        "kl_seq_sum": float(after.kl_seq_sum.mean()),
        "kl_token_mean": float(after.kl_seq_sum.sum() / tokens),
        "win_rate": rate,
        "win_rate_ci95": list(interval),
    }


def _keep_texts(
    folder: Path, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], before: Answers, after: Answers
) -> None:
    for i, prompt in enumerate(prompts):
        append_json(
            folder / "samples.jsonl",
            {
                "kind": "heldout",
                "prompt": decode(tokenizer, prompt.token_ids),
                "before": decode(tokenizer, before.rollouts[i].response_ids),
                "after": decode(tokenizer, after.rollouts[i].response_ids),
                "score_before": before.parts["reward_model"][i],
                "score_after": after.parts["reward_model"][i],
                "judge_before": before.parts["judge_p_positive"][i],
                "judge_after": after.parts["judge_p_positive"][i],
            },
        )
