"""`bench engine`: the sampling engine beside `generate` of transformers, on the same model, prompts and lengths.

Useful tokens are those that were asked for. `generate` pads prompts on the left and runs all rows to the longest
response; its logprobs are gathered step by step from the logits that it returns, which is the cheap way. Nobody ends
early, for random weights would end at random.

The decode roofline is the time of the multiplications that cannot be left out, at the highest rate of matrix products
seen on this machine: large ones, or those of the model's own shapes with packed weights, whichever is faster; or the
time to read all weights once a step, whichever is longer.

Legend: B rows, K inputs and N outputs of a matrix.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from actors.engine import SamplingEngine
from actors.packed_linear import PackedLinear, why_not_packed
from common.records import Ids
from common.seeds import generator
from deploy.bench.figures import Figure
from deploy.bench.interleave import interleave, median, speedup
from deploy.bench.options import Options
from deploy.bench.roofline import Roofline, best
from deploy.bench.shapes import model_of

ROWS = 64
BUDGET_S = 45.0
"""Of one case of one model; at least two rounds are measured."""
MUST_SPEEDUP = {
    ("tiny", "ragged"): 2.8,
    ("smollm2-135m", "ragged"): 1.9,
    ("tiny", "equal"): 1.8,
    ("smollm2-135m", "equal"): 1.4,
}
MUST_SHARE = {("smollm2-135m", "ragged"): 0.45}
MUST_GAP_NATS = 1e-4
NOBODY: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be generated."""

    case: str
    prompts: list[Ids]
    limits: list[int]

    @property
    def tokens(self) -> int:
        """Useful ones."""
        return sum(self.limits)

    @property
    def tokens_read(self) -> int:
        """By the layers: all but the last of each text."""
        return self.tokens + sum(len(p) - 1 for p in self.prompts)


def measure(options: Options, roof: Roofline) -> list[Figure]:
    """All models, ragged lengths and equal ones."""
    figures = []
    for name in options.models:
        model = model_of(name)
        for work in (ragged_work(model.config.vocab_size), equal_work(model.config.vocab_size)):
            figures += _measure_case(name, model, work, options.rounds, roof)
    return figures


def ragged_work(vocab_size: int) -> Work:
    """Prompts of 2 to 8 tokens and responses of 16 to 48."""
    draws = generator(0, 20)
    prompts = [draws.integers(2, vocab_size, n).astype(np.int32) for n in draws.integers(2, 9, ROWS)]
    return Work("ragged", prompts, [int(n) for n in draws.integers(16, 49, ROWS)])


def equal_work(vocab_size: int) -> Work:
    """Prompts of 8 tokens and responses of 16."""
    draws = generator(0, 21)
    return Work("equal", [draws.integers(2, vocab_size, 8).astype(np.int32) for _ in range(ROWS)], [16] * ROWS)


def _measure_case(name: str, model: PreTrainedModel, work: Work, rounds: int, roof: Roofline) -> list[Figure]:
    engine, own = SamplingEngine(model, NOBODY), SamplingEngine(model, NOBODY, kind="generic")
    ways: dict[str, Callable[[], object]] = {
        "engine": lambda: sample(engine, work),
        "own forward": lambda: sample(own, work),
        "generate": lambda: generate(model, work),
    }
    first = interleave(ways, rounds=1, warm_up=0)
    spent = sum(median(first, way) for way in ways)
    if spent > BUDGET_S / 3:
        del ways["own forward"]  # its first round must do
    rates = [roof.gemm_flops, packed_flops(model)]
    timed = interleave(ways, rounds=max(2, min(rounds, int(BUDGET_S / spent))), warm_up=0)
    rate = max(*rates, packed_flops(model))  # a neighbour on the machine may have slowed one of them
    limit_s = decode_limit_s(model, work, rate, roof)
    prefix, tokens_per_s = f"engine.{name}.{work.case}", work.tokens / median(timed, "engine")
    share = limit_s / median(timed, "engine")
    return [
        Figure(f"{prefix}.tokens", tokens_per_s, "tokens/s", share, "decode roofline", note=engine.path),
        Figure(f"{prefix}.generate.tokens", work.tokens / median(timed, "generate"), "tokens/s"),
        Figure(
            f"{prefix}.speedup",
            speedup(timed, "engine", "generate"),
            "x",
            must=MUST_SPEEDUP.get((name, work.case)),
            note="beside generate of transformers",
        ),
        Figure(
            f"{prefix}.generic.speedup",
            speedup(timed if "own forward" in timed else first, "own forward", "generate"),
            "x",
            note="the model's own forward",
        ),
        Figure(
            f"{prefix}.roofline", share, "share", must=MUST_SHARE.get((name, work.case)),
            note=f"at {rate / 1e9:.0f} GF/s",
        ),
        Figure(
            f"{prefix}.logprob_gap", largest_gap(model, engine, work), "nats", must=MUST_GAP_NATS,
            lower_is_better=True, note="beside the model's plain forward",
        ),
        Figure(f"{prefix}.pack", best(engine.renew), "s", note="renewing the copies of new weights"),
    ]  # fmt: skip


