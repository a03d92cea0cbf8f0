"""Responses to held-out prompts, judged: fetched from where they were made, and their numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from actors.evaluate import distinct_n
from actors.prompt_texts import build_prompts
from actors.prompts import PromptStream
from common.config import RunConfig
from common.errors import DataError
from common.ports import Transport
from common.records import ChunkHandle, Judgement, ModelPaths, Prompt, Rollout

FETCH_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One policy's response to one prompt, judged."""

    rollout: Rollout
    judgement: Judgement
    kl_seq_sum: float
    """Sampled KL (k1) to the policy before PPO, in nats."""

    def part(self, name: str) -> float:
        """A scorer's own number."""
        return self.judgement.parts[name]


def fetch_answers(transport: Transport, chunks: Sequence[ChunkHandle]) -> dict[int, Answer]:
    """By draw index; those without a score are left out.

    Raises:
        MemberFailedError, PhaseTimeoutError: a payload is lost, or does not come.
    """
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


def why_unscored(chunks: Sequence[ChunkHandle]) -> str:
    """Why the last response without a score has none; nothing where all have one."""
    last = [unscored for chunk in chunks for unscored in chunk.judge_stats.unscored][-1:]
    return "".join(f"; the last one: {unscored.reason}: {unscored.detail}" for unscored in last)


def scores(answers: Sequence[Answer]) -> npt.NDArray[np.float64]:
    """[N] the rewards."""
    return np.array([answer.judgement.score for answer in answers])


def judged(answers: Sequence[Answer]) -> npt.NDArray[np.float64]:
    """[N] the judge's numbers, on the scale on which they are compared: its logit."""
    return np.array([answer.part("judge") for answer in answers])


def numbers_of(answers: Sequence[Answer], *, ignore: frozenset[int]) -> dict[str, float]:
    """What one policy's answers say on their own, by name; docs/evaluation.md explains each.

    Args:
        answers: at least one.
        ignore: ids that are no words, as EOS.
    """
    responses = [answer.rollout.response_ids for answer in answers]
    stops = float(np.mean([answer.rollout.finish == "stop" for answer in answers]))
    numbers = {"reward": float(np.mean(scores(answers)))}
    if "reward_model_p_positive" in answers[0].judgement.parts:
        numbers["p_positive"] = float(np.mean([a.part("reward_model_p_positive") for a in answers]))
    return numbers | {
        "judge_p_positive": float(np.mean([a.part("judge_p_positive") for a in answers])),
        "distinct_1": distinct_n(responses, 1, ignore=ignore),
        "distinct_2": distinct_n(responses, 2, ignore=ignore),
        "response_tokens": float(np.mean([len(ids) for ids in responses])),
        "eos_fraction": stops,
        "truncated_fraction": 1.0 - stops,
    }


def kl_of(answers: Sequence[Answer]) -> dict[str, float]:
    """KL to the policy before PPO, in nats: mean over responses, and over all tokens."""
    kl = np.array([answer.kl_seq_sum for answer in answers])
    num_tokens = sum(len(answer.rollout.response_ids) for answer in answers)
    return {"kl_seq_sum": float(kl.mean()), "kl_token_mean": float(kl.sum() / num_tokens)}


def in_both(one: Mapping[int, Answer], other: Mapping[int, Answer]) -> tuple[list[Answer], list[Answer]]:
    """The answers to the prompts that both have, in draw order."""
    draws = sorted(one.keys() & other.keys())
    return [one[draw] for draw in draws], [other[draw] for draw in draws]


def heldout_prompts(config: RunConfig, models: ModelPaths, number: int) -> tuple[PromptStream, tuple[Prompt, ...]]:
    """The stream of held-out prompts, and the first `number` of it.

    Raises:
        DataError: there are not so many.
    """
    assert config.ppo is not None, "held-out prompts are of the data of a PPO stage"
    stream = build_prompts(config, models, heldout=True)
    if len(stream) < number and config.ppo.weights:
        raise DataError(
            f"evaluate.prompts={number}, but drawn by ppo.weights a held-out text of {', '.join(config.ppo.data)} "
            f"comes again after {len(stream)} draws; lower it, raise heldout_fraction, or give sources of few texts "
            "less weight"
        )
    if len(stream) < number:
        raise DataError(
            f"evaluate.prompts={number}, but {', '.join(config.ppo.data)} hold only {len(stream)} "
            "held-out texts that a prompt can begin; lower it, or raise heldout_fraction"
        )
    return stream, stream.take(number)
