"""A conductor over a transport in memory that answers in an order of its own, late, never, or with errors."""

import random
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

import deploy
from actors.prompts import PromptStream
from common.config_file import load_config
from common.metrics import RunMetrics
from common.pool import DEPTH
from common.ports import Call, Reply
from common.records import (
    Identity,
    Judgement,
    JudgementChunk,
    ReferenceChunk,
    Rollout,
    RolloutChunk,
    Stats,
    WeightsHandle,
)
from deploy.conductor import Conductor
from deploy.stopwatch import Stopwatch

TINY = Path(deploy.__file__).with_name("configs") / "tiny.toml"
LIMIT_S = 50.0


class Clock:
    """Seconds that pass when nobody has anything to say."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def generate(request):
    rollouts = tuple(
        Rollout(
            p.draw_index,
            request.sample_index,
            request.attempt,
            request.run_seed,
            p.token_ids[:1],
            np.zeros(1, np.float32),
            request.weights.identity,
            "length",
        )
        for p in request.prompts
    )
    stats = Stats(
        samples=len(rollouts),
        response_tokens=len(rollouts),
        seconds={"generate": 0.25},
        identity=request.weights.identity,
    )
    return RolloutChunk(request.prompts, rollouts), stats


def score(chunk):
    judgements = tuple(Judgement(r.draw_index, 0, r.draw_index / 10, {}, "v") for r in chunk.rollouts)
    return JudgementChunk(judgements), Stats(samples=len(judgements), seconds={"score": 0.5})


def reference(chunk):
    logprobs = tuple(np.array([-r.draw_index], dtype=np.float32) for r in chunk.rollouts)
    return ReferenceChunk(logprobs), Stats(samples=len(logprobs), seconds={"reference": 0.125})


class ShufflingTransport:
    """A transport in memory: members work on what they hold, and each wait brings a few replies in random order.

    Args:
        clock: moves on by the whole timeout where no member answers.
        seed: of the order.
        silent: (member, method) that never answers.
        failing: (member, method) to the error with which it answers.
    """

    def __init__(self, clock, *, seed=0, silent=(), failing=None):
        self.clock = clock
        self.random = random.Random(seed)
        self.silent, self.failing = set(silent), failing or {}
        self.open: list[Call] = []
        self.sent: list[Call] = []

    def send(self, call):
        self.sent.append(call)
        self.open.append(call)
        assert sum(c.member == call.member for c in self.open) <= DEPTH, f"{call.member} holds too much"

    def wait(self, timeout_s):
        speaking = [c for c in self.open if (c.member, c.method) not in self.silent]
        if not speaking:
            self.clock.now += timeout_s
            return []
        replying = self.random.sample(speaking, self.random.randint(1, len(speaking)))
        self.open = [c for c in self.open if c not in replying]
        return [self.answer(call) for call in replying]

    def answer(self, call):
        if (call.member, call.method) in self.failing:
            return Reply(call.call_id, error=self.failing[call.member, call.method])
        work = {"generate": generate, "score": score, "reference": reference}[call.method]
        return Reply(call.call_id, *work(call.argument))

    def fetch(self, ref, timeout_s):
        return ref

    def requests(self):
        return [c.argument for c in self.sent if c.method == "generate"]


class SlowTransport(ShufflingTransport):
    """One answer at a time, the oldest call's, 20 s after the one before."""

    def wait(self, timeout_s):
        self.clock.now += 20.0
        return [self.answer(self.open.pop(0))]


def prompts_of(config):
    texts = [np.arange(20, dtype=np.int32) + 20 * i for i in range(7)]
    ppo = config.ppo
    return PromptStream(texts, prompt_tokens=ppo.prompt_tokens, response_tokens=ppo.response_tokens, seed=config.seed)


def make(*overrides, workers=2, replicas=2, published=True, transport=ShufflingTransport, **faults):
    """A conductor of `tiny.toml`: 32 samples per update in chunks of 8."""
    config = load_config(TINY, [f"rollout.request_timeout_s={LIMIT_S}", *overrides])
    clock = Clock()
    transport = transport(clock, **faults)
    conductor = Conductor(
        config,
        prompts=prompts_of(config),
        transport=transport,
        workers=[f"worker-{i}" for i in range(workers)],
        replicas=[f"replica-{i}" for i in range(replicas)],
        metrics=RunMetrics(CollectorRegistry()),
        watch=Stopwatch(),
        with_reference=config.ppo.reference == "service",
        clock=clock,
    )
    if published:
        conductor.publish(WeightsHandle(Identity(0, 0), "buffer 0", 0, ()))
    return conductor, transport


@pytest.fixture(scope="session")
def make_conductor():
    """Builds (conductor, transport) from `tiny.toml`, overrides as in `--set`, and the transport's faults."""
    return make


@pytest.fixture(scope="session")
def slow_transport():
    return SlowTransport
