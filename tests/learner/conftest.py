"""Tiny policies, samples from them by the real engine, and learners: the parts of which the learner's tests are made.

Every fixture gives a function that builds; what a test needs from elsewhere (weights, samples) it asks for by seed.
"""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from actors.engine import SamplingEngine
from common.modeling import PolicyWithValueHead, twin_trunk
from common.ppo_config import PPOConfig
from common.records import Identity, Judgement, Prompt, Rollout, RolloutChunk, Trajectory
from common.seeds import sample_seed
from learner.ppo import PPOLearner
from reward_service.reference import Reference

V, EOS = 23, 2
"""Vocabulary of the tiny policies, and the id that ends a response."""


@pytest.fixture(autouse=True)
def _one_thread():
    """Bit-equality is promised for an equal number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_policy():
    """Builds a random causal language model; `sharpness` moves it away from the uniform distribution."""

    def build(kind="llama", *, seed=0, sharpness=4.0, tied=True, dropout=0.0, num_layers=2):
        torch.manual_seed(seed)
        if kind == "llama":
            policy = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=V,
                    hidden_size=16,
                    intermediate_size=24,
                    num_hidden_layers=num_layers,
                    num_attention_heads=2,
                    max_position_embeddings=64,
                    tie_word_embeddings=tied,
                    bos_token_id=None,
                    eos_token_id=EOS,
                    pad_token_id=0,
                )
            )
        else:
            policy = GPT2LMHeadModel(
                GPT2Config(
                    vocab_size=V,
                    n_positions=64,
                    n_embd=16,
                    n_layer=num_layers,
                    n_head=2,
                    resid_pdrop=dropout,
                    embd_pdrop=dropout,
                    attn_pdrop=dropout,
                    bos_token_id=EOS,
                    eos_token_id=EOS,
                )
            )
        with torch.no_grad():
            for parameter in policy.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(sharpness)
        return policy

    return build


@pytest.fixture(scope="session")
def score_of():
    """A score that varies with the response: how many of its tokens are even, less a tenth of its length."""

    def score(response_ids):
        return float((response_ids % 2 == 0).sum() - 0.1 * len(response_ids))

    return score


@pytest.fixture(scope="session")
def sample(score_of):
    """Trajectories of ragged prompts and responses, sampled by the engine and referenced by the reward service."""

    def draw(
        policy,
        n=16,
        *,
        step=0,
        lineage=0,
        first_draw=0,
        reference=None,
        temperature=1.0,
        score=score_of,
        max_new=8,
        samples_per_prompt=1,
    ):
        rng = np.random.default_rng(1000 + first_draw)
        identity = Identity(lineage, step)
        drawn = [
            Prompt(
                draw_index=first_draw + i,
                prompt_id=i,
                token_ids=rng.integers(3, V, size=1 + i % 5).astype(np.int32),
                max_new_tokens=1 + (3 * i) % max_new,
            )
            for i in range(n // samples_per_prompt)
        ]
        prompts = tuple(p for p in drawn for _ in range(samples_per_prompt))
        indices = [i % samples_per_prompt for i in range(len(prompts))]
        seeds = [sample_seed(0, p.draw_index, k) for p, k in zip(prompts, indices, strict=True)]
        sampled = SamplingEngine(copy.deepcopy(policy), frozenset({EOS})).sample(
            [p.token_ids for p in prompts],
            max_new_tokens=[p.max_new_tokens for p in prompts],
            seeds=seeds,
            temperature=temperature,
        )
        rollouts = tuple(
            Rollout(p.draw_index, k, 0, seed, s.ids, s.logprobs, identity, s.finish)
            for p, k, seed, s in zip(prompts, indices, seeds, sampled, strict=True)
        )
        refs = (None,) * n
        if reference is not None:
            service = Reference(copy.deepcopy(reference), batch_sequences=5)
            refs = service.logprobs(RolloutChunk(prompts, rollouts, temperature))[0].logprobs
        return [
            Trajectory(p, r, Judgement(p.draw_index, r.sample_index, score(r.response_ids), {"even": 1.0}, "test"), ref)
            for p, r, ref in zip(prompts, rollouts, refs, strict=True)
        ]

    return draw


@pytest.fixture(scope="session")
def rescored():
    """The same trajectories with other scores."""

    def change(trajectories, scores):
        return [
            replace(t, judgement=replace(t.judgement, score=float(s)))
            for t, s in zip(trajectories, scores, strict=True)
        ]

    return change


@pytest.fixture(scope="session")
def ppo_config():
    """A PPO stage for 16 trajectories, in two minibatches of 8, without a reference unless one is asked for."""

    def build(**changed):
        settings = {
            "data": ["texts"],
            "updates": 50,
            "trajectories_per_update": 16,
            "epochs": 2,
            "minibatch_sequences": 8,
            "optimizer": {"type": "adamw", "lr": 1e-3},
            "reference": "none",
            "kl": {"type": "fixed", "coef": 0.0},
            "value_clip_eps": float("inf"),
        }
        return PPOConfig.model_validate(settings | changed)

    return build


@pytest.fixture(scope="session")
def make_learner(ppo_config):
    """A learner over its own copy of a policy."""

    def build(policy, config=None, *, run_seed=5, double=False, **changed):
        config = config or ppo_config(**changed)
        value_trunk = twin_trunk(policy) if config.value_network == "own" else None
        model = PolicyWithValueHead(copy.deepcopy(policy), value_trunk=value_trunk)
        return PPOLearner(
            model.double() if double else model,
            config,
            run_seed=run_seed,
            accelerator=Accelerator(cpu=True),
        )

    return build


@pytest.fixture(scope="session")
def weights_of():
    """Copies of a learner's parameters by name, value head included."""

    def copy_of(learner):
        return {name: p.detach().clone() for name, p in learner.plain.named_parameters()}

    return copy_of


@pytest.fixture(scope="session")
def changed():
    """Names of the parameters that differ, bit for bit."""

    def names(before, after):
        assert before.keys() == after.keys()
        return [name for name in before if not torch.equal(before[name], after[name])]

    return names


@pytest.fixture(scope="session")
def gradients():
    """Notes down the gradient of every optimizer step, after clipping, as one dict by parameter name per step."""

    def watch(learner):
        seen = []

        def note(optimizer, args, kwargs):
            seen.append({n: p.grad.clone() for n, p in learner.plain.named_parameters() if p.grad is not None})

        learner.optimizers[0].optimizer.register_step_pre_hook(note)
        return seen

    return watch


@pytest.fixture(scope="session")
def assert_close():
    """Compares tensors by name."""

    def check(left, right, *, relative):
        """Every tensor differs by at most this share of the largest entry of all."""
        assert left.keys() == right.keys()
        largest = max(float(t.abs().max()) for t in right.values())
        for name in left:
            assert float((left[name] - right[name]).abs().max()) <= relative * largest, name

    return check
