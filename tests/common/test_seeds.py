"""Counter-keyed randomness: nobody shares a stream, and what comes out is uniform and independent.

Every test is deterministic; the p-values are of a single draw, so the bounds are far out.
"""

import itertools

import numpy as np
import pytest
import torch

from common import seeds

CPU = torch.device("cpu")


ZERO_BEFORE = ((1, 21, 12607), (40, 111, 7988), (14, 150, 1093))
"""(draw, position, token) whose 32 hashed bits, as a signed integer, round to -2^31 in float32: once noise of 0."""


def noise(keys, positions, num_values):
    return seeds.uniform_noise(np.array(keys, dtype=np.uint64), np.array(positions), num_values, CPU)


def sample_noise(num_samples, num_values, position=0):
    """[num_samples, num_values] as a run makes it: one seed per draw."""
    return noise([seeds.sample_seed(0, i, 0) for i in range(num_samples)], [position] * num_samples, num_values)


def p_value(counts, expected):
    """Of Pearson's chi-square test that the counts come from the expected ones."""
    counts, expected = (torch.as_tensor(x, dtype=torch.float64).flatten() for x in (counts, expected))
    statistic = ((counts - expected) ** 2 / expected).sum()
    return torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2, dtype=torch.float64), statistic / 2).item()


def assert_plausible(counts, expected):
    assert 1e-4 < p_value(counts, expected) < 1 - 1e-4


def joint_counts(a, b, bins=16):
    cells = (a * bins).long().clamp(max=bins - 1) * bins + (b * bins).long().clamp(max=bins - 1)
    return torch.bincount(cells.flatten(), minlength=bins * bins)


def assert_independent(a, b):
    assert_plausible(joint_counts(a, b), torch.full((256,), a.numel() / 256))


def test_the_chi_square_test_itself_finds_a_small_bias():
    biased = sample_noise(64, 4096) ** 1.02
    assert p_value(torch.histc(biased, 64, 0, 1), torch.full((64,), biased.numel() / 64)) < 1e-6


def test_every_sample_of_every_prompt_and_run_has_its_own_seed():
    # Trap 19.
    made = {seeds.sample_seed(*key) for key in itertools.product(range(4), range(500), range(8))}
    assert len(made) == 4 * 500 * 8


def test_a_seed_depends_on_the_order_and_on_every_bit_of_its_parts():
    assert seeds.mix(1, 2) != seeds.mix(2, 1)
    assert seeds.mix(1) != seeds.mix(1, 0)
    reference = seeds.mix(7, 7)
    flipped = [bin(reference ^ seeds.mix(7, 7 ^ (1 << bit))).count("1") for bit in range(64)]
    assert min(flipped) > 12
    assert sum(flipped) / 64 == pytest.approx(32, abs=2)


def test_no_two_samples_or_positions_share_their_noise():
    # Trap 19: four workers on one prompt, four samples each, every position.
    keys = [seeds.sample_seed(0, 0, sample) for sample in range(16)]
    rows = torch.cat([noise(keys, [position] * 16, 32) for position in range(16)])
    assert len({tuple(row.tolist()) for row in rows}) == 256


def test_noise_of_a_row_does_not_depend_on_its_neighbours_or_on_the_vocabulary():
    # Trap 19: one worker or four, any chunking.
    keys, positions = [seeds.sample_seed(3, i, 0) for i in range(5)], [0, 4, 2, 2, 9]
    together = noise(keys, positions, 100)
    for row in range(5):
        assert torch.equal(noise(keys[row : row + 1], positions[row : row + 1], 100)[0], together[row])
    assert torch.equal(noise(keys, positions, 60), together[:, :60])


def test_one_part_is_mixed_as_the_second_number_of_splitmix64():
    assert seeds.mix(1234567) == 3203168211198807973


