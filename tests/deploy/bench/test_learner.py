"""An update multiplies as much as it cannot do without, by count; and the benchmark tells all its figures."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from common import products
from common.records import Identity
from deploy.bench import learner as bench
from deploy.bench.options import Options
from deploy.bench.roofline import Roofline
from learner.batch import Batch


def policy():
    shape = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=352, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(shape).eval()


def added_products(_, left, right, **__):
    """Operations of addmm_, of the shapes of its arguments."""
    return 2 * left[0] * left[1] * right[1]


def products_of_a_layer(rows, weight, *_, **__):
    """Operations of oneDNN's linear layer."""
    return 2 * rows[0] * rows[1] * weight[0]


UNCOUNTED = {torch.ops.aten.addmm_: added_products}
"""What torch does not count by itself."""
WAYS = ["mkl"]
if torch.backends.mkldnn.is_available():
    UNCOUNTED[torch.ops.mkldnn._linear_pointwise] = products_of_a_layer
    WAYS.append("onednn")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", bench.CASES, ids=lambda case: case.name)
def test_an_update_does_hardly_more_products_than_it_cannot_do_without(case, way, monkeypatch):
    """No work on padding, no logits of prompts, no frozen layer twice; attention and value head are the rest."""
    monkeypatch.setattr(products, "has_faster_onednn", lambda: way == "onednn")
    monkeypatch.setattr(products, "ROWS", 1)
    monkeypatch.setattr(products, "LARGE", 0)
    model = policy()
    texts = bench.samples(case, 512, Identity(0, 0))
    needed = bench.needed_flops(model, Batch.of(texts, torch.device("cpu")), case)
    ours = bench._learner(model, case)
    with FlopCounterMode(display=False, custom_mapping=UNCOUNTED) as counter:
        ours.update(texts)
    assert 1 <= counter.get_total_flops() / needed < 1.01


def test_every_figure_of_every_case_is_told(monkeypatch):
    monkeypatch.setattr(bench, "model_of", lambda _: policy())
    monkeypatch.setattr(bench, "SAMPLES", 8)
    monkeypatch.setattr(bench, "CASES", [replace(case, epochs=1) for case in bench.CASES])
    figures = bench.measure(Options(models=("small",), rounds=1), Roofline(1e11, 1e10, 1))
    names = {figure.name for figure in figures}
    assert len(names) == 3 * 5
    assert {"learner.small.equal.roofline", "learner.small.equal_top2.speedup", "learner.small.ragged.update"} <= names
    assert all(math.isfinite(figure.value) and figure.value > 0 for figure in figures)
