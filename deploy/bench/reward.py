"""Benchmark `reward`: a chunk of rollouts through all of a reward replica's work, beside its bare classifier.

The service decodes ids, joins texts, tokenises, sorts by length, pads, computes, and writes records. The bare model
gets the same texts as padded batches of like length that are ready before the clock runs.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from common.classifiers import ConvConfig, ConvTextClassifier
from common.padding import mask_of, pad_right
from common.records import Identity, Prompt, Rollout, RolloutChunk
from common.text import decode_all, encode_for_classifier, train_word_tokenizer
from deploy.bench.figures import Figure
from deploy.bench.interleave import interleave, median, speedup
from deploy.bench.options import Options
from deploy.bench.roofline import Roofline
from reward_service.mixture import Mixture, Term
from reward_service.model_scorer import ModelScorer, TextClassifier

WORDS = ["".join(parts) for parts in itertools.product(("ba", "do", "fi", "ku", "le", "mo", "re", "su"), repeat=3)] * 4
"""Of a made-up language; a text's speed does not depend on its sense."""
MAX_TOKENS = 128
PROMPT, RESPONSE = (2, 8), (16, 48)
MUST = 0.8
"""Of a transformer. A model that takes microseconds a text is no measure: reading and writing the text takes longer."""


def measure(options: Options, roof: Roofline) -> list[Figure]:
    """A transformer of 66 million parameters, and the small convolution of the quickstart."""
    policy_tokenizer = train_word_tokenizer(WORDS, vocabulary_size=2000, max_tokens=MAX_TOKENS)
    figures: list[Figure] = []
    pieces = _piece_tokenizer()
    transformer = DistilBertForSequenceClassification(DistilBertConfig(pad_token_id=0)).eval()
    few = _chunk(len(policy_tokenizer), 64)
    figures += _compare(
        "distilbert", transformer, pieces, policy_tokenizer, few, batch=16, rounds=min(3, options.rounds), must=MUST
    )
    conv = ConvTextClassifier(ConvConfig(vocab_size=10_000, embedding_size=64, num_filters=128)).eval()
    many = _chunk(len(policy_tokenizer), 256)
    figures += _compare("conv", conv, policy_tokenizer, policy_tokenizer, many, batch=64, rounds=4 * options.rounds)
    return figures


def _compare(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    policy_tokenizer: PreTrainedTokenizerBase,
    chunk: RolloutChunk,
    *,
    batch: int,
    rounds: int,
    must: float | None = None,
) -> list[Figure]:
    classifier = TextClassifier(model, tokenizer, positive_class=1, max_tokens=MAX_TOKENS, batch_sequences=batch)
    service = Mixture(
        [Term(ModelScorer("reward_model", classifier), 1.0)], policy_tokenizer, budget_s=60.0, probe_budget_s=60.0
    )
    rows = [np.concatenate([p.token_ids, r.response_ids]) for p, r in zip(chunk.prompts, chunk.rollouts, strict=True)]
    ready = _batches(encode_for_classifier(tokenizer, decode_all(policy_tokenizer, rows), MAX_TOKENS), batch, tokenizer)

    @torch.inference_mode()
    def bare() -> None:
        for ids, mask in ready:
            model(input_ids=ids, attention_mask=mask)

    samples = len(chunk.rollouts)
    timed = interleave({"service": lambda: service.judge(chunk), "bare": bare}, rounds=rounds)
    share = speedup(timed, "service", "bare")
    return [
        Figure(f"reward.{name}.service", samples / median(timed, "service"), "texts/s"),
        Figure(f"reward.{name}.bare", samples / median(timed, "bare"), "texts/s", note=f"batches of {batch}"),
        Figure(f"reward.{name}.share", share, "share", share=share, limit="the bare model", must=must),
    ]


def _batches(
    rows: Sequence[np.ndarray], batch: int, tokenizer: PreTrainedTokenizerBase
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Padded ids and masks, shortest first."""
    ordered = sorted(rows, key=len)
    batches = []
    for start in range(0, len(ordered), batch):
        ids, lengths = pad_right(ordered[start : start + batch], tokenizer.pad_token_id, torch.device("cpu"))
        batches.append((ids, mask_of(lengths, ids.shape[1]).long()))
    return batches


def _chunk(vocabulary: int, samples: int) -> RolloutChunk:
    """Rollouts of random words; no two of a length follow each other but by chance."""
    rng = np.random.default_rng(0)
    prompts, rollouts = [], []
    for draw in range(samples):
        ids = rng.integers(3, vocabulary, rng.integers(*PROMPT, endpoint=True)).astype(np.int32)
        response = rng.integers(3, vocabulary, rng.integers(*RESPONSE, endpoint=True)).astype(np.int32)
        prompts.append(Prompt(draw, draw, ids, RESPONSE[1]))
        logprobs = np.zeros(len(response), dtype=np.float32)
        rollouts.append(Rollout(draw, 0, 0, draw, response, logprobs, Identity(0, 1), "length"))
    return RolloutChunk(tuple(prompts), tuple(rollouts), 1.0)


def _piece_tokenizer() -> PreTrainedTokenizerFast:
    """Word pieces with BERT's rules; every second word of the language is one piece, the others are several."""
    words = sorted(set(WORDS))
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words[::2]]
    pieces += sorted({word[:2] for word in words}) + sorted({f"##{word[i : i + 2]}" for word in words for i in (2, 4)})
    tokenizer = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