def test_noise_is_two_rounds_of_murmur3s_finaliser_bit_for_bit():
    def fmix32(h):
        h = (h ^ (h >> 16)) * 0x85EBCA6B % 2**32
        h = (h ^ (h >> 13)) * 0xC2B2AE35 % 2**32
        return h ^ (h >> 16)

    def to_unit(h):
        return float((np.float32(h) + np.float32(0.5)) * np.float32(2**-32))

    for key, position in ((0, 0), (seeds.sample_seed(5, 6, 7), 11), (2**64 - 1, 3)):
        high, low = divmod(seeds.mix(key, position), 2**32)
        hashed = [fmix32((fmix32(i * 0x9E3779B9 % 2**32 ^ low) + high) % 2**32) for i in range(5000)]
        assert noise([key], [position], 5000)[0].tolist() == [to_unit(h) for h in hashed]


def test_noise_is_uniform():
    values = sample_noise(64, 16384)
    assert_plausible(torch.histc(values, 1000, 0, 1), torch.full((1000,), values.numel() / 1000))


def test_noise_is_above_zero_up_to_one_and_resolves_2_to_the_minus_33():
    # A zero would win any exponential race, and a coarse grid near zero would give rare tokens too much or nothing.
    values = sample_noise(64, 50257)
    assert values.min() > 0
    assert values.max() <= 1
    small = values[values < 2**-10].double() * 2**33
    assert (small % 2 == 1).all()
    finest_bits = ((small - 1) / 2).long() % 64
    assert_plausible(torch.bincount(finest_bits, minlength=64), torch.full((64,), len(small) / 64))


@pytest.mark.parametrize(("draw", "position", "token"), ZERO_BEFORE)
def test_noise_is_not_zero_where_rounding_once_made_it_zero(draw, position, token):
    assert noise([seeds.sample_seed(0, draw, 0)], [position], token + 1)[0, token] > 0


def test_neighbouring_positions_samples_and_tokens_are_independent():
    now, after = sample_noise(128, 2048), sample_noise(128, 2048, position=1)
    assert_independent(now, after)
    assert_independent(now[:-1], now[1:])
    assert_independent(now[:, :-1], now[:, 1:])
    assert_independent(now[:, ::2], now[:, 1::2])
    # the same token over consecutive positions of one response
    key = seeds.sample_seed(0, 0, 0)
    over_time = noise([key] * 8192, range(8192), 8)
    assert_independent(over_time[:-1], over_time[1:])


def test_an_exponential_race_on_the_noise_draws_from_the_softmax():
    # Trap 19, and design.md 4.7: argmin of Exp(1) / p is distributed as p.
    p = torch.softmax(torch.tensor([2.0, 0.0, -1.0, 1.0, -4.0, 0.5, -2.0, 0.0], dtype=torch.float64), dim=0)
    n = 100_000
    exponential = -torch.log1p(-sample_noise(n, 8).double())
    winners = (exponential / p).argmin(dim=1)
    assert_plausible(torch.bincount(winners, minlength=8), p * n)
    tempered = torch.softmax(p.log() / 0.5, dim=0)
    assert p_value(torch.bincount(winners, minlength=8), tempered * n) < 1e-6


def test_consecutive_draws_of_one_response_are_independent():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    n = 40_000
    first, second = ((-torch.log1p(-sample_noise(n, 3, position).double()) / p).argmin(dim=1) for position in (0, 1))
    assert_plausible(torch.bincount(first * 3 + second, minlength=9), torch.outer(p, p) * n)


def test_a_permutation_follows_from_its_parts_alone():
    order = seeds.permutation(1000, 5, 1, 2)
    assert sorted(order) == list(range(1000))
    assert (order == seeds.permutation(1000, 5, 1, 2)).all()
    assert (order != seeds.permutation(1000, 5, 2, 1)).any()


def test_generators_of_different_purposes_differ_and_equal_ones_agree():
    assert (seeds.generator(1, 2).random(8) == seeds.generator(1, 2).random(8)).all()
    assert (seeds.generator(1, 2).random(8) != seeds.generator(1, 3).random(8)).all()


def test_seeding_everything_repeats_initial_weights():
    with torch.random.fork_rng():
        seeds.seed_everything(3)
        first = torch.rand(4)
        seeds.seed_everything(3)
        assert torch.equal(first, torch.rand(4))
        seeds.seed_everything(4)
        assert not torch.equal(first, torch.rand(4))
