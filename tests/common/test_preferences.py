"""Preferences from files, from the configuration and from labels: what is loaded, how it is split, what is refused."""

import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest

from common.corpus import load_corpus, split
from common.data_config import FilesSource, InlineSource
from common.demonstrations import load_demonstrations, split_demonstrations
from common.errors import DataError
from common.joining import join_response
from common.preferences import load_preferences

RANKED = {"type": "preferences", "prompt_column": "prompt"}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def write(path: Path, rows) -> Path:
    match path.suffix:
        case ".csv":
            pd.DataFrame(rows).to_csv(path, index=False)
        case ".parquet":
            pd.DataFrame(rows).to_parquet(path)
        case _:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path, *, rows=RANKED, which="train", fraction=0.0, half="all", **settings):
    source = FilesSource.model_validate({"paths": [str(path)], "rows": rows, **settings})
    return load_preferences(source, fraction, which, half)


def named(preferences):
    """Rankings as texts."""
    return [[preferences.texts[i] for i in ranking] for ranking in preferences.rankings]


PAIRS = [
    {"prompt": "The film", "chosen": "is good", "rejected": "is bad, sadly", "margin": 2},
    {"prompt": "The cast", "chosen": ", all of it, is good", "rejected": "is bad", "margin": 0.5},
]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_pairs_are_loaded_with_their_margins_from_each_format(tmp_path, suffix):
    found = load(write(tmp_path / f"pairs{suffix}", PAIRS), rows=RANKED | {"margin_column": "margin"})
    assert named(found) == [
        ["The film is good", "The film is bad, sadly"],
        ["The cast, all of it, is good", "The cast is bad"],
    ]
    assert found.margins.tolist() == [2, 0.5]
    assert found.response_words.tolist() == [2, 3, 5, 2]  # of the responses, not of the prompts


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_ranking_has_as_many_responses_as_its_row(tmp_path, suffix):
    rows = [{"ranked": ["good film", "film", "bad film"]}, {"ranked": ["great", "dull"]}]
    found = load(write(tmp_path / f"r{suffix}", rows), rows={"type": "preferences", "ranking_column": "ranked"})
    assert named(found) == [row["ranked"] for row in rows]
    assert found.margins.tolist() == [0, 0]


def test_rows_that_where_leaves_out_are_not_even_looked_at(tmp_path):
    path = write(tmp_path / "p.jsonl", [{**PAIRS[0], "by": "a"}, {"prompt": None, "chosen": 3, "by": "b"}])
    assert len(load(path, where={"by": "a"})) == 1


def test_records_in_the_configuration_are_preferences_too():
    source = InlineSource.model_validate({"rows": RANKED, "records": PAIRS})
    assert named(load_preferences(source, 0.0))[0] == ["The film is good", "The film is bad, sadly"]


def test_equal_responses_are_left_out_and_counted(tmp_path):
    rows = [{"ranked": ["a", "b", "a"]}, {"ranked": ["c", "c"]}]
    found = load(write(tmp_path / "r.jsonl", rows), rows={"type": "preferences", "ranking_column": "ranked"})
    assert named(found) == [["a", "b"]]
    assert found.num_left_out == 1 + 2


@pytest.mark.parametrize(
    ("prompt", "response", "whole"),
    [
        ("The film", "is good", "The film is good"),
        ("The film ", "is good", "The film is good"),
        ("The film", " is good", "The film is good"),
        ("The film", ", is good", "The film, is good"),
        ("Question:\n", "Answer", "Question:\nAnswer"),
        ("", "is good", "is good"),
        ("The film", "", "The film"),
    ],
)
def test_prompt_and_response_are_joined_as_a_policy_goes_on(prompt, response, whole):
    assert join_response(prompt, response) == whole


def many(num=60):
    """Two responses to each of 20 prompts, three times; every text has a mark of its own."""
    return [{"prompt": f"prompt {i % 20}", "chosen": f"good mark{i}", "rejected": f"bad mark{i}"} for i in range(num)]


