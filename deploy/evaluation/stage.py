"""The evaluation stage: the policies before and after PPO answer the same held-out prompts, and are judged.

The *reward* of a response is its score in the mixture of `reward_service.scorers`, without a prompt baseline: with the
reward model alone, at weight 1, that is its logit. A prompt of which one response has no score is left out of both
sides and counted.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from actors.evaluate import win_rate
from common.errors import MemberFailedError
from common.records import Identity, ModelPaths, Prompt, StageResult
from common.supervision import Ledger
from common.text import decode, eos_token_ids, load_tokenizer
from deploy.chat.answers import Answer, fetch_answers, heldout_prompts, judged, kl_of, numbers_of, why_unscored
from deploy.evaluation.evaluations import BEFORE
from deploy.evaluation.rivals import compare_with
from deploy.place import Place
from deploy.ppo.pools import supervised
from deploy.ppo.recorder import append_json
from deploy.ppo.stage import clear_samples
from deploy.progress import stage_bar
from deploy.run_folder.event_log import EventLog

AFTER = Identity(-1, 1)
"""Weights of an evaluation belong to no lineage of training."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt, answered before and after PPO."""

    prompt: Prompt
    before: Answer
    after: Answer


def evaluate_stage(place: Place, models: ModelPaths, trained: str, rivals: Mapping[str, str]) -> StageResult:
    """Compare the policies before and after PPO on held-out prompts, by the reward and by the judge.

    Args:
        place: where it runs.
        models: policy before PPO, reward model and judge.
        trained: folder of the policy after PPO.
        rivals: other models that answer the same prompts, by the name that the configuration gives them.

    Raises:
        ConfigError: a rival cannot read the prompts.
        DataError: there are not enough held-out prompts.
        MemberFailedError: no prompt has a score before and after; says why the last one has not.
    """
    config, folder = place.config, place.folder
    assert config.evaluate is not None, "the pipeline runs the stages that the configuration names"
    start = time.monotonic()
    clear_samples(folder, heldout=True)
    stream, prompts = heldout_prompts(config, models, config.evaluate.prompts)
    metrics = place.metrics
    log = EventLog(folder, place.console, count=metrics.event)
    with stage_bar(place.console, "evaluate", place.controls.progress) as show:
        total = 2 + len(rivals)
        with (
            place.runtime.members(config, models, folder, place.stop, with_learner=False) as members,
            supervised(place, members, prompts=stream, metrics=metrics, ledger=Ledger(), note=log.note) as supervisor,
        ):
            show(0, total, "before")
            supervisor.publish(members.weights_of(models.policy, BEFORE))
            chunks_before = supervisor.sample(prompts, top_p=config.evaluate.top_p)
            before = fetch_answers(members.transport, chunks_before)
            show(1, total, "after")
            supervisor.publish(members.weights_of(trained, AFTER))
            chunks_after = supervisor.sample(prompts, top_p=config.evaluate.top_p)
            after = fetch_answers(members.transport, chunks_after)
        scored = before.keys() & after.keys()
        pairs = [Pair(p, before[p.draw_index], after[p.draw_index]) for p in prompts if p.draw_index in scored]
        if not pairs:
            raise MemberFailedError(
                f"none of evaluate.prompts={len(prompts)} has a score before and after PPO"
                f"{why_unscored([*chunks_before, *chunks_after])}"
            )
        tokenizer = load_tokenizer(models.policy)
        against = {}
        for done, (name, path) in enumerate(rivals.items(), start=2):
            show(done, total, f"against {name}")
            against[name] = compare_with(name, path, place, models, (stream, prompts), after, metrics=metrics, log=log)
    _keep_texts(folder, tokenizer, pairs[: config.evaluate.shown])
    numbers: dict[str, Any] = {"prompts": len(prompts)}
    if len(pairs) < len(prompts):
        numbers["prompts_unscored"] = len(prompts) - len(pairs)
    numbers |= compare(pairs, ignore=eos_token_ids(models.policy, tokenizer), seed=config.seed)
    if against:
        numbers["against"] = against
    return StageResult(numbers, {"total": time.monotonic() - start})


def compare(pairs: Sequence[Pair], *, ignore: frozenset[int], seed: int) -> dict[str, Any]:
    """The numbers of summary.json that follow from the answers.

    `reward_*` is the mean score; `p_positive_*` is there where the reward model is among the scorers.

    Args:
        pairs: at least one.
        ignore: ids that are no words, as EOS.
        seed: of the win rate's interval.
    """
    before, after = [pair.before for pair in pairs], [pair.after for pair in pairs]
    numbers: dict[str, Any] = {}
    for when, answers in (("before", before), ("after", after)):
        numbers |= {f"{name}_{when}": value for name, value in numbers_of(answers, ignore=ignore).items()}
    rate, interval = win_rate(judged(before), judged(after), seed=seed)
    return numbers | kl_of(after) | {"win_rate": rate, "win_rate_ci95": list(interval)}


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
