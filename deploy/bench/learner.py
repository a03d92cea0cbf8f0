"""`bench learner`: a PPO update of ours beside a plain loop on the same samples, and beside the machine's limit.

Three cases: all layers on rows of equal lengths, the same with only the top two layers trained (fewer parameters
learn, so that it is another algorithm), and all layers on ragged rows.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from common.freed_memory import keep_freed_memory
from common.modeling import PolicyWithValueHead, decoder_layers
from common.ppo_config import PPOConfig
from common.products import project
from common.records import Identity, Judgement, Prompt, Rollout, Trajectory
from deploy.bench.figures import Figure
from deploy.bench.interleave import interleave, median
from deploy.bench.options import Options
from deploy.bench.plain_ppo import PlainPPO
from deploy.bench.roofline import GEMM_SIZE, Roofline
from deploy.bench.shapes import model_of
from learner.batch import Batch
from learner.ppo import PPOLearner

SAMPLES, MINIBATCH, EPOCHS, TOP = 32, 8, 4, 2
REPEATS = 20
BIG = 50_000_000
"""Parameters from which on rounds take so long that two are enough."""
MUST_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of update."""

    name: str
    prompts: tuple[int, int]
    """Fewest and most tokens."""
    responses: tuple[int, int]
    epochs: int = EPOCHS
    trainable_layers: int | None = None


CASES = (
    Case("equal", (8, 8), (16, 16)),
    Case("equal_top2", (8, 8), (16, 16), trainable_layers=TOP),
    Case("ragged", (2, 8), (16, 48), epochs=1),
)


def measure(options: Options, roof: Roofline) -> list[Figure]:
    """Of every model and case; the machine's rate is measured anew between updates, for it varies over minutes."""
    keep_freed_memory()
    return [figure for name in options.models for case in CASES for figure in _measure(name, case, options)]


def _measure(name: str, case: Case, options: Options) -> list[Figure]:
    policy = model_of(name)
    is_big = policy.num_parameters() > BIG
    vocabulary = policy.config.get_text_config().vocab_size
    plain, ours = PlainPPO(policy), _learner(policy, case)
    batch = Batch.of(samples(case, vocabulary, Identity(0, 0)), torch.device("cpu"))
    few = torch.arange(MINIBATCH)
    old = plain.old(batch, few)
    plain.step(batch, few, old)
    ours.update(samples(case, vocabulary, ours.identity)[:MINIBATCH])
    clock, products = StepClock(ours), Products()
    timed = interleave(
        {
            "products": products.run,
            "pass": lambda: plain.old(batch, few),
            "step": lambda: plain.step(batch, few, old),
            "ours": lambda: clock.lap(lambda: ours.update(samples(case, vocabulary, ours.identity))),
        },
        rounds=min(options.rounds, 2) if is_big else options.rounds,
        warm_up=0 if is_big else 1,
    )
    mine = median(timed, "ours")
    theirs = SAMPLES // MINIBATCH * (median(timed, "pass") + case.epochs * median(timed, "step"))
    share = needed_flops(policy, batch, case) / mine / (products.flops / median(timed, "products"))
    where = f"learner.{name}.{case.name}"
    whole = case.trainable_layers is None
    return [
        Figure(f"{where}.update", mine, "s", lower_is_better=True, note=f"{SAMPLES} samples, {case.epochs} epochs"),
        Figure(f"{where}.samples", SAMPLES / mine, "1/s"),
        Figure(
            f"{where}.speedup", theirs / mine, "x", note="over a plain loop" + ("" if whole else "; fewer learn here")
        ),
        Figure(
            f"{where}.roofline", share, "share", must=MUST_SHARE if is_big and whole else None,
            note="of the rate of matrix products, measured in the same rounds",
        ),
        Figure(f"{where}.optimizer", clock.share(), "share", lower_is_better=True, note="of the update's time"),
    ]  # fmt: skip


