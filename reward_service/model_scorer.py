"""The classifier as a scorer. A score is the raw logit of the positive class: more of it is better."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.errors import ConfigError
from common.padding import mask_of, pad_right
from common.records import Ids
from common.text import encode_for_classifier
from common.weights import buffer_hash, flatten
from reward_service.microbatch import by_length
from reward_service.scorers import Failure, Outcome, Scored, Text

Numbers = npt.NDArray[np.float64]

FORWARD_ERRORS = (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
"""What tokenizers and torch raise for a text that they cannot take; RuntimeError is also want of memory."""


def p_positive(name: str) -> str:
    """Name of the part that holds a classifier's probability of the positive class."""
    return f"{name}_p_positive"


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
    """Implements `Scorer`: one classifier's logit, and its probability beside it in the record.

    Args:
        name: of its parts.
        classifier: scores text.
        prompt_baseline: subtract the logit of the prompt alone.
    """

    is_deterministic = True

    def __init__(self, name: str, classifier: TextClassifier, *, prompt_baseline: bool = False) -> None:
        self.name = name
        self.classifier = classifier
        self.prompt_baseline = prompt_baseline
        self.version = classifier.version

    def score(self, texts: Sequence[Text], deadline: float) -> list[Outcome]:
        """See `Scorer`. The forward passes cannot be interrupted, so that `deadline` is not looked at."""
        try:
            return self._score(texts)
        except FORWARD_ERRORS as error:
            if len(texts) == 1:
                return [Failure("reward_error", f"{type(error).__name__}: {error}")]
        return [outcome for text in texts for outcome in self.score([text], deadline)]

    def _score(self, texts: Sequence[Text]) -> list[Outcome]:
        logits, chances = self.classifier.judge([text.whole for text in texts])
        parts = {self.name: logits, p_positive(self.name): chances}
        values = logits
        if self.prompt_baseline:
            parts["prompt"], _ = self.classifier.judge([text.prompt for text in texts])
            values = logits - parts["prompt"]
        return [
            Scored(float(value), {name: float(numbers[i]) for name, numbers in parts.items()})
            for i, value in enumerate(values)
        ]

    def close(self) -> None:
        """Nothing was started."""
