"""The evaluation stage: the policies before and after PPO answer the same held-out prompts, and are judged.

The *reward* of a response is its score in the mixture of `reward_service.scorers`, without a prompt baseline: with the
reward model alone, at weight 1, that is its logit. A prompt of which one response has no score is left out of both
sides and counted.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry
from transformers import PreTrainedTokenizerBase

from actors.evaluate import distinct_n, win_rate
from actors.prompt_texts import build_prompts
from common.errors import DataError, MemberFailedError
from common.metrics import RunMetrics
from common.ports import Transport
from common.records import ChunkHandle, Identity, Judgement, ModelPaths, Prompt, Rollout, StageResult
from common.supervision import Ledger
from common.text import decode, eos_token_ids, load_tokenizer
from deploy.event_log import EventLog
from deploy.place import Place
from deploy.pools import supervised
from deploy.ppo_stage import clear_samples
from deploy.progress import stage_bar
from deploy.recorder import append_json

FETCH_TIMEOUT_S = 120.0
BEFORE, AFTER = Identity(-1, 0), Identity(-1, 1)
"""Weights of an evaluation belong to no lineage of training."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One policy's response to one prompt, judged."""

    rollout: Rollout
    judgement: Judgement
    kl_seq_sum: float
    """Sampled KL to the policy before PPO, in nats."""

    def part(self, name: str) -> float:
        """A scorer's own number."""
        return self.judgement.parts[name]


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt, answered before and after PPO."""

    prompt: Prompt
    before: Answer
    after: Answer


def evaluate_stage(place: Place, models: ModelPaths, trained: str) -> StageResult:
    """Compare the policies before and after PPO on held-out prompts, by the reward and by the judge.

    Args:
        place: where it runs.
        models: policy before PPO, reward model and judge.
        trained: folder of the policy after PPO.

    Raises:
        DataError: there are not enough held-out prompts.
        MemberFailedError: no prompt has a score before and after; says why the last one has not.
    """
    config, folder = place.config, place.folder
    assert config.evaluate is not None, "the pipeline runs the stages that the configuration names"
    assert config.ppo is not None, "evaluation compares before and after PPO"
    start = time.monotonic()
    clear_samples(folder, heldout=True)
    stream = build_prompts(config, models, heldout=True)
    if len(stream) < config.evaluate.prompts:
        raise DataError(
            f"evaluate.prompts={config.evaluate.prompts}, but {', '.join(config.ppo.data)} hold only {len(stream)} "
            "held-out texts that a prompt can begin; lower it, or raise heldout_fraction"
        )
    prompts = stream.take(config.evaluate.prompts)
    metrics = RunMetrics(CollectorRegistry())
    log = EventLog(folder, place.console, count=metrics.event)
    with (
        stage_bar(place.console, "evaluate") as show,
        place.runtime.members(config, models, folder, place.stop) as members,
        supervised(place, members, prompts=stream, metrics=metrics, ledger=Ledger(), note=log.note) as supervisor,
    ):
        show(0, 2, "before")
        supervisor.publish(members.weights_of(models.policy, BEFORE))
        chunks_before = supervisor.sample(prompts, top_p=config.evaluate.top_p)
        before = _answers(members.transport, chunks_before)
        show(1, 2, "after")
        supervisor.publish(members.weights_of(trained, AFTER))
        chunks_after = supervisor.sample(prompts, top_p=config.evaluate.top_p)
        after = _answers(members.transport, chunks_after)
    scored = before.keys() & after.keys()
    pairs = [Pair(p, before[p.draw_index], after[p.draw_index]) for p in prompts if p.draw_index in scored]
    if not pairs:
        raise MemberFailedError(_why_none([*chunks_before, *chunks_after], len(prompts)))
    tokenizer = load_tokenizer(models.policy)
    _keep_texts(folder, tokenizer, pairs[: config.evaluate.shown])
    counts = {"prompts": len(prompts)}
    if len(pairs) < len(prompts):
        counts["prompts_unscored"] = len(prompts) - len(pairs)
    compared = compare(pairs, ignore=eos_token_ids(tokenizer), seed=config.seed)
    return StageResult({**counts, **compared}, {"total": time.monotonic() - start})


def _answers(transport: Transport, chunks: Sequence[ChunkHandle]) -> dict[int, Answer]:
    """By draw index; those without a score are left out."""
    answers = {}
    for chunk in chunks:
        rollouts = transport.fetch(chunk.rollouts, FETCH_TIMEOUT_S).rollouts
        judgements = transport.fetch(chunk.judgements, FETCH_TIMEOUT_S).judgements
        references = transport.fetch(chunk.reference, FETCH_TIMEOUT_S).logprobs
        for rollout, judgement, reference in zip(rollouts, judgements, references, strict=True):
            if judgement is not None:
                kl = float((rollout.logprobs - reference).sum())
                answers[rollout.draw_index] = Answer(rollout, judgement, kl)
    return answers


def _why_none(chunks: Sequence[ChunkHandle], num_prompts: int) -> str:
    last = [unscored for chunk in chunks for unscored in chunk.judge_stats.unscored][-1:]
    why = "".join(f"; the last one: {unscored.reason}: {unscored.detail}" for unscored in last)
    return f"none of evaluate.prompts={num_prompts} has a score before and after PPO{why}"


def compare(pairs: Sequence[Pair], *, ignore: frozenset[int], seed: int) -> dict[str, Any]:
    """The numbers of summary.json that follow from the answers.

    `reward_*` is the mean score; `p_positive_*` is there where the reward model is among the scorers.

    Args:
        pairs: at least one.
        ignore: ids that are no words, as EOS.
        seed: of the win rate's interval.
    """
    numbers: dict[str, Any] = {}
    sides = {"before": [pair.before for pair in pairs], "after": [pair.after for pair in pairs]}
    for when, answers in sides.items():
        numbers[f"reward_{when}"] = float(np.mean([a.judgement.score for a in answers]))
        if "reward_model_p_positive" in answers[0].judgement.parts:
            numbers[f"p_positive_{when}"] = float(np.mean([a.part("reward_model_p_positive") for a in answers]))
        numbers[f"judge_p_positive_{when}"] = float(np.mean([a.part("judge_p_positive") for a in answers]))
        responses = [a.rollout.response_ids for a in answers]
        numbers[f"distinct_2_{when}"] = distinct_n(responses, 2, ignore=ignore)
        numbers[f"response_tokens_{when}"] = float(np.mean([len(ids) for ids in responses]))
    judge_before, judge_after = (np.array([a.part("judge") for a in answers]) for answers in sides.values())
    rate, interval = win_rate(judge_before, judge_after, seed=seed)
    kl = np.array([a.kl_seq_sum for a in sides["after"]])
    return numbers | {
        "kl_seq_sum": float(kl.mean()),
        "kl_token_mean": float(kl.sum() / sum(len(a.rollout.response_ids) for a in sides["after"])),
        "win_rate": rate,
        "win_rate_ci95": list(interval),
    }


def _keep_texts(folder: Path, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> None:
    for pair in pairs:
        append_json(
            folder / "samples.jsonl",
            {
                "kind": "heldout",
                "prompt": decode(tokenizer, pair.prompt.token_ids),
                "before": decode(tokenizer, pair.before.rollout.response_ids),
                "after": decode(tokenizer, pair.after.rollout.response_ids),
                "score_before": pair.before.judgement.score,
                "score_after": pair.after.judgement.score,
                "judge_before": pair.before.part("judge_p_positive"),
                "judge_after": pair.after.part("judge_p_positive"),
            },
        )
