"""The benchmark of the reward service: both ways see the same texts, and the figures are what they say."""

import pytest
import torch

from common.classifiers import ConvConfig, ConvTextClassifier
from common.text import train_word_tokenizer
from deploy.bench import reward
from deploy.bench.options import Options
from deploy.bench.roofline import Roofline
from reward_service.mixture import texts_of


def test_share_is_the_services_part_of_the_bare_models_speed(monkeypatch):
    seen = {"service": [], "bare": []}

    def noted(ways, *, rounds, warm_up=1):
        for name, way in ways.items():
            hook = torch.nn.modules.module.register_module_forward_pre_hook(
                lambda module, args, name=name: (
                    seen[name].append(module) if isinstance(module, torch.nn.Conv1d) else None
                )
            )
            way()
            hook.remove()
        return {"service": [0.5, 0.4], "bare": [0.4, 0.3]}

    monkeypatch.setattr(reward, "interleave", noted)
    tokenizer = train_word_tokenizer(reward.WORDS, vocabulary_size=2000, max_tokens=64)
    model = ConvTextClassifier(ConvConfig(vocab_size=len(tokenizer))).eval()
    service, bare, share = reward._compare(
        "conv", model, tokenizer, tokenizer, reward._chunk(len(tokenizer), 256), batch=64, rounds=2, must=reward.MUST
    )
    assert len(seen["service"]) == len(seen["bare"]) == 256 // 64
    assert service.value == pytest.approx(256 / 0.45)
    assert bare.value == pytest.approx(256 / 0.35)
    assert share.value == share.share == pytest.approx((0.8 + 0.75) / 2)
    assert share.is_met is False


def test_chunks_hold_ragged_texts_that_the_tokenizers_know():
    tokenizer = train_word_tokenizer(reward.WORDS, vocabulary_size=2000, max_tokens=64)
    chunk = reward._chunk(len(tokenizer), 256)
    lengths = {len(r.response_ids) for r in chunk.rollouts}
    assert min(lengths) == 16
    assert max(lengths) == 48
    whole = [text.whole for text in texts_of(tokenizer, list(zip(chunk.prompts, chunk.rollouts, strict=True)))]
    ids = reward._piece_tokenizer()(whole)["input_ids"]
    pieces = reward._piece_tokenizer().convert_ids_to_tokens([i for row in ids for i in row])
    assert "[UNK]" not in pieces
    assert 0.2 < sum(piece.startswith("##") for piece in pieces) / len(pieces) < 0.8


@pytest.mark.slow
def test_the_benchmark_runs(monkeypatch):
    chunk = reward._chunk
    monkeypatch.setattr(reward, "_chunk", lambda vocabulary, samples: chunk(vocabulary, 4))
    figures = reward.measure(Options(rounds=1), Roofline(1e11, 1e10, 1))
    assert {figure.name.split(".")[1] for figure in figures} == {"distilbert", "conv"}
    assert all(figure.value > 0 for figure in figures)
