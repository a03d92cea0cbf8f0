"""Judges: rollouts to scores. A score is the raw logit of a classifier's positive class: more of it is better."""

import math
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
import xxhash
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import ConfigError, MiniChatGPTError
from common.padding import mask_of, pad_right
from common.records import Ids, Judgement, JudgementChunk, Prompt, Rollout, RolloutChunk, Stats
from common.text import decode, encode_for_classifier
from common.weights import buffer_hash, flatten
from reward_service.microbatch import by_length

Numbers = npt.NDArray[np.float64]


def p_positive(name: str) -> str:
    """Name of the part that holds a classifier's probability of the positive class."""
    return f"{name}_p_positive"


class Scorer(Protocol):
    """Anything that judges rollouts."""

    def judge(self, chunk: RolloutChunk) -> tuple[JudgementChunk, Stats]:
        """One judgement per rollout, in order."""


class TextClassifier:
    """A classifier with its own tokenizer, whatever the policy's.

    Args:
        model: any sequence classifier with logits [B, C].
        tokenizer: the classifier's own.
        positive_class: index of the logit that is the score.
        max_tokens: longer texts are cut, in its own tokens.
        batch_sequences: texts of one pass.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        positive_class: int,
        max_tokens: int,
        batch_sequences: int,
    ) -> None:
        num_classes = model.config.num_labels
        if positive_class >= num_classes:
            raise ConfigError(
                f"positive_class={positive_class}, but the classifier has classes 0 … {num_classes - 1}; "
                "set positive_class to one of them"
            )
        model.config.pad_token_id = tokenizer.pad_token_id  # classifiers of the decoder kind look for the last word
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.positive_class = positive_class
        self.max_tokens = max_tokens
        self.batch_sequences = batch_sequences
        self.device = next(model.parameters()).device
        self.version = f"{buffer_hash(flatten(model)[0]):016x}"

    def judge(self, texts: Sequence[str]) -> tuple[Numbers, Numbers]:
        """Positive logits and probabilities, [N] each; a text's do not depend on its neighbours."""
        ids = encode_for_classifier(self.tokenizer, texts, self.max_tokens)
        table = by_length(ids, self.batch_sequences, self._forward)
        return table[:, 0], table[:, 1]

    @torch.inference_mode()
    def _forward(self, rows: list[Ids]) -> Numbers:
        """[B, 2]: positive logit and probability of each row."""
        ids, lengths = pad_right(rows, self.tokenizer.pad_token_id, self.device)
        mask = mask_of(lengths, ids.shape[1]).long()
        logits = self.model(input_ids=ids, attention_mask=mask).logits.double()
        chances = logits.sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)
        both = torch.stack([logits, chances], dim=-1)[:, self.positive_class]
        return np.asarray(both.cpu().numpy())


class ModelScorer:
    """Scores decoded text by one or several classifiers; the first one's logit is the score, all are kept as parts.

    Args:
        classifiers: by name; the first is what PPO maximises.
        policy_tokenizer: decodes rollouts to text.
        prompt_baseline: subtract the logit of the prompt alone.
    """

    def __init__(
        self,
        classifiers: dict[str, TextClassifier],
        policy_tokenizer: PreTrainedTokenizerBase,
        *,
        prompt_baseline: bool = False,
    ) -> None:
        self.classifiers = classifiers
        self.policy_tokenizer = policy_tokenizer
        self.prompt_baseline = prompt_baseline
        versions = "".join(c.version for c in classifiers.values())
        self.version = xxhash.xxh3_64_hexdigest(versions.encode())

    def judge(self, chunk: RolloutChunk) -> tuple[JudgementChunk, Stats]:
        """Score every rollout of a chunk.

        Raises:
            MiniChatGPTError: a classifier gave a number that is not finite; names the draw.
        """
        start = time.perf_counter()
        texts = [self._text(p, r) for p, r in zip(chunk.prompts, chunk.rollouts, strict=True)]
        parts: dict[str, Numbers] = {}
        for name, classifier in self.classifiers.items():
            parts[name], parts[p_positive(name)] = classifier.judge(texts)
        first_name, first = next(iter(self.classifiers.items()))
        score = parts[first_name]
        if self.prompt_baseline:
            parts["prompt"], _ = first.judge([decode(self.policy_tokenizer, p.token_ids) for p in chunk.prompts])
            score = score - parts["prompt"]
        judgements = tuple(
            Judgement(
                draw_index=rollout.draw_index,
                sample_index=rollout.sample_index,
                score=float(score[i]),
                parts={name: float(values[i]) for name, values in parts.items()},
                scorer_version=self.version,
            )
            for i, rollout in enumerate(chunk.rollouts)
        )
        for judgement in judgements:
            if not all(map(math.isfinite, (judgement.score, *judgement.parts.values()))):
                raise MiniChatGPTError(f"score of draw {judgement.draw_index} is {judgement.score}: {judgement.parts}")
        stats = Stats(samples=len(texts), score_sum=float(score.sum()), seconds={"score": time.perf_counter() - start})
        return JudgementChunk(judgements), stats

    def _text(self, prompt: Prompt, rollout: Rollout) -> str:
        return decode(self.policy_tokenizer, np.concatenate([prompt.token_ids, rollout.response_ids]))
