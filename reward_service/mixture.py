"""Several scorers mixed by weight: rollouts to judgements. A rollout that one of them cannot score is left without one.

It is never given a made-up number, and no failure of a scorer leaves `judge` as an error.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import xxhash
from transformers import PreTrainedTokenizerBase

from common.errors import MemberFailedError
from common.joining import join_response
from common.records import Ids, Judgement, JudgementChunk, Prompt, Rollout, RolloutChunk, Stats, Unscored
from common.text import decode, decode_all
from reward_service.scorers import Failure, Outcome, Scored, Scorer, Text, checked

PROBE = Text("This film", " is good, and I like the story.", "This film is good, and I like the story.")
"""What a replica proves itself on."""


@dataclass(frozen=True, slots=True)
class Term:
    """A scorer and its weight in the score."""

    scorer: Scorer
    weight: float


class Mixture:
    """The score is the sum of weight times number; every scorer's own numbers are kept as parts.

    Args:
        terms: at least one; their scorers' parts have different names.
        policy_tokenizer: decodes rollouts to text.
        budget_s: longest time of scoring one chunk.
        probe_budget_s: longest time of scoring the probe text.
    """

    def __init__(
        self,
        terms: Sequence[Term],
        policy_tokenizer: PreTrainedTokenizerBase,
        *,
        budget_s: float,
        probe_budget_s: float,
    ) -> None:
        self.terms = terms
        self.policy_tokenizer = policy_tokenizer
        self.budget_s = budget_s
        self.probe_budget_s = probe_budget_s
        versions = "\n".join(f"{t.scorer.name} {t.weight} {t.scorer.version}" for t in terms)
        self.version = xxhash.xxh3_64_hexdigest(versions.encode())

    def judge(self, chunk: RolloutChunk) -> tuple[JudgementChunk, Stats]:
        """Score every rollout of a chunk; None where it could not be, with the reason in the stats."""
        start = time.perf_counter()
        texts = texts_of(self.policy_tokenizer, list(zip(chunk.prompts, chunk.rollouts, strict=True)))
        judgements: list[Judgement | None] = []
        unscored: list[Unscored] = []
        for rollout, outcome in zip(chunk.rollouts, self._score(texts, self.budget_s), strict=True):
            draw, sample = rollout.draw_index, rollout.sample_index
            if isinstance(outcome, Failure):
                judgements.append(None)
                unscored.append(Unscored(draw, sample, outcome.reason, outcome.detail))
            else:
                judgements.append(Judgement(draw, sample, outcome.value, outcome.parts, self.version))
        return JudgementChunk(tuple(judgements)), Stats(
            samples=len(texts),
            scores=tuple(j.score for j in judgements if j is not None),
            score_sum=sum(j.score for j in judgements if j is not None),
            seconds={"score": time.perf_counter() - start},
            unscored=tuple(unscored),
        )

    def probe(self) -> Mapping[str, float]:
        """Score a fixed text; returns the parts that must be equal in all replicas.

        Raises:
            MemberFailedError: a scorer gives no finite number for it; names the scorer.
        """
        comparable: dict[str, float] = {}
        for term in self.terms:
            outcome = _score(term, [PROBE], time.monotonic() + self.probe_budget_s)[0]
            if isinstance(outcome, Failure):
                raise MemberFailedError(
                    f"the probe text {PROBE.whole!r} cannot be scored: {outcome.reason}: {outcome.detail}"
                )
            if term.scorer.is_deterministic:
                comparable |= outcome.parts
        return comparable

    def close(self) -> None:
        """End what the scorers started."""
        for term in self.terms:
            term.scorer.close()

    def _score(self, texts: Sequence[Text], budget_s: float) -> list[Outcome]:
        deadline = time.monotonic() + budget_s
        columns = [_score(term, texts, deadline) for term in self.terms]
        return [self._mix(row) for row in zip(*columns, strict=True)]

    def _mix(self, row: Sequence[Outcome]) -> Outcome:
        """One text's outcomes to its own; the first failure counts."""
        value = 0.0
        parts: dict[str, float] = {}
        for term, outcome in zip(self.terms, row, strict=True):
            if isinstance(outcome, Failure):
                return outcome
            value += term.weight * outcome.value
            parts |= outcome.parts
        return checked(Scored(value, parts))


def text_of(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, rollout: Rollout) -> Text:
    """The text of one rollout, see `texts_of`."""
    return texts_of(tokenizer, [(prompt, rollout)])[0]


def texts_of(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Prompt, Rollout]]) -> list[Text]:
    """The texts that are judged, as the reward model's training builds them, without a chat template's role names.

    The response is what the whole text has beyond the prompt, where its beginning is the prompt. All are decoded in one
    go, each prompt once: a small classifier takes no longer than that.
    """
    prompts = {p.token_ids.tobytes(): p.token_ids for p, _ in pairs if p.text is None}
    texts = decode_all(tokenizer, [*prompts.values(), *(_ids_to_decode(p, r) for p, r in pairs)])
    starts = dict(zip(prompts, texts, strict=False))
    decoded = texts[len(prompts) :]
    return [
        _text(tokenizer, prompt, rollout, start=starts.get(prompt.token_ids.tobytes(), ""), decoded=text)
        for (prompt, rollout), text in zip(pairs, decoded, strict=True)
    ]


def _ids_to_decode(prompt: Prompt, rollout: Rollout) -> Ids:
    """The whole, for a tokenizer may write a token otherwise at the start of a text; or what follows a known text."""
    return rollout.response_ids if prompt.text is not None else np.concatenate([prompt.token_ids, rollout.response_ids])


def _text(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, rollout: Rollout, *, start: str, decoded: str) -> Text:
    if prompt.text is not None:
        whole = join_response(prompt.text, decoded)
        return Text(prompt.text, whole[len(prompt.text) :], whole)
    rest = decoded[len(start) :] if decoded.startswith(start) else decode(tokenizer, rollout.response_ids)
    return Text(start, rest, decoded)


def _score(term: Term, texts: Sequence[Text], deadline: float) -> list[Outcome]:
    """A scorer's outcomes, checked, their failures with its name."""
    name = term.scorer.name
    outcomes = [checked(outcome) for outcome in term.scorer.score(texts, deadline)]
    return [Failure(o.reason, f"scorer {name}: {o.detail}") if isinstance(o, Failure) else o for o in outcomes]
