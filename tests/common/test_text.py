"""One tokenizer for SFT, reward model, PPO and samples; and ids that are never made from text a second time."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, processors
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from actors.engine import SamplingEngine
from actors.worker import RolloutWorker
from common.classifiers import BagClassifier, BagConfig
from common.errors import ConfigError
from common.records import GenerateRequest, Identity, Prompt, WeightsHandle
from common.text import (
    decode,
    decode_all,
    encode,
    encode_documents,
    encode_for_classifier,
    eos_token_ids,
    load_classifier_tokenizer,
    load_tokenizer,
    opening_ids,
    train_word_tokenizer,
)
from common.weights import buffer_hash, flatten
from learner.batch import Batch, join
from reward_service.mixture import Mixture, Term
from reward_service.model_scorer import ModelScorer, TextClassifier

TEXTS = ["The film isn’t bad, it is good!", "A good film: 10 of 10.", "i don't like it. (not at all)"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_word_tokenizer(TEXTS, vocabulary_size=100, max_tokens=64)


def test_pad_unknown_and_eos_are_three_tokens(tokenizer):
    ids = {tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id}
    assert ids == {0, 1, 2}


def test_no_special_token_is_added_to_a_text_by_itself(tokenizer):
    assert tokenizer("good film")["input_ids"] == encode(tokenizer, ["good film"])[0].tolist()
    assert tokenizer.convert_ids_to_tokens(tokenizer("Good FILM")["input_ids"]) == ["good", "film"]
    assert tokenizer.num_special_tokens_to_add() == 0


def test_a_word_keeps_its_contraction_and_marks_and_numbers_stand_alone(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(encode(tokenizer, ["It isn’t 10, don't!"])[0].tolist())
    assert tokens == ["it", "isn’t", "10", ",", "don't", "!"]


def test_decoding_puts_marks_where_they_belong(tokenizer):
    ids = encode(tokenizer, ["a good film , it is bad ! i don't like it ."])[0]
    assert decode(tokenizer, ids) == "a good film, it is bad! i don't like it."


def test_decoding_leaves_out_special_tokens_and_keeps_the_rest(tokenizer):
    good = encode(tokenizer, ["good film"])[0]
    assert decode(tokenizer, [0, *good, 2, 0, 0]) == "good film"
    assert decode(tokenizer, np.array([2], dtype=np.int32)) == ""
    assert decode(tokenizer, []) == ""


@given(st.lists(st.integers(3, 15), max_size=20))
def test_decoded_words_encode_to_the_same_ids(tokenizer, ids):
    assert encode(tokenizer, [decode(tokenizer, ids)])[0].tolist() == ids


def test_unknown_words_are_the_unknown_token(tokenizer):
    assert encode(tokenizer, ["good zebra"])[0].tolist() == [*tokenizer("good")["input_ids"], 1]


def test_the_vocabulary_keeps_the_most_frequent_words():
    small = train_word_tokenizer(["a a a b b c"] * 3, vocabulary_size=5, max_tokens=8)
    assert set(small.get_vocab()) == {"<pad>", "<unk>", "<eos>", "a", "b"}


def test_encoding_cuts_at_the_limit_and_the_next_call_is_whole_again(tokenizer):
    (cut,) = encode(tokenizer, ["a good film it is"], max_tokens=3)
    (whole,) = encode(tokenizer, ["a good film it is"])
    assert cut.dtype == whole.dtype == np.int32
    assert cut.tolist() == whole[:3].tolist()
    assert len(whole) == 5


def test_a_document_gets_one_eos_where_it_fitted_whole(tokenizer):
    texts = ["good", "a good film", "a good film it", ""]
    documents = encode_documents(tokenizer, texts, max_tokens=4, drop_unknown=False)
    bare = encode(tokenizer, texts)
    assert [d.tolist() for d in documents] == [[*bare[0], 2], [*bare[1], 2], bare[2].tolist(), [2]]
    assert {d.dtype for d in documents} == {np.dtype(np.int32)}


def test_documents_with_unknown_words_are_dropped_only_on_demand(tokenizer):
    texts = ["good film", "good zebra", "bad film"]
    kept = encode_documents(tokenizer, texts, max_tokens=9, drop_unknown=True)
    assert [decode(tokenizer, d) for d in kept] == ["good film", "bad film"]
    assert len(encode_documents(tokenizer, texts, max_tokens=9, drop_unknown=False)) == 3


def test_texts_of_one_group_become_passages_with_one_eos_each(tokenizer):
    texts = ["a good film", "bad", "it is", "not", "a film it is", "good"]
    groups = np.array([1, 1, 1, 2, 2, 1])
    passages = encode_documents(tokenizer, texts, max_tokens=7, drop_unknown=False, groups=groups)
    assert [decode(tokenizer, p) for p in passages] == ["a good film bad it is", "not a film it is", "good"]
    assert [p.tolist().count(2) for p in passages] == [1, 1, 1]
    tight = encode_documents(tokenizer, texts, max_tokens=6, drop_unknown=False, groups=groups)
    assert [decode(tokenizer, p) for p in tight] == ["a good film bad", "it is", "not a film it is", "good"]


@given(
    texts=st.lists(st.tuples(st.integers(1, 6), st.integers(0, 2)), min_size=1, max_size=20),
    max_tokens=st.integers(7, 20),
)
def test_passages_hold_every_word_once_in_order_and_mix_no_groups(tokenizer, texts, max_tokens):
    words = [" ".join(["good", "bad", "film"][group] for _ in range(n)) for n, group in texts]
    groups = np.array([group for _, group in texts])
    passages = encode_documents(tokenizer, words, max_tokens=max_tokens, drop_unknown=False, groups=groups)
    assert all(len(p) <= max_tokens and p[-1] == 2 and len(set(p[:-1].tolist())) == 1 for p in passages)
    assert " ".join(decode(tokenizer, p) for p in passages) == " ".join(words)


def test_an_unknown_word_beyond_the_cut_drops_the_document_too(tokenizer):
    # Otherwise the cut would make a text end where its author's did not.
    assert encode_documents(tokenizer, ["good film zebra"], max_tokens=2, drop_unknown=True) == []


def test_a_tokenizer_comes_back_from_disk_as_it_was(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert [r.tolist() for r in encode(loaded, TEXTS)] == [r.tolist() for r in encode(tokenizer, TEXTS)]
    assert (loaded.pad_token_id, loaded.unk_token_id, loaded.eos_token_id) == (0, 1, 2)
    ids = encode(tokenizer, TEXTS)[0]
    assert decode(loaded, ids) == decode(tokenizer, ids)


def bare_tokenizer(**special):
    vocabulary = {"<end>": 0, "a": 1, "b": 2, "ab": 3, "ba": 4}
    bpe = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("b", "a")]))
    bpe.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, clean_up_tokenization_spaces=False, **special)


def test_a_missing_pad_token_becomes_the_eos_token(tmp_path):
    # Trap 5: as in GPT-2; everything else must then do without comparing ids.
    bare_tokenizer(eos_token="<end>").save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert loaded.pad_token_id == loaded.eos_token_id == 0


def test_a_tokenizer_without_eos_is_an_error_that_names_it(tmp_path):
    bare_tokenizer().save_pretrained(tmp_path)
    LlamaConfig(eos_token_id=None).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"neither tokenizer nor configuration of {tmp_path} names an EOS token"):
        load_tokenizer(str(tmp_path))


def test_a_missing_eos_token_is_the_one_that_the_models_settings_name(tmp_path):
    bare_tokenizer().save_pretrained(tmp_path)
    LlamaConfig(eos_token_id=3).save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert (loaded.eos_token_id, loaded.pad_token_id) == (3, 3)
    assert eos_token_ids(str(tmp_path), loaded) == {3}


CHATML = "{% for m in messages %}<s>{{ m['role'] }}: {{ m['content'] }}</s>\n{% endfor %}"


def chat_tokenizer(**special):
    tokens = ["<end>", "<s>", "</s>", "a"]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="a"))
    tokenizer.add_special_tokens(tokens[:3])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", **special)


@pytest.mark.parametrize(
    ("template", "config", "generation", "expected"),
    [
        (None, 0, None, {0}),
        (None, [0, 3], None, {0, 3}),
        (None, None, [0, 1], {0, 1}),
        (None, 3, 1, {0, 1, 3}),
        (CHATML, None, None, {0, 2}),
        ("{% for m in messages %}{{ m['content'] }} a {% endfor %}", None, None, {0}),
        ("nothing of what was said", None, None, {0}),
    ],
)
def test_a_response_ends_at_every_id_that_anything_names(tmp_path, template, config, generation, expected):
    # A chat model whose tokenizer says <|endoftext|> must still end at <|im_end|>.
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = template
    LlamaConfig(eos_token_id=config).save_pretrained(tmp_path)
    if generation is not None:
        GenerationConfig(eos_token_id=generation).save_pretrained(tmp_path)
    assert eos_token_ids(str(tmp_path), tokenizer) == expected


def test_a_bos_token_stands_first_where_its_tokenizer_puts_it(tokenizer):
    assert opening_ids(tokenizer).tolist() == []
    llama = bare_tokenizer(bos_token="ba", eos_token="<end>")
    assert opening_ids(llama).tolist() == [], "a BOS token that is never added"
    llama.backend_tokenizer.post_processor = processors.TemplateProcessing(single="ba $A", special_tokens=[("ba", 4)])
    assert opening_ids(llama).tolist() == [4]
    passages = encode_documents(
        llama, ["aa", "a", "bb", "aaaaa"], max_tokens=5, drop_unknown=False, groups=np.array([1, 1, 2, 3])
    )
    assert [p.tolist() for p in passages] == [[4, 1, 1, 1, 0], [4, 2, 2, 0], [4, 1, 1, 1, 1]]


def test_ids_beyond_the_tokenizer_decode_to_nothing(tokenizer):
    good = encode(tokenizer, ["good film"])[0]
    assert decode(tokenizer, [*good, len(tokenizer), 50_000]) == "good film"


def test_a_classifiers_tokenizer_needs_no_eos_but_something_to_pad_with(tmp_path):
    # Trap 16: BERT's tokenizer, and so lvwerra/distilbert-imdb's, has no EOS token.
    bare_tokenizer(pad_token="ab").save_pretrained(tmp_path / "pad")
    bare_tokenizer(eos_token="<end>").save_pretrained(tmp_path / "eos")
    bare_tokenizer().save_pretrained(tmp_path / "none")
    assert load_classifier_tokenizer(str(tmp_path / "pad")).pad_token_id == 3
    assert load_classifier_tokenizer(str(tmp_path / "eos")).pad_token_id == 0
    with pytest.raises(ConfigError, match="neither a pad nor an EOS token"):
        load_classifier_tokenizer(str(tmp_path / "none"))


def test_a_classifiers_texts_get_the_special_tokens_that_it_was_made_for(tokenizer):
    # Trap 16: in training and in scoring alike.
    bert = bare_tokenizer(pad_token="<end>")
    bert.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="ab $A ba", special_tokens=[("ab", 3), ("ba", 4)]
    )
    assert [ids.tolist() for ids in encode_for_classifier(bert, ["aa", "", "bbbbb"], 5)] == [
        [3, 1, 1, 4],
        [3, 4],
        [3, 2, 2, 2, 4],
    ]
    assert encode_for_classifier(tokenizer, TEXTS, 4)[0].tolist() == encode(tokenizer, TEXTS, 4)[0].tolist()


def test_trajectories_hold_the_sampled_ids_where_text_would_encode_to_others(llama, tmp_path):
    # Trap 15: "a", "b" decodes to "ab", which encodes to one token.
    bare_tokenizer(eos_token="<end>").save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    policy = llama(vocab_size=5, initializer_range=0.02).eval()
    buffer, manifest = flatten(policy)
    handle = WeightsHandle(Identity(0, 0), buffer, buffer_hash(buffer), manifest)
    worker = RolloutWorker(SamplingEngine(policy, frozenset({tokenizer.eos_token_id})), fetch=lambda handle: handle.ref)
    prompts = tuple(Prompt(i, i, np.array([1, 2, 1][: 1 + i % 3], dtype=np.int32), 12) for i in range(24))
    request = GenerateRequest(0, 0, prompts, 0, 0, 1.0, handle)
    chunk, _ = worker.generate(request)
    whole = [np.concatenate([p.token_ids, r.response_ids]) for p, r in zip(prompts, chunk.rollouts, strict=True)]
    encoded_again = [tokenizer(decode(tokenizer, ids))["input_ids"] for ids in whole]
    ambiguous = sum(a != [t for t in b.tolist() if t] for a, b in zip(encoded_again, whole, strict=True))
    assert ambiguous > 12, "text was not ambiguous: nothing was tested"

    bag = BagClassifier(BagConfig(vocab_size=5))
    judge = TextClassifier(bag, tokenizer, positive_class=1, max_tokens=32, batch_sequences=8)
    terms = [Term(ModelScorer("reward_model", judge), 1.0)]
    judgements, _ = Mixture(terms, tokenizer, budget_s=60.0, probe_budget_s=60.0).judge(chunk)
    trajectories = join(chunk, judgements, None)
    batch = Batch.of(trajectories, torch.device("cpu"))
    again, _ = worker.generate(request)
    for i, (ids, trajectory) in enumerate(zip(whole, trajectories, strict=True)):
        assert trajectory.rollout.response_ids.tobytes() == again.rollouts[i].response_ids.tobytes()
        assert batch.input_ids[i, : len(ids)].tolist() == ids.tolist()
        assert int(batch.prompt_lengths[i] + batch.response_lengths[i]) == len(ids)


@pytest.mark.parametrize("cleanup", [True, False])
def test_many_texts_are_decoded_as_one_each(cleanup):
    tokenizer = train_word_tokenizer(["a good film , and not a bad one ."], vocabulary_size=32, max_tokens=16)
    tokenizer.clean_up_tokenization_spaces = cleanup
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, len(tokenizer) + 3, n).astype(np.int32) for n in (0, 1, 5, 9)]
    assert decode_all(tokenizer, rows) == [decode(tokenizer, row) for row in rows]
    assert decode_all(tokenizer, []) == []


def test_a_tokenizer_with_a_way_of_its_own_decodes_many_texts_by_it():
    class Loud(PreTrainedTokenizerFast):
        def _decode(self, *arguments, **settings):
            return super()._decode(*arguments, **settings).upper()

    plain = train_word_tokenizer(["a good film"], vocabulary_size=32, max_tokens=16)
    loud = Loud(tokenizer_object=plain.backend_tokenizer)
    assert decode_all(loud, [np.array([3, 4, 5], dtype=np.int32)]) == [decode(plain, [3, 4, 5]).upper()]