def test_the_splits_are_disjoint_by_prompt_and_hold_everything(tmp_path):
    path = write(tmp_path / "p.jsonl", many())
    parts = [load(path, fraction=0.3, which="heldout")]
    parts += [load(path, fraction=0.3, which="train", half=half) for half in ("a", "b")]
    prompts = [{text.split(" good")[0].split(" bad")[0] for text in part.texts} for part in parts]
    assert all(prompts)
    assert not prompts[0] & prompts[1]
    assert not prompts[0] & prompts[2]
    assert not prompts[1] & prompts[2]
    assert sum(len(part) for part in parts) == 60


def test_rankings_that_share_a_text_are_in_one_split_by_others_between_them(tmp_path):
    """A chain a > b, b > c, ... is one group, told by its texts alone; single pairs beside it are not."""
    chain = [{"chosen": f"link {i}", "rejected": f"LINK  {i + 1}"} for i in range(30)]
    alone = [{"chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(40)]
    for order in (chain + alone, list(reversed(alone + chain))):
        path = write(tmp_path / "p.jsonl", order)
        parts = [
            load(path, rows={"type": "preferences"}, fraction=0.4, which=which).texts for which in ("train", "heldout")
        ]
        assert sorted("link 3" in part for part in parts) == [False, True]
        assert sum(any(text.lower().startswith("link") for text in part) for part in parts) == 1
        assert all(any(text.startswith("good") for text in part) for part in parts)


def test_a_pair_is_in_the_same_split_whatever_stands_beside_it(tmp_path):
    rows = many()
    texts = [set(load(write(tmp_path / f"{n}.jsonl", rows[:n]), fraction=0.3, which="heldout").texts) for n in (40, 60)]
    assert texts[0] < texts[1]


LABELLED = {
    "texts": [f"{'good' if i % 2 else 'bad'} mark{i}" + " film" * (i // 8) for i in range(80)],
    "labels": [i % 2 for i in range(80)],
}


def derived(*, fraction=0.25, which="train", half="all", **rows):
    source = InlineSource.model_validate(LABELLED | {"rows": {"type": "label_pairs"} | rows})
    return load_preferences(source, fraction, which, half), source


def test_a_text_of_the_higher_class_is_preferred_to_one_of_as_many_words():
    found, _ = derived()
    assert len(found) > 10
    for better, worse in named(found):
        assert better.startswith("good")
        assert worse.startswith("bad")
        assert len(better.split()) == len(worse.split())


@pytest.mark.parametrize(("which", "half"), [("train", "a"), ("train", "b"), ("heldout", "all")])
def test_pairs_of_labels_hold_texts_of_their_own_split_only(which, half):
    found, source = derived(which=which, half=half)
    assert set(found.texts) <= set(split(load_corpus(source), 0.25, which, half).texts)
    assert len(found.texts) + found.num_left_out == len(split(load_corpus(source), 0.25, which, half))


def test_noise_turns_pairs_round_and_a_margin_goes_with_the_classes():
    clean, _ = derived()
    noisy, _ = derived(noise_fraction=0.4, margin_per_class=0.5)
    assert {frozenset(pair) for pair in named(clean)} == {frozenset(pair) for pair in named(noisy)}
    turned = np.mean([better.startswith("bad") for better, _ in named(noisy)])
    assert 0.1 < turned < 0.7
    assert noisy.margins.tolist() == [0.5] * len(noisy)
    assert clean.margins.tolist() == [0] * len(clean)


def test_labels_that_no_two_texts_of_a_length_differ_in_are_an_error():
    source = InlineSource(
        texts=["good", "bad film"], labels=[1, 0], rows={"type": "label_pairs", "length_tolerance": 0.5}
    )
    with pytest.raises(DataError, match=r"no two of 2 texts have different labels .* length_tolerance=0.5"):
        load_preferences(source, 0.0)


@pytest.mark.parametrize(
    ("row", "rows", "says"),
    [
        ({"chosen": None}, {}, "row 3, column 'chosen': the response is missing; fill it in or delete the row"),
        ({"rejected": 7}, {}, "row 3, column 'rejected': the response is 7, which is no string"),
        ({"prompt": None}, {}, "row 3, column 'prompt': the prompt is missing"),
        ({"prompt": " ", "chosen": ""}, {}, "row 3, column 'chosen': the text is empty"),
        ({"margin": "much"}, {"margin_column": "margin"}, "row 3, column 'margin': the margin is 'much'; legal are"),
        ({"margin": None}, {"margin_column": "margin"}, "row 3, column 'margin': the margin is missing"),
        ({"margin": -1}, {"margin_column": "margin"}, "the margin is -1"),
        ({"ranked": "good"}, {"ranking_column": "ranked"}, "column 'ranked': the ranking is 'good'; it must be a list"),
        ({"ranked": ["good"]}, {"ranking_column": "ranked"}, "the ranking is ['good']; it must be a list of two or"),
        ({"ranked": ["good", 3]}, {"ranking_column": "ranked"}, "response 2 is 3, which is no string"),
    ],
)
def test_what_is_wrong_is_named_by_row_and_column(row, rows, says):
    good = {"prompt": "The film", "chosen": "is good", "rejected": "is bad", "margin": 1, "ranked": ["good", "bad"]}
    source = InlineSource.model_validate({"rows": RANKED | rows, "records": [good, good, good | row]})
    with pytest.raises(DataError) as caught:
        load_preferences(source, 0.0)
    assert says in str(caught.value)


def test_a_file_and_its_line_are_named(tmp_path):
    path = write(tmp_path / "pairs.csv", [PAIRS[0], PAIRS[1] | {"rejected": ""}])
    with pytest.raises(DataError, match=r"pairs.csv, row 2 \(line 3\), column 'rejected': the response is missing"):
        load(path)


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path):
    path = write(tmp_path / "pairs.jsonl", PAIRS)
    with pytest.raises(DataError, match=r"no column 'choosen': did you mean 'chosen'\?"):
        load(path, rows=RANKED | {"chosen_column": "choosen"})


def test_rankings_of_equal_responses_only_are_an_error():
    source = InlineSource.model_validate(
        {"rows": {"type": "preferences"}, "records": [{"chosen": "a", "rejected": "a"}]}
    )
    with pytest.raises(DataError, match="all 1 rankings of a split hold equal responses only"):
        load_preferences(source, 0.0)


def test_no_prompt_of_evaluation_is_trained_on_by_the_reward_model(tmp_path):
    """One file, read as demonstrations, chats and preferences; some pairs have one text, so prompts are joined."""
    rows = [
        {"prompt": f"Prompt {i}", "chosen": f"good {i}", "rejected": f"bad {i}",
         "m": [{"role": "system", "content": "be kind"}, {"role": "user", "content": f" prompt  {i}"},
               {"role": "assistant", "content": f"good {i}"}]}
        for i in range(80)
    ]  # fmt: skip
    linked = [{**row, "prompt": f"{row['prompt']} is", "rejected": "so"} for row in rows[:9]]
    linked += [{**row, "chosen": "is so", "rejected": f"worse {i}"} for i, row in enumerate(rows[:9])]
    path = write(tmp_path / "rows.jsonl", [*rows, *linked])
    trained = {half: load(path, fraction=0.3, half=half).texts for half in ("a", "b")}
    heldout = load(path, fraction=0.3, which="heldout").texts
    for columns in ({"response_column": "chosen"}, {"messages_column": "m"}):
        source = FilesSource.model_validate({"paths": [str(path)], "rows": {"type": "demonstrations"} | columns})
        asked = split_demonstrations(load_demonstrations(source), 0.3, "heldout").chats
        evaluated = {" ".join(chat[-2]["content"].lower().split()) for chat in asked}
        assert len(evaluated) > 10
        for texts in trained.values():
            assert len(texts) > 20
            assert not {t for t in texts if any(t.lower().startswith(f"{prompt} ") for prompt in evaluated)}
        assert all(any(t.lower().startswith(f"{prompt} ") for t in heldout) for prompt in evaluated)
