"""Evaluations while PPO learns: the published weights answer fixed held-out prompts, scored by reward and by judge.

    loop ── at(step) ──▶ supervisor.sample ── answers ──▶ evaluations.jsonl, Prometheus, a line on the terminal
                                                   └────▶ over-optimisation alarm ──▶ events.jsonl

The same workers and replicas do it, between two updates; prompts and noise are those of the evaluation after PPO. The
file is the memory: what it holds is done, and what a rewind cuts away is done again.
"""

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from pydantic import JsonValue
from rich.console import Console
from rich.markup import escape
from transformers import PreTrainedTokenizerBase

from actors.evaluate import standardised_rise, win_rate
from common.config import RunConfig
from common.errors import MemberFailedError, PhaseTimeoutError
from common.evaluate_config import EvaluateConfig
from common.metrics import RunMetrics
from common.ports import Transport
from common.records import ChunkHandle, Identity, ModelPaths, Prompt, WeightsHandle
from common.text import decode, eos_token_ids, load_tokenizer
from deploy.chat.answers import Answer, fetch_answers, heldout_prompts, judged, kl_of, numbers_of, scores, why_unscored
from deploy.evaluation.over_optimisation import Point, divergence, is_over_optimised, point_of
from deploy.fingerprint import folder_hash, reading_of
from deploy.place import Place
from deploy.ppo.recorder import append_json
from deploy.ppo.supervisor import Supervisor
from deploy.run_folder.evaluation_file import EvaluationLine, differences, read_evaluations
from deploy.stopwatch import Stopwatch

BEFORE = Identity(-1, 0)
"""Weights before PPO, where they are evaluated after it has begun: of no lineage of training."""
MAX_ATTEMPTS = 3
"""Times that the answers may be lost with their node before they could be fetched."""


@dataclass(frozen=True, slots=True)
class Heldout:
    """What is asked, who reads it, and by whom it is judged."""

    prompts: Sequence[Prompt]
    tokenizer: PreTrainedTokenizerBase
    """The policy's."""
    eos_ids: frozenset[int]
    """That end its responses, and are no words."""
    asked: dict[str, JsonValue]
    """Evaluations that differ in it are not compared."""


def heldout_of(config: RunConfig, models: ModelPaths) -> Heldout | None:
    """What is asked while PPO learns, None where nothing is; raises DataError if there are too few prompts."""
    if models.judge is None:
        return None
    assert config.evaluate is not None, "whoever evaluates has a table that says how"
    _, prompts = heldout_prompts(config, models, config.evaluate.num_in_training)
    folder = Path(models.judge)
    tokenizer = load_tokenizer(models.policy)
    judge_hash = folder_hash(folder) if folder.is_dir() else models.judge
    asked = asked_of(config, prompts, judge_hash)
    return Heldout(prompts, tokenizer, eos_token_ids(models.policy, tokenizer), asked)


def asked_of(config: RunConfig, prompts: Sequence[Prompt], judge_hash: str) -> dict[str, JsonValue]:
    """All but the policy that decides the judge's numbers: judge, how it is read, prompts, and how responses are drawn.

    Args:
        config: the run.
        prompts: what is asked; their lengths of responses count too.
        judge_hash: of the judge's folder.
    """
    assert config.evaluate is not None, "whoever evaluates has a table that says how"
    assert config.ppo is not None, "held-out prompts are of the data of a PPO stage"
    ids = json.dumps([[p.draw_index, p.max_new_tokens, p.token_ids.tolist()] for p in prompts])
    return {
        "judge": judge_hash,
        **{f"judge.{name}": value for name, value in (reading_of(config.judge) or {}).items()},
        "evaluate.top_p": config.evaluate.top_p,
        "ppo.temperature": config.ppo.temperature,
        "seed": config.seed,
        "prompts": xxhash.xxh3_128_hexdigest(ids.encode()),
    }