def sample(engine: SamplingEngine, work: Work) -> list[np.ndarray]:
    """Logprobs of our responses."""
    done = engine.sample(
        work.prompts, max_new_tokens=work.limits, seeds=list(range(len(work.prompts))), temperature=1.0
    )
    return [one.logprobs for one in done]


@torch.inference_mode()
def generate(model: PreTrainedModel, work: Work) -> Tensor:
    """[B, R] logprobs of the responses of transformers."""
    longest = max(len(p) for p in work.prompts)
    ids = torch.full((len(work.prompts), longest), model.config.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(work.prompts):
        ids[row, longest - len(prompt) :] = torch.from_numpy(prompt)
        mask[row, longest - len(prompt) :] = 1
    model.generation_config.eos_token_id = None
    out = model.generate(
        ids, attention_mask=mask, do_sample=True, top_k=0, max_new_tokens=max(work.limits),
        pad_token_id=model.config.pad_token_id, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    responses = out.sequences[:, longest:]
    chosen = [
        logits.gather(-1, responses[:, step : step + 1]).squeeze(-1) - logits.logsumexp(-1)
        for step, logits in enumerate(out.logits)
    ]
    return torch.stack(chosen, dim=1)


@torch.inference_mode()
def largest_gap(model: PreTrainedModel, engine: SamplingEngine, work: Work) -> float:
    """Largest difference of our logprobs of a few responses from those of one plain pass over each text."""
    few = Work(work.case, work.prompts[:8], work.limits[:8])
    done = engine.sample(few.prompts, max_new_tokens=few.limits, seeds=list(range(8)), temperature=1.0)
    gaps = []
    for prompt, one in zip(few.prompts, done, strict=True):
        text = torch.from_numpy(np.concatenate((prompt, one.ids)).astype(np.int64))[None]
        log_p = model(input_ids=text, use_cache=False).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
        plain = log_p.gather(-1, text[0, len(prompt) :, None]).squeeze(-1).numpy()
        gaps.append(float(np.abs(plain - one.logprobs).max()))
    return max(gaps)


def decode_limit_s(model: PreTrainedModel, work: Work, rate: float, roof: Roofline) -> float:
    """Seconds below which the work cannot be done."""
    head = model.get_output_embeddings().weight
    inside = sum(n * k for n, k in _matrices(model))
    flops_s: float = 2 * (inside * work.tokens_read + head.numel() * work.tokens) / rate
    bytes_s: float = max(work.limits) * (inside + head.numel()) * head.element_size() / roof.copy_bytes
    return max(flops_s, bytes_s)


@torch.inference_mode()
def packed_flops(model: PreTrainedModel) -> float:
    """Multiplications and additions per second of packed products of the model's shapes with 64 rows; 0 without."""
    head = model.get_output_embeddings().weight
    if why_not_packed(head.device, head.dtype):
        return 0.0
    shapes = [(tuple(head.shape), 1)] + [(shape, _matrices(model).count(shape)) for shape in set(_matrices(model))]
    seconds = flops = 0.0
    for (features, width), number in shapes:
        product, x = PackedLinear(packs=True), torch.randn(ROWS, width)
        product.load([torch.randn(features, width)], [None])
        seconds += number * best(lambda: product(x))  # noqa: B023 - called at once
        flops += number * 2.0 * ROWS * width * features
    return flops / seconds


def _matrices(model: PreTrainedModel) -> list[tuple[int, int]]:
    """[N, K] of all products inside of the layers; those of GPT-2 stand as [K, N], and count the same."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    outside = {id(embedding.weight), id(head.weight)}
    return [
        (p.shape[0], p.shape[1])
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for p in module.parameters(recurse=False)
        if p.dim() == 2 and id(p) not in outside
    ]
