"""One training loop for all that learns from given answers: language models and classifiers.

It is a generator: whoever runs it, in this process or through Ray, moves a progress bar by what it yields.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from common.errors import NonFiniteError
from common.records import Progress
from common.seeds import generator
from common.weighted_draws import WeightedDraws
from learner.optimizers import set_rate

_DRAWS = 16
"""Names the draws by weight among the run's random numbers."""

POOL = 32
"""Batches among whose texts like lengths are put together: little padding, still a random order."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """Linear warm-up, constant, linear decay."""

    steps: int
    warmup_fraction: float
    decay_fraction: float
    final_fraction: float

    @classmethod
    def falling(cls, epochs: int, num_items: int, batch_size: int) -> "Schedule":
        """From the peak linearly to 0 over whole epochs, whose short last batches are left out: for classifiers.

        Args:
            epochs: passes over the items.
            num_items: texts or rankings, at least one.
            batch_size: items of a step; cut to their number.
        """
        return cls(epochs * (num_items // min(batch_size, num_items)), 0.0, 1.0, 0.0)

    def scale(self, step: int) -> float:
        """Share of the peak learning rate at a step counted from 0."""
        warmup = math.ceil(self.warmup_fraction * self.steps)
        rise = min(1.0, (step + 1) / warmup) if warmup else 1.0
        decay = max(1, math.ceil(self.decay_fraction * self.steps))
        done = max(0.0, (step + 1 - (self.steps - decay)) / decay) if self.decay_fraction else 0.0
        return rise * (1 - (1 - self.final_fraction) * done)


def batches(
    lengths: Sequence[int],
    *,
    batch_sequences: int,
    seed_parts: tuple[int, ...],
    draws: WeightedDraws | None = None,
) -> Iterator[np.ndarray]:
    """Indices of endless epochs' batches, texts of like length together; a short last batch is left out.

    Args:
        lengths: of every text.
        batch_sequences: texts of a batch; cut to the number of texts.
        seed_parts: name the random order.
        draws: from several sources by weight; an epoch is then as many draws as there are texts. None: every text once
            an epoch.
    """
    size, widths = min(batch_sequences, len(lengths)), np.asarray(lengths)
    epoch = 0
    while True:
        rng = generator(*seed_parts, epoch)
        if draws is None:
            order = rng.permutation(len(widths))
        else:
            order = np.array([draws.item_at(epoch * len(widths) + i) for i in range(len(widths))])
        pools = [order[i : i + size * POOL] for i in range(0, len(order), size * POOL)]
        cut = [pool[np.argsort(widths[pool], kind="stable")] for pool in pools]
        whole = [part for pool in cut for part in np.split(pool, range(size, len(pool), size)) if len(part) == size]
        for i in rng.permutation(len(whole)):
            yield whole[i]
        epoch += 1


def draws_by_weight(sizes: Mapping[str, int], weights: Mapping[str, float], seed: int) -> WeightedDraws | None:
    """Draws from sources that stand one after the other, in the order of `sizes`; None where they have no weights."""
    if not weights:
        return None
    return WeightedDraws(list(sizes.values()), [weights[name] for name in sizes], seed, _DRAWS)


def train(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    loss_of: Callable[[nn.Module, np.ndarray], tuple[Tensor, Tensor]],
    order: Iterator[np.ndarray],
    *,
    schedule: Schedule,
    max_grad_norm: float,
    accelerator: Accelerator,
) -> Iterator[Progress]:
    """Optimizer steps until the schedule ends.

    Args:
        model: trained in place, in training mode; left in evaluation mode.
        optimizers: of its parameters.
        loss_of: model and indices of a batch to the sum of a loss and its denominator.
        order: indices of each batch.
        schedule: learning rates and the number of steps.
        max_grad_norm: gradients are scaled down to it.
        accelerator: averages gradients over processes, where there are several.

    Raises:
        NonFiniteError: a loss or a gradient was NaN or infinite.
    """
    wrapped, *prepared = accelerator.prepare(model, *optimizers)
    wrapped.train()
    recent = float("nan")
    for step in range(schedule.steps):
        set_rate(prepared, schedule.scale(step))
        total, count = loss_of(wrapped, next(order))
        loss = total / count
        accelerator.backward(loss)
        norm = float(accelerator.clip_grad_norm_(wrapped.parameters(), max_grad_norm))
        value = float(loss.detach())
        if not (math.isfinite(value) and math.isfinite(norm)):
            raise NonFiniteError(
                f"loss is {value} and the gradient's norm {norm} at step {step + 1} of {schedule.steps}; "
                "lower the learning rate"
            )
        for optimizer in prepared:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        recent = value if math.isnan(recent) else 0.95 * recent + 0.05 * value
        yield Progress(step + 1, schedule.steps, f"loss {recent:.3f}")
    model.eval()