class NoEvaluations:
    """Implements `common.ports.Evaluations` where the configuration wants none."""

    def at(self, step: int) -> None:
        """Nothing is evaluated."""


class HeldoutEvaluations:
    """Implements `common.ports.Evaluations`.

    Args:
        place: where it runs.
        heldout: what is asked.
        supervisor: asks it.
        transport: brings the answers.
        weights_before: the weights before PPO, where their evaluation is missing.
        metrics: the Prometheus registry's.
        watch: told the seconds.
        track: told of each evaluation's line of evaluations.jsonl.
        note: told what an operator wants to read.
        console: where a line per evaluation is shown.
    """

    def __init__(
        self,
        place: Place,
        heldout: Heldout,
        *,
        supervisor: Supervisor,
        transport: Transport,
        weights_before: Callable[[], WeightsHandle],
        metrics: RunMetrics,
        watch: Stopwatch,
        track: Callable[[Mapping[str, Any]], None],
        note: Callable[[str, str], None],
        console: Console,
    ) -> None:
        assert place.config.evaluate is not None, "whoever evaluates has a table that says how"
        self.config: EvaluateConfig = place.config.evaluate
        self.seed = place.config.seed
        self.folder = place.folder
        self.heldout = heldout
        self.supervisor = supervisor
        self.transport = transport
        self.metrics = metrics
        self.watch = watch
        self.console = console
        self._weights_before = weights_before
        self._track = track
        self._note = note

    def at(self, step: int) -> None:
        """Evaluate what is published, if it is due after update `step` and not done; before PPO, if that is missing."""
        if step % self.config.every_updates:
            return
        done = {line.step for line in self._comparable()}
        if step in done:
            return
        if step > 0 and 0 not in done:
            self._evaluate(0, weights=self._weights_before())
        self._evaluate(step)

    def _comparable(self) -> list[EvaluationLine]:
        """The evaluations so far, none where they were asked otherwise."""
        lines = read_evaluations(self.folder)
        if differing := {name: None for line in lines for name in differences(line.asked, self.heldout.asked)}:
            self._note("evaluations_dropped", f"earlier evaluations differ in {', '.join(differing)}: they go")
            (self.folder / "evaluations.jsonl").unlink()
            return []
        return lines

    def _evaluate(self, step: int, *, weights: WeightsHandle | None = None) -> None:
        start = time.monotonic()
        with self.watch.phase("evaluate"):
            chunks, answers = self._ask(weights)
        lines = self._comparable()
        first = next((line for line in lines if line.step == 0), None)
        if not answers:
            why = f"no prompt has a score{why_unscored(chunks)}"
            self._note("evaluation_failed", f"the evaluation after update {step} is left out: {why}")
            return
        compared = self._against_before(answers, first.scores_by_draw() if first is not None else {}, step)
        ordered = [answers[draw] for draw in sorted(answers)]
        numbers = {**numbers_of(ordered, ignore=self.heldout.eos_ids), **kl_of(ordered), **compared}
        points = [point for line in lines if (point := point_of(line)) is not None]
        if "gap" in compared:
            points.append(Point(step, compared["reward_z"], compared["judge_z"]))
        is_too_far = "gap" in compared and is_over_optimised(points, self.config.alarm)
        row = {
            "step": step,
            "identity": str(ordered[0].rollout.identity),
            "asked": self.heldout.asked,
            "prompts": len(self.heldout.prompts),
            "numbers": numbers,
            "over_optimised": is_too_far,
            "draws": sorted(answers),
            "rewards": scores(ordered).tolist(),
            "judged": judged(ordered).tolist(),
            "texts": self._texts(answers),
            "seconds": time.monotonic() - start,
        }
        append_json(self.folder / "evaluations.jsonl", row)
        self._track(row)
        self.metrics.evaluation(step, numbers, over_optimised=is_too_far)
        self.console.print(f"[dim]evaluated[/] {escape(in_words(step, numbers))}", highlight=False, soft_wrap=True)
        if is_too_far and not (lines and lines[-1].over_optimised):
            self._warn(points)

    def _ask(self, weights: WeightsHandle | None) -> tuple[list[ChunkHandle], dict[int, Answer]]:
        """Answers by draw, by the published weights where none are given; once more where they went with their node."""
        for attempt in itertools.count(1):
            chunks = self.supervisor.sample(self.heldout.prompts, top_p=self.config.top_p, weights=weights)
            try:
                return chunks, fetch_answers(self.transport, chunks)
            except (MemberFailedError, PhaseTimeoutError) as error:
                if attempt == MAX_ATTEMPTS:
                    raise
                self._note("evaluate_again", f"answers to held-out prompts are lost, and are asked for again: {error}")
        raise AssertionError("the loop ends by itself")

    def _against_before(
        self, answers: dict[int, Answer], before: dict[int, tuple[float, float]], step: int
    ) -> dict[str, float]:
        """Win rate and rises over the policy before PPO, on the prompts that both have a score for; where there are
        none, the judge's mean alone, and an event.
        """
        ordered = [answers[draw] for draw in sorted(answers)]
        now = dict(zip(sorted(answers), zip(scores(ordered), judged(ordered), strict=True), strict=True))
        if step == 0:
            before = now
        both = sorted(now.keys() & before.keys())
        if not both:
            self._note(
                "evaluation_uncompared",
                f"the evaluation after update {step} has no win rate, rise or gap: no prompt has one before PPO, too",
            )
            return {"judge": float(judged(ordered).mean())}
        reward_before, judge_before = np.array([before[draw] for draw in both], dtype=np.float64).T
        reward, judge = np.array([now[draw] for draw in both], dtype=np.float64).T
        rate, (low, high) = win_rate(judge_before, judge, seed=self.seed)
        reward_z, judge_z = standardised_rise(reward_before, reward), standardised_rise(judge_before, judge)
        return {
            "judge": float(judge.mean()),
            "win_rate": rate,
            "win_rate_low": low,
            "win_rate_high": high,
            "reward_z": reward_z,
            "judge_z": judge_z,
            "gap": reward_z - judge_z,
        }

    def _texts(self, answers: dict[int, Answer]) -> list[dict[str, Any]]:
        shown = [p for p in self.heldout.prompts if p.draw_index in answers][: self.config.shown]
        tokenizer = self.heldout.tokenizer
        return [
            {
                "prompt": decode(tokenizer, prompt.token_ids),
                "response": decode(tokenizer, answers[prompt.draw_index].rollout.response_ids),
                "score": answers[prompt.draw_index].judgement.score,
                "judge": answers[prompt.draw_index].part("judge_p_positive"),
            }
            for prompt in shown
        ]

    def _warn(self, points: Sequence[Point]) -> None:
        found = divergence(points, self.config.alarm)
        assert found is not None, "there is an alarm"
        self._note(
            "over_optimisation",
            f"since update {found.since} the reward of held-out responses rose by {found.reward_rise:.2f} standard "
            f"deviations and the judge by {found.judge_rise:+.2f}: the policy may be learning to please the reward "
            "model alone; read the texts, raise the KL penalty, or take an earlier checkpoint (docs/evaluation.md)",
        )


def in_words(step: int, numbers: dict[str, float]) -> str:
    """One evaluation on one line."""
    is_compared = "gap" in numbers
    return (
        f"after update {step}: reward {numbers['reward']:+.2f}, judge {100 * numbers['judge_p_positive']:.1f} % "
        + (f"positive, win rate {100 * numbers['win_rate']:.0f} %, " if is_compared else "positive, ")
        + f"KL {numbers['kl_token_mean']:.2f}/token"
        + (f", gap {numbers['gap']:+.2f}" if is_compared else "")
    )
