"""PPO: trajectories in, better weights out. A plain class; knows no Ray, files or processes.

One update (arXiv:1707.06347, algorithm 1; for language models arXiv:1909.08593):

    trajectories ─▶ Batch ─▶ old logprobs, values ─▶ rewards ─▶ advantages ─▶ epochs × minibatches × microbatches

Read `update` first, then `_train`. The maths is in advantages.py, kl.py and losses.py; targets.py
puts the first two together.

Legend: B sequences of an update, R response slots.
"""

import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from common.errors import CorruptWeightsError
from common.flat_parameters import sealed
from common.masked import whiten
from common.modeling import (
    PolicyOutput,
    PolicyWithValueHead,
    add_embedding_gradient_in_place,
    freeze_below,
)
from common.ppo_config import PPOConfig
from common.records import Identity, Probe, Trajectory, UpdateReport, WeightsHandle
from common.run_settings import RunSettings
from learner.batch import Batch, in_order
from learner.early_stop import went_too_far
from learner.flat_policy import FlatPolicy
from learner.kl import make_controller
from learner.losses import entropy_bonus, kl_loss, policy_loss, value_loss
from learner.norms import GradientNorm, total_norm
from learner.off_policy import decouple
from learner.optimizers import build_optimizers, set_rate
from learner.packing import minibatches
from learner.passes import Passes
from learner.schedule import learning_rate_scale
from learner.score_shaping import ScoreShaping
from learner.tally import Tally, extremes, score_metrics
from learner.targets import Targets, build_targets


