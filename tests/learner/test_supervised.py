"""The one supervised loop: its schedule, its order of batches, and what stops it."""

import itertools
import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from common.errors import NonFiniteError
from learner.supervised import POOL, Schedule, batches, train


def scales(**changed):
    settings = {"steps": 10, "warmup_fraction": 0.0, "decay_fraction": 0.0, "final_fraction": 0.0}
    schedule = Schedule(**(settings | changed))
    return [schedule.scale(step) for step in range(schedule.steps)]


def test_a_schedule_warms_up_stays_and_decays():
    assert scales() == [1] * 10
    assert scales(warmup_fraction=0.4) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 1])
    assert scales(decay_fraction=0.4) == pytest.approx([1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0])
    assert scales(decay_fraction=0.4, final_fraction=0.2) == pytest.approx([1] * 6 + [0.8, 0.6, 0.4, 0.2])
    assert scales(warmup_fraction=0.2, decay_fraction=0.5) == pytest.approx([0.5, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2, 0])


@pytest.mark.parametrize(("epochs", "items", "batch", "steps"), [(3, 10, 4, 6), (2, 3, 256, 2), (5, 8, 8, 5)])
def test_a_falling_schedule_counts_whole_batches_and_ends_at_nothing(epochs, items, batch, steps):
    schedule = Schedule.falling(epochs, items, batch)
    assert schedule.steps == steps
    rates = [schedule.scale(step) for step in range(steps)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 0


def test_a_schedule_of_one_step_trains():
    assert scales(steps=1, warmup_fraction=0.05) == [1]


@pytest.mark.parametrize(("num_texts", "size"), [(40, 4), (1000, 8), (300, 7)])
def test_an_epoch_holds_every_text_at_most_once_and_leaves_out_less_than_a_batch(num_texts, size):
    lengths = np.random.default_rng(0).integers(1, 50, num_texts)
    order = batches(lengths, batch_sequences=size, seed_parts=(1, 2))
    per_epoch = num_texts // size
    for _ in range(3):
        epoch = np.concatenate(list(itertools.islice(order, per_epoch)))
        assert len(epoch) == per_epoch * size
        assert len(set(epoch.tolist())) == len(epoch)


def test_over_epochs_every_text_has_its_turn():
    order = batches([3] * 10, batch_sequences=4, seed_parts=(0,))
    assert {int(i) for batch in itertools.islice(order, 40) for i in batch} == set(range(10))


def test_batches_follow_from_the_seed_and_differ_between_epochs():
    def first(n, *seed):
        return [b.tolist() for b in itertools.islice(batches([7] * 40, batch_sequences=4, seed_parts=seed), n)]

    assert first(20, 1, 2) == first(20, 1, 2)
    assert first(20, 1, 2) != first(20, 1, 3)
    assert sorted(map(sorted, first(10, 1, 2))) != sorted(map(sorted, first(20, 1, 2)[10:]))


def test_texts_of_like_length_stand_together_yet_the_batches_come_in_random_order():
    lengths = np.random.default_rng(0).permutation(np.arange(4 * POOL))
    epoch = list(itertools.islice(batches(lengths, batch_sequences=4, seed_parts=(0,)), POOL))
    assert all(np.ptp(lengths[b]) == 3 for b in epoch)  # one pool, sorted: four neighbours
    firsts = [lengths[b].min() for b in epoch]
    assert firsts != sorted(firsts)


def test_a_batch_is_no_larger_than_the_data():
    assert sorted(next(batches([5, 6, 7], batch_sequences=100, seed_parts=(0,))).tolist()) == [0, 1, 2]


class Line(nn.Module):
    """y = w x, with dropout that must be on in training and off after."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(()))
        self.dropout = nn.Dropout(0.5)
        self.modes = []

    def forward(self, x):
        self.modes.append(self.training)
        return self.w * x


def run(model, target, *, steps=200, lr=0.1, max_grad_norm=math.inf):
    x = torch.arange(1.0, 9.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)

    def loss_of(wrapped, index):
        part = torch.from_numpy(index)
        return (wrapped(x[part]) - target(x[part])).square().sum(), torch.tensor(len(part))

    return train(
        model,
        [optimizer],
        loss_of,
        batches([1] * 8, batch_sequences=4, seed_parts=(0,)),
        schedule=Schedule(steps, 0.0, 1.0, 0.0),
        max_grad_norm=max_grad_norm,
        accelerator=Accelerator(cpu=True),
    )


def test_training_reaches_the_answer_and_reports_every_step():
    model = Line()
    progress = list(run(model, lambda x: 3 * x, lr=0.01))
    assert float(model.w.detach()) == pytest.approx(3, abs=1e-3)
    assert [(p.step, p.total) for p in progress] == [(i + 1, 200) for i in range(200)]
    assert all(model.modes)
    assert not model.training


def test_the_loss_is_a_mean_and_the_gradient_is_clipped():
    model = Line()
    next(run(model, lambda x: 3 * x, max_grad_norm=1e-2, steps=2, lr=1.0))
    assert float(model.w.detach()) == pytest.approx(0.5e-2, rel=1e-3)  # half the rate in the first of two steps


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_training_with_the_weights_of_the_step_before(bad):
    model = Line()
    calls = iter(range(100))
    steps = run(model, lambda x: 3 * x if next(calls) < 5 else bad * x, steps=20, lr=0.01)
    seen = [(p, float(model.w.detach())) for p in itertools.islice(steps, 5)]
    with pytest.raises(NonFiniteError, match="step 6 of 20; lower the learning rate"):
        next(steps)
    assert float(model.w.detach()) == seen[-1][1]
