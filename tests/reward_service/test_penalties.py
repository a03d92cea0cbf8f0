"""Ready-made penalties: by hand on small texts, their ranges by properties, and as a scorer in its own process."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reward_service import penalties

texts = st.lists(st.text(alphabet="ab é.\n", max_size=30), max_size=5)


def one(penalty, response, **arguments):
    (score,) = penalty(["say"], [response], **arguments)
    return score


def words(number):
    return " ".join(f"w{i}" for i in range(number))


# --- length


@pytest.mark.parametrize(
    ("number", "score"),
    [(0, -1.0), (1, -1.0), (2, -0.5), (3, 0.0), (10, 0.0), (11, -0.5), (12, -1.0), (13, -1.0), (500, -1.0)],
)
def test_length_is_free_within_its_range_and_costs_linearly_beyond_it(number, score):
    assert one(penalties.length, words(number), fewest=3, most=10, margin=2) == score


@given(st.integers(0, 60), st.integers(0, 30), st.integers(1, 20))
def test_the_upper_side_is_the_soft_overlong_punishment_of_dapo(number, most, margin):
    """Oracle: eq. 13, with L_max = most + margin and L_cache = margin."""
    longest, cache = most + margin, margin
    if number <= longest - cache:
        expected = 0.0
    elif number <= longest:
        expected = (longest - cache - number) / cache
    else:
        expected = -1.0
    assert one(penalties.length, words(number), most=most, margin=margin) == pytest.approx(expected)


def test_without_a_margin_each_length_outside_costs_all_at_once():
    scores = [one(penalties.length, words(n), fewest=1, most=2, margin=0) for n in range(4)]
    assert scores == [-1.0, 0.0, 0.0, -1.0]


def test_nothing_is_too_long_or_too_short_unless_it_is_said_so():
    assert [one(penalties.length, words(n)) for n in (0, 10_000)] == [0.0, 0.0]


@pytest.mark.parametrize("arguments", [{"fewest": -1}, {"margin": -1}, {"fewest": 5, "most": 4}])
def test_lengths_that_make_no_sense_are_refused(arguments):
    with pytest.raises(ValueError, match="needed is 0 <= fewest <= most, and margin >= 0"):
        one(penalties.length, "a", **arguments)


def test_lengths_may_be_in_tokens_of_a_tokenizer_without_its_special_ones(bert_tokenizer, tmp_path):
    bert_tokenizer.save_pretrained(tmp_path)
    text = "it is not very-good"  # four words, and six tokens beside [CLS] and [SEP]
    assert len(bert_tokenizer(text)["input_ids"]) == 8
    limits = {"most": 4, "margin": 4}
    assert one(penalties.length, text, **limits) == 0.0
    assert one(penalties.length, text, **limits, tokenizer=str(tmp_path)) == -0.5
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json"):
        one(penalties.length, text, tokenizer=str(tmp_path / "empty"))


# --- repetition, and what else


@pytest.mark.parametrize(
    ("response", "n", "score"),
    [
        ("good film good film good film", 2, -3 / 5),
        ("Good film. good FILM.", 2, -1 / 3),
        ("a b c d", 2, 0.0),
        ("a a a a", 1, -3 / 4),
        ("a a a a", 3, -1 / 2),
        ("a a", 3, 0.0),
        ("", 1, 0.0),
    ],
)
def test_repetition_is_the_share_of_ngrams_that_came_before(response, n, score):
    assert one(penalties.repetition, response, ngram_words=n) == pytest.approx(score)


def test_an_ngram_has_at_least_one_word():
    with pytest.raises(ValueError, match="ngram_words=0 must be at least 1"):
        one(penalties.repetition, "a", ngram_words=0)


def test_letters_beyond_ascii_cost_their_share_unless_they_are_allowed():
    assert one(penalties.non_ascii, "ab é漢") == -2 / 5
    assert one(penalties.non_ascii, "ab é漢", allowed="éü") == -1 / 5
    assert one(penalties.non_ascii, "") == 0.0


@pytest.mark.parametrize(("response", "score"), [("", -1.0), (" .\n!", -1.0), ("a", 0.0), ("漢", 0.0), ("7", 0.0)])
def test_a_response_without_letter_or_digit_is_empty(response, score):
    assert one(penalties.empty, response) == score


@given(texts)
def test_every_penalty_is_between_minus_one_and_nothing_and_knows_no_neighbours(responses):
    prompts = ["p"] * len(responses)
    for penalty in (penalties.repetition, penalties.non_ascii, penalties.empty):
        scores = penalty(prompts, responses)
        assert scores == [one(penalty, response) for response in responses]
        assert all(-1 <= score <= 0 for score in scores)
