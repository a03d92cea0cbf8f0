"""Tiny classifiers with random weights and tokenizers of their own, and chunks of rollouts to judge."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from common.classifiers import BagClassifier, BagConfig, ConvConfig, ConvTextClassifier
from common.records import Identity, Prompt, Rollout, RolloutChunk
from common.text import train_word_tokenizer
from reward_service.mixture import Mixture, Term
from reward_service.model_scorer import ModelScorer, TextClassifier
from reward_service.scorers import Text

WORDS = ["good", "bad", "film", "story", "the", "a", "is", "not", "very", "i", "like", "hate", "it", "cast", "plot"]


def train(words, size=64):
    """A tokenizer whose ids follow the order of the words."""
    texts = [" ".join(words[: i + 1]) for i in range(len(words))]
    return train_word_tokenizer(texts, vocabulary_size=size, max_tokens=128)


@pytest.fixture(scope="session")
def policy_tokenizer():
    return train(WORDS)


@pytest.fixture(scope="session")
def word_tokenizer():
    """Of the classifiers: the same words under other ids, two of them unknown."""
    return train(WORDS[:1:-1])


@pytest.fixture(scope="session")
def bert_tokenizer():
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(specials + WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def bag(tokenizer, seed):
    model = BagClassifier(BagConfig(vocab_size=len(tokenizer), pair_buckets=64))
    noise = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=noise)
    return model.eval()


def conv(tokenizer, seed):
    torch.manual_seed(seed)
    model = ConvTextClassifier(ConvConfig(vocab_size=len(tokenizer), embedding_size=8, num_filters=12, dropout=0.5))
    model.words.weight.data.normal_()
    model.embedding.weight.data.normal_()
    model.head.weight.data.normal_()
    return model.eval()


def bert(tokenizer, seed):
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=3,
        initializer_range=0.5,
    )
    return BertForSequenceClassification(config).eval()


@pytest.fixture(scope="session")
def classifier_of(word_tokenizer, bert_tokenizer):
    """Builds a TextClassifier by kind: our two, and one of Hugging Face's with attention, positions and [CLS]."""

    def build(kind, *, seed=0, positive_class=1, batch_sequences=4, max_tokens=48):
        make, tokenizer = {
            "bag": (bag, word_tokenizer),
            "conv": (conv, word_tokenizer),
            "bert": (bert, bert_tokenizer),
        }[kind]
        return TextClassifier(
            make(tokenizer, seed),
            tokenizer,
            positive_class=positive_class,
            max_tokens=max_tokens,
            batch_sequences=batch_sequences,
        )

    return build


@pytest.fixture(scope="session")
def chunk_of(policy_tokenizer):
    """Builds a chunk from (prompt, response) texts; responses of an odd position end with EOS."""

    def build(pairs, *, first_draw=40):
        prompts, rollouts = [], []
        for i, (prompt, response) in enumerate(pairs):
            draw, stops = first_draw + 3 * i, i % 2 == 1
            ids = policy_tokenizer(response)["input_ids"] + [policy_tokenizer.eos_token_id] * stops
            prompts.append(Prompt(draw, i, np.array(policy_tokenizer(prompt)["input_ids"], dtype=np.int32), 64))
            rollouts.append(
                Rollout(
                    draw,
                    0,
                    0,
                    0,
                    np.array(ids, dtype=np.int32),
                    np.full(len(ids), -1.0, dtype=np.float32),
                    Identity(0, 0),
                    "stop" if stops else "length",
                )
            )
        return RolloutChunk(tuple(prompts), tuple(rollouts), 1.0)

    return build


@pytest.fixture(scope="session")
def mixture_of(policy_tokenizer):
    """Builds a mixture of scorers at weight 1, or of (scorer, weight) pairs."""

    def build(*terms):
        pairs = [term if isinstance(term, tuple) else (term, 1.0) for term in terms]
        return Mixture([Term(*pair) for pair in pairs], policy_tokenizer, budget_s=120.0, probe_budget_s=60.0)

    return build


@pytest.fixture(scope="session")
def model_mixture(mixture_of, classifier_of):
    """Builds a mixture of the reward model alone."""
    return lambda kind="bag", **settings: mixture_of(ModelScorer("reward_model", classifier_of(kind), **settings))


@pytest.fixture(scope="session")
def texts_of():
    """Texts to judge, from responses; all have the same prompt."""
    return lambda *responses: [Text("say", f" {response}", f"say {response}") for response in responses]


@pytest.fixture
def soon():
    """A deadline that catches hangs only."""
    return time.monotonic() + 120.0


@pytest.fixture
def callables(monkeypatch):
    """Makes the functions beside these tests importable, as for a user whose PYTHONPATH names their folder."""
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("callables")))


@pytest.fixture(scope="session", params=["llama", "gpt2"])
def language_model(request):
    torch.manual_seed(0)
    if request.param == "gpt2":
        config = GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.25)
        return GPT2LMHeadModel(config).eval()
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=97,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            initializer_range=0.25,
            tie_word_embeddings=True,
        )
    ).eval()