def _learner(policy: PreTrainedModel, case: Case) -> PPOLearner:
    settings: dict[str, Any] = {"reference": "none", "kl": {"type": "fixed", "coef": 0.0}}
    if case.trainable_layers is not None:
        settings = {"trainable_layers": case.trainable_layers, "reference": "shared_trunk"}
    config = PPOConfig.model_validate(
        {
            "data": ["none"],
            "updates": 1000,
            "trajectories_per_update": SAMPLES,
            "minibatch_sequences": MINIBATCH,
            "epochs": case.epochs,
            "optimizer": {"type": "adamw", "lr": 1e-6},
            **settings,
        }
    )
    return PPOLearner(PolicyWithValueHead(policy), config, run_seed=0, accelerator=Accelerator(cpu=True))


def samples(case: Case, vocabulary: int, identity: Identity) -> list[Trajectory]:
    """Random texts of the case's lengths, the same every time."""
    rng = np.random.default_rng(0)

    def ids(fewest_most: tuple[int, int]) -> np.ndarray:
        return rng.integers(2, vocabulary, rng.integers(fewest_most[0], fewest_most[1] + 1)).astype(np.int32)

    def one(draw: int) -> Trajectory:
        prompt, response = ids(case.prompts), ids(case.responses)
        logprobs = np.full(len(response), -np.log(vocabulary), dtype=np.float32)
        return Trajectory(
            Prompt(draw_index=draw, prompt_id=draw, token_ids=prompt, max_new_tokens=len(response)),
            Rollout(draw, 0, 0, draw, response, logprobs, identity, "length"),
            Judgement(draw, 0, float(rng.normal()), {}, "bench"),
            None,
        )

    return [one(draw) for draw in range(SAMPLES)]


def needed_flops(policy: PreTrainedModel, batch: Batch, case: Case) -> float:
    """Multiplications and additions that an update cannot do without: 2 per weight and token forward, 4 backward.

    Body weights count for every token, the head's for response tokens. One forward pass gives old logprobs and values.
    Frozen layers are computed once; of a frozen head the gradient goes to its input alone; the reference takes one
    more pass of the top.
    """
    tokens, responses = int(batch.lengths.sum()), int(batch.response_lengths.sum())
    head = policy.get_output_embeddings().weight.numel() * responses
    layers = [sum(p.numel() for p in layer.parameters() if p.ndim == 2) * tokens for layer in decoder_layers(policy)]
    if case.trainable_layers is None:
        return float((sum(layers) + head) * (2 + 6 * case.epochs))
    trunk, top = sum(layers[: -case.trainable_layers]), sum(layers[-case.trainable_layers :])
    return float(2 * trunk + 4 * (top + head) + case.epochs * (6 * top + 4 * head))


class Products:
    """Matrix products of about a quarter of a second, as those that the roofline is made of."""

    def __init__(self) -> None:
        self._a, self._b = torch.randn(GEMM_SIZE, GEMM_SIZE), torch.randn(GEMM_SIZE, GEMM_SIZE)
        self.flops = REPEATS * 2 * GEMM_SIZE**3
        """Of one run."""

    def run(self) -> None:
        """All of them."""
        for _ in range(REPEATS):
            project(self._a, self._b)


class StepClock:
    """Shares of an update's time that the optimizer takes."""

    def __init__(self, learner: PPOLearner) -> None:
        self._shares: list[float] = []
        self._seconds, self._start = 0.0, 0.0
        for optimizer in learner.optimizers:
            optimizer.optimizer.register_step_pre_hook(self._starts)
            optimizer.optimizer.register_step_post_hook(self._ends)

    def lap(self, update: Any) -> None:
        """Run an update."""
        self._seconds, start = 0.0, time.perf_counter()
        update()
        self._shares.append(self._seconds / (time.perf_counter() - start))

    def share(self) -> float:
        """Median over updates."""
        return float(np.median(self._shares))

    def _starts(self, *_: Mapping[str, Any]) -> None:
        self._start = time.perf_counter()

    def _ends(self, *_: Mapping[str, Any]) -> None:
        self._seconds += time.perf_counter() - self._start
