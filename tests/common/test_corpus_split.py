import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.corpus import Corpus, load_corpus, split
from common.data_config import InlineSource, TextPrep
from common.errors import DataError


def numbered(count: int) -> Corpus:
    return load_corpus(InlineSource(texts=[f"review {i}. second part {i}." for i in range(count)]))


def test_membership_does_not_depend_on_order_or_neighbours():
    corpus = numbered(2000)
    shuffled = random.Random(0).sample(corpus.texts, 1500)
    again = split(load_corpus(InlineSource(texts=shuffled)), 0.2, "heldout", "a")
    assert set(again.texts) == set(split(corpus, 0.2, "heldout", "a").texts) & set(shuffled)


def test_membership_is_the_same_in_every_release():
    corpus = numbered(40)
    heldout = [int(text.split()[1][:-1]) for text in split(corpus, 0.25, "heldout").texts]
    half = [int(text.split()[1][:-1]) for text in split(corpus, 0.25, "heldout", "a").texts]
    assert heldout == [6, 13, 16, 20, 23, 26, 27, 33, 34]
    assert half == [6, 13, 20, 23, 26, 27, 33, 34]


@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.9])
def test_the_held_out_share_is_about_right(fraction):
    heldout = len(split(numbered(4000), fraction, "heldout"))
    assert abs(heldout - 4000 * fraction) < 4 * (4000 * fraction * (1 - fraction)) ** 0.5


def test_halves_are_independent_of_what_is_held_out():
    corpus = numbered(4000)
    for which in ("train", "heldout"):
        whole, half = len(split(corpus, 0.3, which)), len(split(corpus, 0.3, which, "a"))
        assert abs(half - whole / 2) < 4 * (whole / 4) ** 0.5


def test_equal_documents_land_together_whatever_their_markup_and_case():
    texts = [f"Film {i} was <b>so-so</b>." for i in range(200)] + [f"film {i}  was so-so." for i in range(200)]
    corpus = load_corpus(InlineSource(texts=texts))
    assert corpus.document_ids[:200].tolist() == corpus.document_ids[200:].tolist()
    numbers = [text.split()[1] for text in split(corpus, 0.5, "heldout").texts]
    assert {numbers.count(number) for number in numbers} == {2}


def test_documents_and_their_sentences_are_held_out_together():
    texts = [f"Film {i} is slow. Film {i} is long." for i in range(300)]
    documents = split(load_corpus(InlineSource(texts=texts)), 0.3, "heldout")
    cut = split(
        load_corpus(InlineSource(texts=texts, prepare=TextPrep(unit="sentence", lowercase=True))), 0.3, "heldout"
    )
    assert [t.split()[1] for t in cut.texts] == [n for t in documents.texts for n in [t.split()[1]] * 2]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(alphabet="abc ", min_size=1).filter(str.strip), min_size=1), st.floats(0, 1))
def test_the_splits_and_halves_are_disjoint_and_cover_every_row_in_order(texts, fraction):
    corpus = load_corpus(InlineSource(texts=texts, labels=[i % 2 for i in range(len(texts))]))
    parts = []
    for which in ("train", "heldout"):
        for half in ("a", "b"):
            try:
                parts.append(split(corpus, fraction, which, half))
            except DataError:
                continue
    ids = [set(part.document_ids.tolist()) for part in parts]
    assert sum(map(len, ids)) == len(set().union(*ids)) == len(set(corpus.document_ids.tolist()))
    assert sorted((t, x) for p in parts for t, x in zip(p.texts, p.labels, strict=True)) == sorted(
        zip(corpus.texts, corpus.labels, strict=True)
    )
    assert len({part.fingerprint for part in parts} | {corpus.fingerprint}) == len(parts) + 1


def test_an_empty_split_is_an_error_that_names_it():
    with pytest.raises(DataError, match=r"the heldout split \(heldout_fraction=0, half='all'\) is empty.* 3 different"):
        split(numbered(3), 0, "heldout")
