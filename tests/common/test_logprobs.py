"""The next-token shift and the temperature, on a table model whose probabilities are known."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.logprobs import gather_response, log_distribution, nucleus, response_positions, token_logprobs

NEXT = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]], dtype=torch.float64)
"""P(next symbol | this one): no two rows or columns are alike, so that a shift by one shows."""


@pytest.fixture
def table_model():
    def logits(input_ids):
        return NEXT.log()[input_ids] + torch.arange(input_ids.shape[1])[None, :, None]

    return logits


def test_logprobs_of_a_response_are_those_of_each_token_given_the_one_before(table_model):
    # Trap 4. Prompt and response: [0] [1, 2], then [2, 1] [0], then [1] [2, 0, 1].
    input_ids = torch.tensor([[0, 1, 2, 0], [2, 1, 0, 0], [1, 2, 0, 1]])
    response_ids = torch.tensor([[1, 2, 0], [0, 0, 0], [2, 0, 1]])
    logits = gather_response(table_model(input_ids), torch.tensor([1, 2, 1]), 3)
    logprobs, _ = token_logprobs(logits, response_ids, 1.0)
    assert logprobs[0, :2].exp().tolist() == pytest.approx([0.25, 0.7])
    assert logprobs[1, :1].exp().tolist() == pytest.approx([0.1])
    assert logprobs[2].exp().tolist() == pytest.approx([0.7, 0.6, 0.25])


def test_the_first_response_token_is_predicted_at_the_last_prompt_token():
    assert response_positions(torch.tensor([1, 4]), 3).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_logprobs_do_not_depend_on_how_much_right_padding_a_row_has(table_model):
    input_ids, prompt_lengths = torch.tensor([[0, 1, 2]]), torch.tensor([1])
    wide = torch.nn.functional.pad(input_ids, (0, 4), value=1)
    narrow_logits = gather_response(table_model(input_ids), prompt_lengths, 2)
    assert torch.equal(gather_response(table_model(wide), prompt_lengths, 2), narrow_logits)


def test_slots_past_the_end_of_the_batch_repeat_its_last_position():
    per_position = torch.tensor([[10, 11, 12], [20, 21, 22]])
    assert gather_response(per_position, torch.tensor([1, 3]), 3).tolist() == [[10, 11, 12], [22, 22, 22]]


def test_gathering_keeps_trailing_dimensions_and_carries_gradients():
    per_position = torch.zeros(1, 4, 2, requires_grad=True)
    gathered = gather_response(per_position, torch.tensor([2]), 2)
    gathered.sum().backward()
    assert gathered.shape == (1, 2, 2)
    assert per_position.grad[0, :, 0].tolist() == [0, 1, 1, 0]


def test_temperature_divides_the_logits_before_the_softmax():
    # Trap 13. At T = 0.5 probabilities are squared and normalised: (0.8, 0.2) becomes (0.64, 0.04) / 0.68.
    logits = torch.tensor([0.8, 0.2], dtype=torch.float64).log()
    p = [0.64 / 0.68, 0.04 / 0.68]
    assert log_distribution(logits, 0.5).exp().tolist() == pytest.approx(p)
    logprobs, entropy = token_logprobs(logits, torch.tensor(1), 0.5)
    assert logprobs.item() == pytest.approx(math.log(p[1]))
    assert logprobs.item() != pytest.approx(math.log(0.2) / 0.5)
    assert entropy.item() == pytest.approx(-sum(q * math.log(q) for q in p))


@pytest.mark.parametrize("temperature", [0.3, 0.5, 1.0, 2.0])
def test_sampler_learner_and_reference_agree_at_every_temperature(temperature):
    # Trap 13: what is sampled from (log_distribution) and what is trained on (token_logprobs) are one distribution.
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(5)
    sampled_from = log_distribution(logits, temperature)
    logprobs, entropy = token_logprobs(logits, ids, temperature)
    assert torch.equal(logprobs, sampled_from[torch.arange(5), ids])
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=sampled_from).entropy())
    torch.testing.assert_close(sampled_from.exp().sum(-1), torch.ones(5))


def test_half_precision_logits_are_widened_before_the_softmax_and_double_stays():
    logits = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    half = logits.bfloat16()
    assert torch.equal(log_distribution(half, 0.7), torch.log_softmax(half.float() / 0.7, dim=-1))
    assert log_distribution(logits.double(), 0.7).dtype == torch.float64


def test_gradients_of_logprobs_and_entropy_agree_with_finite_differences():
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, torch.tensor([0, 3, 1]), 0.7), (logits,))


# --- the nucleus


def slow_nucleus(p, top_p):
    """Token by token from the likeliest down, until the kept ones hold top_p."""
    kept, mass = [], 0.0
    for token in sorted(range(len(p)), key=lambda i: -p[i]):
        if kept and mass >= top_p:
            break
        kept.append(token)
        mass += p[token]
    return [p[i] / mass if i in kept else 0.0 for i in range(len(p))]


@given(seed=st.integers(0, 10**6), size=st.integers(1, 12), top_p=st.floats(0.01, 0.99), temperature=st.floats(0.3, 2))
def test_a_nucleus_holds_the_fewest_likeliest_tokens_that_reach_its_mass(seed, size, top_p, temperature):
    logits = 3 * torch.randn(4, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    cut = log_distribution(logits, temperature, top_p).exp()
    whole = log_distribution(logits, temperature).exp()
    expected = [slow_nucleus(row, top_p) for row in whole.tolist()]
    torch.testing.assert_close(cut, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_a_nucleus_of_everything_is_the_distribution_bit_for_bit():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(log_distribution(logits, 0.7, 1.0), log_distribution(logits, 0.7))


def test_the_likeliest_token_is_always_kept_and_ties_go_to_the_first():
    log_p = torch.tensor([[0.25, 0.25, 0.25, 0.25]]).log()
    assert nucleus(log_p, 1e-9).exp().tolist() == [[1, 0, 0, 0]]
    assert nucleus(log_p, 0.5).exp().tolist() == [[0.5, 0.5, 0, 0]]
