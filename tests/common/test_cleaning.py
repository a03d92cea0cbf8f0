import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cleaning import clean, count_words, paragraphs, sentences


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Good.<br /><br />Bad.<BR>So-so.", "Good. Bad. So-so."),
        ("an <i>odd</i> <a href='x'>one</a><!-- no\n -->", "an odd one"),
        ("&quot;Tom &amp; Jerry&quot;&nbsp;&#8230;", '"Tom & Jerry" ...'),
        ("5 < 6 and 7 > 3, I <3 it", "5 < 6 and 7 > 3, I <3 it"),
        ("tab\tnew\r\nline \x00\x08 nul   run", "tab new line nul run"),
        ("it\x92s 1990\x961999\x85 \x93so\x94", 'it\'s 1990–1999... "so"'),
        ("“don’t” `he´ soft\u00adhyphen", "\"don't\" `he' softhyphen"),
        ("cafe\u0301", "café"),
        ("lone \ud800 surrogate", "lone surrogate"),
    ],
)
def test_cleaning_worked_examples(raw, expected):
    assert clean(raw) == expected


def test_two_line_breaks_end_a_paragraph_and_one_does_not():
    assert paragraphs("one<br />two<br /><br />three\n\nfour<p>five") == ["one two", "three", "four", "five"]


@given(st.text())
def test_cleaned_text_is_one_line_without_controls_and_runs_of_blanks(raw):
    text = clean(raw)
    assert text == " ".join(text.split())
    assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 for c in text)
    text.encode()


@pytest.mark.parametrize(("text", "words"), [("it 's , well -- good", 4), ("Don't stop!", 2), ("...", 0), ("", 0)])
def test_words_are_counted_without_free_standing_marks(text, words):
    assert count_words(text) == words


@pytest.mark.parametrize(
    "pieces",
    [
        ["I saw it.", "It was great!", "Was it?", "Yes"],
        ["Mr. Smith met Dr. No at 7.30 p.m. in the U.S. of A. with J. R. R. Tolkien."],
        ["It cost 3.5 million.", "That is No. 1 vs. the rest, e.g. Rocky etc. and so on."],
        ["Well... it is slow...", "But good!!!", "Really?!"],
        ['He said "What?" and left.', '"Never again."', "(Truly.)", "The end"],
        ["the plot of j . r . r . tolkien's film cost $1 . 8 million .", "it is fun ."],
        ['a simple " goddammit ! " near the end .', "then . . . nothing .", "what now ?", "mr . deeds sleeps ."],
        ["he shrugs , \" who cares ? \"", "It ends ."],
        ["i liked it.", "it was fun!", "really."],
        ["Great.", "(Who cares ? )", "Next."],
        ["1. The plot is thin.", "2. The cast is not."],
    ],
    ids=lambda pieces: pieces[0][:24],
)  # fmt: skip
def test_sentences_are_cut_as_a_reader_would(pieces):
    assert sentences(" ".join(pieces)) == pieces


def test_a_missing_blank_after_a_full_stop_is_no_obstacle_but_addresses_are_left_whole():
    assert sentences("It was fun.The end came. See www.IMDb.com or i.e.Google.") == [
        "It was fun.", "The end came.", "See www.IMDb.com or i.e.Google."]  # fmt: skip


@given(st.text(alphabet="aB.!?… \"')(1i", max_size=60))
def test_cutting_loses_no_character_and_is_repeatable(raw):
    text = clean(raw)
    pieces = sentences(text)
    assert "".join(pieces).replace(" ", "") == text.replace(" ", "")
    assert all(piece == piece.strip() and piece for piece in pieces)
