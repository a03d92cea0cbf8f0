"""Answers of the real kind and size that no model has computed: what members that only wait say.

Knows no Ray, and no time but that which it is told.
"""

import numpy as np

from common.records import (
    GenerateRequest,
    Judgement,
    JudgementChunk,
    ReferenceChunk,
    Rollout,
    RolloutChunk,
    Stats,
)


def generated(request: GenerateRequest, took_s: float) -> tuple[RolloutChunk, Stats]:
    """Responses of the greatest length that each prompt allows."""
    prompts = tuple(prompt for prompt in request.prompts for _ in range(request.samples_per_prompt))
    longest = max(prompt.max_new_tokens for prompt in prompts)
    ids, logprobs = np.full(longest, 7, np.int32), np.full(longest, -1.5, np.float32)
    identity, lengths = request.weights.identity, tuple(prompt.max_new_tokens for prompt in prompts)
    rollouts = tuple(
        Rollout(prompt.draw_index, number % request.samples_per_prompt, request.attempt, 0,
                ids[:length].copy(), logprobs[:length].copy(), identity, "length")
        for number, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    )  # fmt: skip
    stats = Stats(
        samples=len(rollouts),
        prompt_tokens=sum(len(prompt.token_ids) for prompt in prompts),
        response_tokens=sum(lengths),
        response_lengths=lengths,
        seconds={"generate": took_s},
        identity=identity,
        weights_hash=request.weights.hash,
    )
    return RolloutChunk(prompts, rollouts, request.temperature), stats


def judged(chunk: RolloutChunk, took_s: float) -> tuple[JudgementChunk, Stats]:
    """All score the same."""
    judgements = [Judgement(r.draw_index, r.sample_index, 0.5, {"simulated": 0.5}, "0") for r in chunk.rollouts]
    scores = tuple(judgement.score for judgement in judgements)
    return JudgementChunk(tuple(judgements)), Stats(samples=len(scores), scores=scores, seconds={"score": took_s})


def referred(chunk: RolloutChunk, took_s: float) -> tuple[ReferenceChunk, Stats]:
    """The policy's own logprobs."""
    stats = Stats(samples=len(chunk.rollouts), seconds={"reference": took_s})
    return ReferenceChunk(tuple(rollout.logprobs for rollout in chunk.rollouts)), stats
