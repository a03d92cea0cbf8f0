"""The loss on responses alone, against a loop; what is cut and counted; and draws by weight in training."""

import copy
import math
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from common.config import RunConfig
from common.data_config import InlineSource
from common.dialogue import Example
from common.errors import DataError
from common.logprobs import next_token_loss
from common.text import load_tokenizer, train_word_tokenizer
from common.weighted_draws import WeightedDraws
from learner.examples import encode_source, load_source, pad_examples
from learner.language_model import perplexity, train_language_model
from learner.supervised import batches

WORDS = ["rain", "snow", "ice", "fog", "dew", "hail", "wind", "sun", "cloud", "storm"]
PLACES = ("spring", "summer", "autumn", "winter")
QUESTIONS = [{"prompt": f"what is {w} in {p} ?", "response": f"it is {w} and {p} ."} for w in WORDS for p in PLACES]
TEXTS = [f"{w} is {v} in {p} ." for w in WORDS for v in ("here", "there") for p in PLACES]


def random_examples(seed, count=7):
    """Ragged rows in which learned tokens stand apart, as in chats of several turns."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        length = int(rng.integers(2, 12))
        learned = rng.random(length) < 0.5
        learned[-1] = True
        made.append(Example(rng.integers(0, 23, size=length).astype(np.int32), learned))
    return made


def loop_loss(model, examples):
    """Each learned token's surprise, one example and one token at a time: no padding, no mask, no batch."""
    nats, count = 0.0, 0
    for example in examples:
        for t in range(1, len(example.ids)):
            if example.learned[t]:
                logits = model(input_ids=torch.from_numpy(example.ids[None, :t].astype(np.int64))).logits[0, -1]
                nats = nats - torch.log(torch.exp(logits) / torch.exp(logits).sum())[int(example.ids[t])]
                count += 1
    return nats, count


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_loss_on_responses_and_its_gradient_are_those_of_a_loop(tiny_policy, kind):
    model = tiny_policy(kind).double().eval()
    twin = copy.deepcopy(model)
    examples = random_examples(3)
    ids, lengths, learned = pad_examples(examples, torch.device("cpu"))
    nats, count = next_token_loss_in_double(model(input_ids=ids).logits, ids, lengths, learned)
    expected, expected_count = loop_loss(twin, examples)
    assert count == expected_count == sum(int(e.learned[1:].sum()) for e in examples)
    assert float(nats.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    (nats / count).backward()
    (expected / expected_count).backward()
    for (name, a), (_, b) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-6, msg=name)


def next_token_loss_in_double(logits, ids, lengths, learned):
    nats, count = next_token_loss(logits, ids, lengths, learned)
    return nats.double(), int(count)


def test_prompts_get_no_gradient_as_targets(tiny_policy):
    """Another last prompt token as input changes the loss; another one as target alone must not."""
    logits = torch.randn(1, 5, 23, requires_grad=True)
    learned = torch.tensor([[False, False, False, True, True]])
    ids, lengths = torch.tensor([[1, 2, 3, 4, 5]]), torch.tensor([5])
    next_token_loss(logits, ids, lengths, learned)[0].backward()
    touched = logits.grad.abs().sum(-1)[0] > 0
    assert touched.tolist() == [False, False, True, True, False]


def test_all_learned_is_the_loss_of_texts_bit_for_bit(tiny_policy):
    logits, ids = torch.randn(3, 6, 23), torch.randint(0, 23, (3, 6))
    lengths = torch.tensor([6, 2, 4])
    everything = torch.ones(3, 6, dtype=torch.bool)
    assert torch.equal(next_token_loss(logits, ids, lengths)[0], next_token_loss(logits, ids, lengths, everything)[0])


def test_perplexity_is_of_responses_only(tiny_policy):
    model, examples = tiny_policy().eval(), random_examples(5, count=100)
    nats, count = loop_loss(model, examples)
    assert perplexity(model, examples) == pytest.approx(math.exp(float(nats.detach()) / count), rel=1e-4)


# --- what is read ----------------------------------------------------------------------------------------------------


def table(**changed):
    lm = {"data": ["asked"], "epochs": 1, "batch_sequences": 4, "optimizer": {"type": "adamw", "lr": 1e-2}}
    tree = {
        "name": "lm",
        "heldout_fraction": 0.25,
        "data": {
            "asked": {"type": "inline", "rows": {"type": "demonstrations"}, "records": QUESTIONS},
            "told": {"type": "inline", "texts": TEXTS},
        },
        "model": {"type": "fresh", "vocabulary_size": 64, "num_layers": 1, "hidden_size": 16, "num_heads": 2},
        "pretrain": lm | {"data": ["told"]},
        "sft": lm | changed,
    }
    return RunConfig.model_validate(tree)


def encoded(records, *, max_tokens=64, drop_unknown=False):
    texts = [f"{q['prompt']} {q['response']}" for q in QUESTIONS]
    tokenizer = train_word_tokenizer(texts, vocabulary_size=64, max_tokens=64)
    source = InlineSource.model_validate({"rows": {"type": "demonstrations"}, "records": records})
    settings = table(max_tokens=max_tokens, drop_unknown=drop_unknown).sft
    return encode_source("asked", load_source(source), tokenizer, settings)


