"""Trajectories to the learner's padded tensors, checked once at the door.

Legend: B sequences, T = P + R tokens of a padded sequence, R response slots.
"""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from common.records import Identity, JudgementChunk, ReferenceChunk, RolloutChunk, Trajectory


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded tensors of one update, rows in order of (draw_index, sample_index). Padding holds zeros."""

    input_ids: Tensor
    """[B, T] int64, prompt then response then padding."""
    prompt_lengths: Tensor
    """[B] int64."""
    response_lengths: Tensor
    """[B] int64."""
    response_mask: Tensor
    """[B, R] bool, true at response tokens; from lengths, never from comparing ids with EOS or pad."""
    is_truncated: Tensor
    """[B] bool, cut by the length limit."""
    behaviour_logprobs: Tensor
    """[B, R] float32, of the distribution that was sampled from, as the worker computed them."""
    scores: Tensor
    """[B] float32."""
    ref_logprobs: Tensor | None
    """[B, R] float32, where the reward service computed them."""

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @property
    def num_slots(self) -> int:
        """R."""
        return self.response_mask.shape[1]

    @property
    def lengths(self) -> Tensor:
        """[B] int64, prompt and response."""
        return self.prompt_lengths + self.response_lengths

    def rows(self, index: Tensor) -> "Batch":
        """The chosen rows, without the columns that are padding in all of them."""
        tokens = int(self.lengths[index].max())
        slots = int(self.response_lengths[index].max())
        chosen: dict[str, Tensor | None] = {}
        for field in fields(self):
            whole = getattr(self, field.name)
            width = {"input_ids": tokens}.get(field.name, slots)
            part = None if whole is None else whole[index]
            chosen[field.name] = part if part is None or part.ndim == 1 else part[:, :width]
        return Batch(**chosen)  # type: ignore[arg-type]

    @classmethod
    def of(cls, trajectories: Sequence[Trajectory], device: torch.device) -> "Batch":
        """Pad trajectories on the right.

        Raises:
            ValueError: none given, an empty prompt or response, ids and logprobs of different lengths, a logprob that
                is not finite or above 0, another number that is not finite, or reference logprobs for some only.
        """
        if not trajectories:
            raise ValueError("a batch needs at least one trajectory")
        for trajectory in trajectories:
            _check(trajectory)
        with_ref = sum(t.ref_logprobs is not None for t in trajectories)
        if with_ref not in (0, len(trajectories)):
            raise ValueError(
                f"{with_ref} of {len(trajectories)} trajectories have reference logprobs; all or none must"
            )
        prompts = np.array([len(t.prompt.token_ids) for t in trajectories])
        responses = np.array([len(t.rollout.response_ids) for t in trajectories])
        slots = int(responses.max())
        ids = [np.concatenate([t.prompt.token_ids, t.rollout.response_ids]) for t in trajectories]
        refs = [t.ref_logprobs for t in trajectories if t.ref_logprobs is not None]

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        return cls(
            input_ids=tensor(_pad(ids, int((prompts + responses).max()), np.int64)),
            prompt_lengths=tensor(prompts),
            response_lengths=tensor(responses),
            response_mask=tensor(np.arange(slots)[None, :] < responses[:, None]),
            is_truncated=tensor(np.array([t.rollout.finish == "length" for t in trajectories])),
            behaviour_logprobs=tensor(_pad([t.rollout.logprobs for t in trajectories], slots, np.float32)),
            scores=tensor(np.array([t.judgement.score for t in trajectories], dtype=np.float32)),
            ref_logprobs=tensor(_pad(refs, slots, np.float32)) if refs else None,
        )


def _pad(rows: Sequence[np.ndarray], width: int, dtype: type) -> np.ndarray:
    padded: np.ndarray = np.zeros((len(rows), width), dtype=dtype)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def _check(trajectory: Trajectory) -> None:
    rollout, where = trajectory.rollout, f"draw {trajectory.rollout.draw_index}"
    if len(trajectory.prompt.token_ids) == 0 or len(rollout.response_ids) == 0:
        raise ValueError(f"{where}: prompt and response need at least one token each")
    lengths = {len(rollout.response_ids), len(rollout.logprobs)}
    if trajectory.ref_logprobs is not None:
        lengths.add(len(trajectory.ref_logprobs))
    if len(lengths) > 1:
        raise ValueError(f"{where}: ids, logprobs and reference logprobs have different lengths {sorted(lengths)}")
    if not np.isfinite(rollout.logprobs).all() or (rollout.logprobs > 1e-6).any():
        raise ValueError(f"{where}: logprobs must be finite and at most 0, got {rollout.logprobs}")
    if not np.isfinite(trajectory.judgement.score):
        raise ValueError(f"{where}: the score must be finite, got {trajectory.judgement.score}")
    if trajectory.ref_logprobs is not None and not np.isfinite(trajectory.ref_logprobs).all():
        raise ValueError(f"{where}: reference logprobs must be finite, got {trajectory.ref_logprobs}")


def join(
    rollouts: RolloutChunk,
    judgements: JudgementChunk,
    reference: ReferenceChunk | None,
    draws: Collection[int] | None = None,
) -> list[Trajectory]:
    """The payloads of a chunk to trajectories; a draw of which one rollout has no judgement is left out whole.

    Args:
        rollouts: of the chunk.
        judgements: of all its rollouts.
        reference: of all its rollouts, or None.
        draws: whose trajectories are wanted, for others may be another update's; None: all.

    Raises:
        ValueError: the payloads are not of the same samples, or a draw of `draws` is missing.
    """
    refs = reference.logprobs if reference is not None else (None,) * len(rollouts.rollouts)
    without = {
        rollout.draw_index
        for rollout, judgement in zip(rollouts.rollouts, judgements.judgements, strict=True)
        if judgement is None
    }
    wanted = {rollout.draw_index for rollout in rollouts.rollouts} - without if draws is None else set(draws)
    if missing := wanted - {rollout.draw_index for rollout in rollouts.rollouts if rollout.draw_index not in without}:
        raise ValueError(f"draws {sorted(missing)} of a chunk are not in its payloads, or have no score")
    trajectories = []
    for prompt, rollout, judgement, ref in zip(
        rollouts.prompts, rollouts.rollouts, judgements.judgements, refs, strict=True
    ):
        if judgement is None or rollout.draw_index not in wanted:
            continue
        keys = {(rollout.draw_index, rollout.sample_index), (judgement.draw_index, judgement.sample_index)}
        if len(keys) > 1 or prompt.draw_index != rollout.draw_index:
            raise ValueError(f"prompt of draw {prompt.draw_index} was joined with samples {sorted(keys)}")
        trajectories.append(Trajectory(prompt, rollout, judgement, ref))
    return trajectories


def in_order(
    trajectories: Sequence[Trajectory],
    *,
    expected: Identity | None,
    max_staleness: int = 0,
    samples_per_prompt: int = 1,
) -> list[Trajectory]:
    """Sort by (draw_index, sample_index), so that no result depends on who was faster.

    Args:
        trajectories: of one update.
        expected: the weights that must have generated them all; None: any.
        max_staleness: above 0, earlier ones of their lineage may have, too. How much earlier is for who generates
            (`actors/admission.py`): to refuse a late sample here would only lose it.
        samples_per_prompt: K; each draw must have its samples 0 … K - 1.

    Raises:
        ValueError: a sample comes twice, comes from other weights, or is missing from its group.
    """
    ordered = sorted(trajectories, key=lambda t: (t.rollout.draw_index, t.rollout.sample_index))
    keys = [(t.rollout.draw_index, t.rollout.sample_index) for t in ordered]
    for key, next_key in itertools.pairwise(keys):
        if key == next_key:
            raise ValueError(f"draw {key[0]}, sample {key[1]} came twice")
    for one in ordered:
        if expected is not None and not _may_train(one.rollout.identity, expected, max_staleness):
            raise ValueError(
                f"draw {one.rollout.draw_index} was generated by weights {one.rollout.identity}, "
                f"but the learner holds {expected} and max_staleness is {max_staleness}"
            )
    if samples_per_prompt > 1:
        for draw, group in itertools.groupby(keys, key=lambda key: key[0]):
            if (found := [sample for _, sample in group]) != list(range(samples_per_prompt)):
                raise ValueError(f"draw {draw} has samples {found}, but samples_per_prompt is {samples_per_prompt}")
    return ordered


def _may_train(generated_by: Identity, held: Identity, max_staleness: int) -> bool:
    """Whether samples of these weights are of the learner's policy, or of one that it was."""
    if max_staleness == 0:
        return generated_by == held
    return generated_by.lineage == held.lineage and generated_by.step <= held.step