class PPOLearner:
    """Owner of the policy, its value head and their optimizers.

    Args:
        model: policy with value head; `config.trainable_layers` freezes its trunk.
        config: the PPO stage.
        run_seed: the minibatch order follows from it.
        accelerator: places the model and averages gradients over processes, where there are several.
        probe_ids: [N, T] ids of equal lengths, by which workers check what they loaded.
    """

    def __init__(
        self,
        model: PolicyWithValueHead,
        config: PPOConfig,
        *,
        run_seed: int,
        accelerator: Accelerator,
        probe_ids: Tensor | None = None,
    ) -> None:
        self.config = config
        self.run_seed = run_seed
        self.accelerator = accelerator
        self.probe_ids = probe_ids
        self.step = 0
        self.lineage = 0
        self.controller = make_controller(config.kl)
        self.scores = ScoreShaping(config)
        self._settings = RunSettings.of(config)
        if config.trainable_layers is not None:
            freeze_below(model.policy, config.trainable_layers)
        optimizers = build_optimizers(
            config.optimizer,
            model.policy.named_parameters(),
            head=list(model.value_parameters()),
            head_lr=config.value_head_lr,
        )
        self.model, *self.optimizers = accelerator.prepare(model, *optimizers)
        self.plain: PolicyWithValueHead = accelerator.unwrap_model(self.model)
        self.flat = FlatPolicy(self.plain.policy)
        is_alone = accelerator.num_processes == 1
        if is_alone:  # several exchange gradients that must be dense from the start
            add_embedding_gradient_in_place(self.plain.policy)
        self.plain.fuse()
        self._gradient_norm = GradientNorm(self.plain.parameters() if is_alone else ())  # exchanged ones change unseen
        self.passes = Passes(self.model, self.plain, config)
        self._ref_weights = self._frozen_copy(self.plain) if config.reference == "shared_trunk" else None

    @staticmethod
    def _frozen_copy(model: PolicyWithValueHead) -> dict[str, Tensor]:
        """The policy's trained layers as they are now; the frozen rest serves policy and reference alike."""
        trained = [(name, p) for name, p in model.policy.named_parameters(prefix="policy") if p.requires_grad]
        return {name: p.detach().clone() for name, p in trained}

    @property
    def identity(self) -> Identity:
        """Which weights these are."""
        return Identity(self.lineage, self.step)

    def weights(self) -> WeightsHandle:
        """A copy of the policy as it is now, without the value head, to which nobody writes; see `lend_weights`."""
        lent = self.lend_weights()
        return replace(lent, ref=sealed(lent.ref))

    @torch.no_grad()
    def lend_weights(self) -> WeightsHandle:
        """The policy as it is now, in a buffer that is valid until the next update: what may change and no more.

        Raises:
            CorruptWeightsError: it is not finite, and must not be published.
        """
        if not self.flat.is_current:  # else the update that made it has looked
            self.check_finite()
        flat = self.flat.lend()
        probe = None
        if self.probe_ids is not None and self.step % self.config.probe_every == 0:
            ids = self.probe_ids.to(self.accelerator.device)
            ones = torch.ones(len(ids), dtype=torch.int64, device=ids.device)
            width = ids.shape[1] - 1
            out = self.plain(ids, ones, ones * width, width, 1.0)
            probe = Probe(self.probe_ids.int().numpy(), out.logprobs.cpu().numpy())
        return WeightsHandle(self.identity, flat.buffer, flat.hash, flat.manifest, probe, flat.rest_hashes)

    def update(self, trajectories: Sequence[Trajectory], settings: RunSettings | None = None) -> UpdateReport:
        """Train on trajectories once.

        Args:
            trajectories: in any order; sorted here.
            settings: those by which they were sampled, and by which they are trained on; None: as configured.

        Returns:
            What the update did; `seconds` by phase. With `is_finite` False no optimizer step was finite: weights,
            optimizers, KL coefficient, score statistics, step and identity are as they were, and none of the samples
            counts as trained.

        Raises:
            ValueError: a trajectory is malformed, comes twice, or was generated by other weights; with `max_staleness`
                of 1 or more, by newer ones, or by those of another lineage.
            CorruptWeightsError: weights or optimizer state are not finite any more; load a checkpoint.
        """
        start = time.perf_counter()
        self._settings = settings or RunSettings.of(self.config)
        self.controller.follow(self._settings)
        samples = self.config.samples_per_prompt
        ordered = in_order(
            trajectories,
            expected=self.identity,
            max_staleness=self.config.max_staleness,
            samples_per_prompt=samples,
        )
        batch = Batch.of(ordered, self.accelerator.device)
        targets, measured = self._targets(batch)
        if self.config.max_staleness > 0:
            targets, seen = decouple(targets, batch, ordered, step=self.step, cap=self.config.importance_cap)
            measured |= seen
        prepared = time.perf_counter()
        self.flat.forget_hash()  # also where training raises half-way
        tally = self._train_or_restore(batch, targets, measured)
        self.passes.forget()
        trained = time.perf_counter()
        is_finite = tally.steps > 0
        self.step += 1 if is_finite else 0
        weights_hash = self.flat.renew() if is_finite else ""
        metrics = score_metrics(ordered) | measured | self.controller.report(measured) | tally.means()
        return UpdateReport(
            step=self.step,
            identity=self.identity,
            trained=tuple((t.rollout.draw_index, t.rollout.sample_index) for t in ordered if is_finite),
            metrics=metrics,
            seconds={
                "prepare": prepared - start,
                "train": trained - prepared,
                "flatten": time.perf_counter() - trained,
            },
            samples=extremes(ordered),
            is_finite=is_finite,
            weights_hash=weights_hash,
        )

    def check_finite(self) -> None:
        """Raise CorruptWeightsError if a weight or a number of the optimizer state is NaN or infinite."""
        states = [v for o in self.optimizers for slots in o.state.values() for v in slots.values()]
        numbers = [p.detach() for p in self.plain.parameters()] + [v for v in states if v.is_floating_point()]
        if math.isfinite(float(total_norm(numbers))):  # many times faster than the largest one
            return
        largest = float(torch.nn.utils.get_total_norm(numbers, math.inf))
        if not math.isfinite(largest):
            raise CorruptWeightsError(
                f"weights or optimizer state after update {self.step} hold {largest}: they must be neither published "
                "nor saved. Go on from a checkpoint; lower the learning rate if it happens again"
            )

    def _train_or_restore(self, batch: Batch, targets: Targets, measured: dict[str, float]) -> Tally:
        """Train, move the KL coefficient and count the scores: all, or nothing where nothing was finite."""
        if not all(math.isfinite(measured.get(name, 0.0)) for name in ("kl_seq_sum", "kl_token_mean")):
            tally = Tally()
            tally.skipped = self.config.epochs * -(-len(batch) // self.config.minibatch_sequences)
            return tally
        tally = self._train(batch, targets)
        if tally.steps > 0:
            self.check_finite()
            self.controller.update(measured, len(batch))
            self.scores.keep()
        return tally

    @torch.no_grad()
    def _targets(self, batch: Batch) -> tuple[Targets, dict[str, float]]:
        """Everything that stays fixed over the epochs, and what is measured on the way."""
        temperature = self._settings.temperature
        old = self.passes.first(batch, temperature)
        refs = batch.ref_logprobs
        if self._ref_weights is not None:
            refs = self.passes.reference(batch, temperature, self._ref_weights)
        scores, scores_seen = self.scores.shape(batch.scores, batch.is_truncated)
        targets, measured = build_targets(
            batch, old, scores=scores, ref_logprobs=refs, kl_coef=self.controller.coef, config=self.config
        )
        return targets, scores_seen | measured

    def _train(self, batch: Batch, targets: Targets) -> Tally:
        """All epochs, or as many minibatches as the KL allows; returns the sums of what was seen."""
        config, tally = self.config, Tally()
        add_up, size = partial(self.accelerator.reduce, reduction="sum"), config.minibatch_sequences
        for rows in minibatches(len(batch), size, epochs=config.epochs, run_seed=self.run_seed, step=self.step):
            loss, seen = self._gradient(batch, targets, rows.to(self.accelerator.device))
            if tally.steps > 0 and went_too_far(seen, config.early_stop_kl, reduce=add_up, device=batch.scores.device):
                tally.is_stopped_early = True
                self._forget_gradient()
                break
            tally.include(self._apply(loss, seen))
        if tally.steps > 0:
            tally.last["learning_rate"] = self.optimizers[0].param_groups[0]["lr"]
        return tally

    def _gradient(self, batch: Batch, targets: Targets, index: Tensor) -> tuple[float, Tally]:
        """Of one optimizer step: the microbatches' gradients add up to the minibatch's, over all processes. Returns
        the loss over all processes, and what was seen in this one.
        """
        mask, seen = batch.response_mask[index], Tally()
        tokens = mask.sum()
        advantages = targets.advantages[index]
        if self.config.whitening == "minibatch":
            advantages = whiten(advantages, mask)
        world = self.accelerator.num_processes
        denominator = self.accelerator.reduce(tokens, "sum") / world  # gradients are averaged over processes
        pieces = self.passes.microbatches(batch.lengths[index], self.config.microbatch_sequences or len(index))
        total = torch.zeros((), device=index.device)
        for number, piece in enumerate(pieces):
            with self.accelerator.no_sync(self.model) if number + 1 < len(pieces) else nullcontext():
                part = batch.rows(index[piece])
                rows = targets.rows(index[piece], part.num_slots)
                out = self.passes.learning(part, index[piece], self._settings.temperature)
                loss = self._loss(out, part, rows, advantages[piece, : part.num_slots], denominator, seen)
                self.accelerator.backward(loss)
            total += loss.detach()
        seen.tokens = int(tokens)
        return float(self.accelerator.reduce(total, "sum")), seen  # so that all processes decide alike

    def _loss(
        self,
        out: PolicyOutput,
        part: Batch,
        rows: Targets,
        advantages: Tensor,
        denominator: Tensor,
        tally: Tally,
    ) -> Tensor:
        """[] the microbatch's share of the minibatch's loss."""
        config, mask = self.config, part.response_mask
        loss, seen = policy_loss(
            out.logprobs,
            rows.old_logprobs,
            advantages,
            mask,
            clip_eps=config.clip_eps,
            clip_eps_high=config.clip_eps_high,
            dual_clip=config.dual_clip,
            importance=rows.importance,
            denominator=denominator,
        )
        bonus, bonus_seen = entropy_bonus(out.entropy, mask, denominator=denominator)
        tally.add(policy_loss_sum=loss.detach() * denominator, **seen, **bonus_seen)
        if config.uses_value_head:
            critic, critic_seen = value_loss(
                out.values, rows.old_values, rows.returns, mask, clip_eps=config.value_clip_eps, denominator=denominator
            )
            tally.add(value_loss_sum=critic.detach() * denominator, **critic_seen)
            if self.step < config.value_warmup_updates:
                return config.value_coef * critic
            loss = loss + config.value_coef * critic
        if config.entropy_coef > 0:  # else its gradient would be computed, to be multiplied by 0
            loss = loss - config.entropy_coef * bonus
        if config.kl_loss_coef > 0:
            assert rows.ref_logprobs is not None, "the configuration demands a reference for a KL loss"
            penalty, penalty_seen = kl_loss(out.logprobs, rows.ref_logprobs, mask, denominator=denominator)
            tally.add(**penalty_seen)
            loss = loss + config.kl_loss_coef * penalty
        return loss

    def _apply(self, loss: float, seen: Tally) -> Tally:
        """Clip and step; or, if loss or gradient is not finite, leave all as it is and forget what was seen."""
        if self.step < self.config.value_warmup_updates:
            for parameter in self.plain.policy.parameters():
                parameter.grad = None
        parameters = [p for p in self.plain.parameters() if p.grad is not None]
        norm = self.clip(parameters)
        if math.isfinite(loss) and math.isfinite(norm):
            changed = self._settings.learning_rate / self.config.optimizer.lr
            set_rate(self.optimizers, learning_rate_scale(self.step, self.config) * changed)
            for optimizer in self.optimizers:
                optimizer.step()
            seen.steps = 1
            seen.grad_norm_sum = norm
        else:
            seen = Tally()
            seen.skipped = 1
        self._forget_gradient()
        return seen

    def clip(self, parameters: Sequence[nn.Parameter]) -> float:
        """Scale gradients down to the largest norm where they are above it; returns the norm before."""
        self.accelerator.unscale_gradients()
        norm = self._gradient_norm.of(parameters)
        if norm > self.config.max_grad_norm:  # else a pass over all gradients would multiply them by 1
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.max_grad_norm, norm)
        return float(norm)

    def _forget_gradient(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