def test_what_is_too_long_is_cut_at_its_end_or_left_out_and_counted():
    """The prompt has 6 tokens; the response 7, with its EOS."""
    whole, cut, tight = (encoded(QUESTIONS[:5], max_tokens=n) for n in (13, 12, 7))
    assert (len(whole), whole.responses_cut, whole.too_long) == (5, 0, 0)
    assert (len(cut), cut.responses_cut, cut.too_long) == (5, 5, 0)
    assert [int(e.learned.sum()) for e in cut.items] == [6] * 5
    assert [int(e.learned.sum()) for e in tight.items] == [1] * 5
    mixed = encoded([*QUESTIONS[:2], {"prompt": "what is " * 7, "response": "it is ."}], max_tokens=13)
    assert (len(mixed), mixed.responses_cut, mixed.too_long) == (2, 0, 1)
    with pytest.raises(DataError, match=r"no demonstration of asked.*5 have a prompt of max_tokens=6 tokens or more"):
        encoded(QUESTIONS[:5], max_tokens=6)


def test_demonstrations_with_unknown_words_are_left_out_only_where_asked_for():
    records = [*QUESTIONS[:4], {"prompt": "what is a zebra ?", "response": "it is ."}]
    assert [(len(e), e.left_out) for e in (encoded(records), encoded(records, drop_unknown=True))] == [(5, 0), (4, 1)]


def test_an_eos_token_that_stands_for_unknown_words_too_drops_no_demonstration():
    tokenizer = train_word_tokenizer([f"{q['prompt']} {q['response']}" for q in QUESTIONS], vocabulary_size=64,
                                     max_tokens=64)  # fmt: skip
    tokenizer.unk_token = tokenizer.eos_token  # as GPT-2's
    source = InlineSource.model_validate({"rows": {"type": "demonstrations"}, "records": QUESTIONS[:5]})
    made = encode_source("asked", load_source(source), tokenizer, table(drop_unknown=True).sft)
    assert (len(made), made.left_out) == (5, 0)


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lm") / "pretrain"
    config = table()
    told = InlineSource(texts=[*TEXTS, *(f"{q['prompt']} {q['response']}" for q in QUESTIONS)])
    config = config.model_copy(update={"data": {**config.data, "told": told}})
    list(train_language_model(config, config.pretrain, source=None, folder=folder, accelerator=Accelerator(cpu=True)))
    return str(folder)


def tuned(config, pretrained, folder):
    stage = train_language_model(
        config, config.sft, source=pretrained, folder=folder, accelerator=Accelerator(cpu=True)
    )
    return list(stage)[-1].metrics


def test_fine_tuning_on_demonstrations_learns_responses_and_counts_them(pretrained, tmp_path):
    metrics = tuned(table(epochs=8), pretrained, tmp_path)
    assert metrics["demonstrations"] == metrics["texts"]
    assert metrics["tokens"] == 13 * metrics["texts"]
    assert metrics["tokens_learned"] == 7 * metrics["texts"]
    assert (metrics["responses_cut"], metrics["demonstrations_too_long"]) == (0, 0)
    assert metrics["perplexity_after"]["asked"] < 0.5 * metrics["perplexity_before"]["asked"]


def test_texts_and_demonstrations_are_learned_together(pretrained, tmp_path):
    metrics = tuned(table(data=["asked", "told"], weights={"asked": 3, "told": 1}), pretrained, tmp_path)
    assert 0 < metrics["demonstrations"] < metrics["texts"]
    assert metrics["perplexity_after"].keys() == {"asked", "told"}
    assert metrics["tokens_learned"] < metrics["tokens"]


def test_weights_change_what_is_learned_and_not_how_long(pretrained, tmp_path):
    data = ["asked", "told"]
    plain = tuned(table(data=data, epochs=3), pretrained, tmp_path / "plain")
    asked = tuned(table(data=data, epochs=3, weights={"asked": 50, "told": 1}), pretrained, tmp_path / "asked")
    again = tuned(table(data=data, epochs=3, weights={"asked": 50, "told": 1}), pretrained, tmp_path / "again")
    assert plain["steps"] == asked["steps"]
    assert asked["perplexity_after"]["asked"] < plain["perplexity_after"]["asked"]
    assert asked["perplexity_after"]["told"] > plain["perplexity_after"]["told"]
    assert asked == again
    assert len(load_tokenizer(str(tmp_path / "asked"))) == len(load_tokenizer(pretrained))


def test_batches_hold_the_sources_by_weight_and_repeat_a_small_one():
    draws = WeightedDraws([4, 60], [1, 1], 2)
    order = batches([3] * 64, batch_sequences=8, seed_parts=(1, 2), draws=draws)
    items = np.concatenate([next(order) for _ in range(16)])
    assert Counter(bool(i >= 4) for i in items) == {False: 64, True: 64}
    assert Counter(items[items < 4].tolist()) == dict.fromkeys(range(4), 16)
    assert max(Counter(items[items >= 4].tolist()).values()) == 2


def test_every_source_is_one_epoch_without_weights():
    order = batches([3] * 16, batch_sequences=8, seed_parts=(1, 2))
    assert sorted(np.concatenate([next(order), next(order)])) == list(range(16))
