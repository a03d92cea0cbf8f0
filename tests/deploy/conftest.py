"""A conductor on a bench: members in memory that answer in an order of their own, late, never, or with errors."""

import random
from pathlib import Path

import numpy as np
import pytest

import deploy
from actors.prompts import PromptStream
from common.config_file import load_config
from common.pool_actions import Kill, Note, Send
from common.ports import Reply
from common.records import (
    Identity,
    Judgement,
    JudgementChunk,
    ReferenceChunk,
    Rollout,
    RolloutChunk,
    Stats,
    Unscored,
    WeightsHandle,
)
from common.supervision import Ledger, Limits
from deploy.ppo.chunk_flow import ChunkFlow
from deploy.ppo.conductor import Conductor

TINY = Path(deploy.__file__).with_name("configs") / "tiny.toml"


def generate(request):
    samples = [(p, k) for p in request.prompts for k in range(request.samples_per_prompt)]
    rollouts = tuple(
        Rollout(
            p.draw_index,
            k,
            request.attempt,
            request.run_seed,
            p.token_ids[:1],
            np.zeros(1, np.float32),
            request.weights.identity,
            "length",
        )
        for p, k in samples
    )
    stats = Stats(
        samples=len(rollouts),
        response_tokens=len(rollouts),
        seconds={"generate": 0.25},
        identity=request.weights.identity,
    )
    return RolloutChunk(tuple(p for p, _ in samples), rollouts, request.temperature), stats


def score(chunk, unscored=()):
    def has_none(r):
        return r.draw_index in unscored or (r.draw_index, r.sample_index) in unscored

    judgements = tuple(
        None if has_none(r) else Judgement(r.draw_index, r.sample_index, r.draw_index / 10, {}, "v")
        for r in chunk.rollouts
    )
    missing = tuple(
        Unscored(r.draw_index, r.sample_index, "reward_nonfinite", f"draw {r.draw_index} scored nan")
        for r in chunk.rollouts
        if has_none(r)
    )
    return JudgementChunk(judgements), Stats(samples=len(judgements), seconds={"score": 0.5}, unscored=missing)


def reference(chunk):
    logprobs = tuple(np.array([-r.draw_index], dtype=np.float32) for r in chunk.rollouts)
    return ReferenceChunk(logprobs), Stats(samples=len(logprobs), seconds={"reference": 0.125})


def answer(call, unscored=()):
    """What a sound member answers."""
    match call.method:
        case "ready":
            return Reply(call.call_id, {"node": "n1", "pid": 1})
        case "adopt":
            return Reply(call.call_id, {"identity": str(call.argument.identity)})
        case "probe":
            return Reply(call.call_id, {"reward_model": 0.5})
        case "heartbeat":
            return Reply(call.call_id, {"rss_bytes": 1})
        case "score" | "evaluate":
            return Reply(call.call_id, *score(call.argument, unscored))
        case "reference":
            return Reply(call.call_id, *reference(call.argument))
        case _:
            return Reply(call.call_id, *generate(call.argument))


class Bench:
    """Carries actions and replies, and turns the clock where nobody speaks.

    Args:
        seed: of the order in which members answer.
        silent: (slot, method) that never answers.
        failing: (slot, method) to the error with which it answers; or a function of the call.
        unscored: draws, or (draw, sample), that have no score.
    """

    def __init__(self, conductor, *, seed=0, silent=(), failing=None, unscored=()):
        self.conductor = conductor
        self.random = random.Random(seed)
        errors = failing or {}
        self.failing = errors if callable(errors) else lambda call: errors.get((call.member.slot, call.method))
        self.silent, self.unscored = set(silent), set(unscored)
        self.now = 1000.0
        self.open, self.sent, self.log = {}, [], []

    def take(self, actions):
        self.log += actions
        for action in actions:
            match action:
                case Send(call):
                    self.sent.append(call)
                    self.open[call.call_id] = call
                case Kill(member, _):
                    self.open = {i: c for i, c in self.open.items() if c.member != member}

    def speak(self):
        """A few members answer; where none does, a second passes."""
        able = [c for c in self.open.values() if (c.member.slot, c.method) not in self.silent]
        if not able:
            self.now += 1.0
        for call in self.random.sample(able, self.random.randint(1, len(able))) if able else []:
            if self.open.pop(call.call_id, None) is None:
                continue  # its member was lost meanwhile
            error = self.failing(call)
            reply = answer(call, self.unscored) if error is None else Reply(call.call_id, error=error)
            self.take(self.conductor.on_reply(reply, self.now))
        self.take(self.conductor.tick(self.now))

    def finish(self):
        while (handles := self.conductor.finished()) is None:
            if self.conductor.failure is not None:
                raise self.conductor.failure
            self.speak()
        return handles

    def collect(self, num_samples):
        self.take(self.conductor.begin(num_samples, self.now))
        return self.finish()

    def sample(self, prompts, **how):
        self.take(self.conductor.begin_given(prompts, self.now, **how))
        return self.finish()

    def publish(self, weights):
        self.take(self.conductor.publish(weights, self.now))

    def requests(self):
        return [c.argument for c in self.sent if c.method == "generate"]

    def notes(self):
        return [a.text for a in self.log if isinstance(a, Note)]


def prompts_of(config):
    texts = [np.arange(20, dtype=np.int32) + 20 * i for i in range(7)]
    ppo = config.ppo
    return PromptStream(texts, prompt_tokens=ppo.prompt_tokens, response_tokens=ppo.response_tokens, seed=config.seed)


def make(*overrides, workers=2, replicas=2, published=True, **faults):
    """A bench with a conductor of `tiny.toml`: 32 samples per update in chunks of 8."""
    config = load_config(TINY, [*overrides])
    rollout = Limits.of(config.rollout, min_members=1)
    reward = Limits.of(config.reward_service, min_members=1, budget_s=config.reward_service.budget_s)
    conductor = Conductor(
        ChunkFlow(
            config,
            prompts=prompts_of(config),
            rollout=rollout,
            reward=reward,
            with_reference=config.ppo.reference == "service",
            ledger=Ledger(),
        )
    )
    bench = Bench(conductor, **faults)
    bench.take(conductor.resize(workers, replicas, bench.now))
    if published:
        bench.publish(WeightsHandle(Identity(0, 0), "buffer 0", 0, ()))
    return bench


@pytest.fixture(scope="session")
def make_bench():
    """Builds a bench from `tiny.toml`, overrides as in `--set`, and the members' faults."""
    return make


@pytest.fixture(scope="session")
def member_answer():
    """What a sound member answers to a call."""
    return answer
