"""What a run adds to a talk with its policy: the score that PPO sees, the judge, and the policy before PPO.

Everything is loaded when it is first asked for, beside the run, which may still be training.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from actors.chat import Answer, Speaker
from common.errors import ConfigError, DataError
from common.records import Finish, Identity, ModelPaths, Prompt, Rollout, RolloutChunk
from common.text import eos_token_ids
from deploy.run_folder.models import Policy, RunModels
from deploy.scorer_secrets import scorer_secrets
from reward_service.build import build_mixture, text_classifier
from reward_service.mixture import Mixture, text_of
from reward_service.model_scorer import TextClassifier
from reward_service.reference import Reference

NOBODY = Identity(-1, 0)
"""Weights of a talk belong to no lineage of training."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a run says of an answer."""

    score: float
    """What PPO maximises, before scaling and clipping."""
    parts: Mapping[str, float]
    """The scorers' own numbers, by name."""
    judge_p_positive: float | None
    """The judge's probability of the positive class; None where the run has no judge."""
    kl_seq_sum: float
    """Sampled KL of the response to the policy before PPO, in nats, at PPO's temperature."""
    kl_token_mean: float
    """The same per token."""


class RunView:
    """Scores and comparisons of one run.

    Args:
        run: the run.
        policy: the one of its policies that is talked with.
        speaker: that policy.
        environ: where tokens of HTTP scorers are looked up.
    """

    def __init__(self, run: RunModels, policy: Policy, speaker: Speaker, environ: Mapping[str, str]) -> None:
        self.run = run
        self.policy = policy
        self.speaker = speaker
        self._environ = environ
        self._before: Speaker | None = None
        self._mixture: Mixture | None = None
        self._judge: TextClassifier | None = None

    def before(self) -> Speaker:
        """The policy that PPO started from.

        Raises:
            ConfigError: it is the one that is talked with.
        """
        if not self.policy.is_trained:
            raise ConfigError(
                f"this is no policy of PPO, but the one {self.policy.words}; to compare, talk with the one after it: "
                "--model ppo, or --checkpoint latest"
            )
        return self._start()

    def score(self, answer: Answer, by: Speaker, plain: str | None = None) -> Verdict:
        """Judge an answer as PPO would.

        Args:
            answer: to a prompt.
            by: who gave it: its KL to the policy before PPO is measured.
            plain: the conversation before the answer as scorers read it, as in `Prompt.text`; None: its ids, decoded.

        Raises:
            ConfigError: the run has no PPO, or its reward model is not there yet.
            DataError: nothing was said, or a scorer cannot judge it; says why.
        """
        if not len(answer.response_ids):
            raise DataError("there is no word to be scored")
        mixture, ppo = self._scorers(), self.run.config.ppo
        assert ppo is not None, "scorers are of a PPO stage"
        chunk = _chunk(answer, plain, ppo.temperature)
        judgements, stats = mixture.judge(chunk)
        judgement = judgements.judgements[0]
        if judgement is None:
            raise DataError(f"no score: {stats.unscored[0].reason}: {stats.unscored[0].detail}")
        now, before = (
            Reference(speaker.policy, batch_sequences=1).logprobs(chunk)[0].logprobs[0]
            for speaker in (by, self._start())
        )
        kl = float((now - before).sum())
        return Verdict(judgement.score, judgement.parts, self._judged(chunk), kl, kl / len(now))

    def close(self) -> None:
        """End what scorers started."""
        if self._mixture is not None:
            self._mixture.close()

    def _start(self) -> Speaker:
        if self._before is None:
            self._before = speaker_of(self.run.before_ppo(), self.speaker.device)
        return self._before

    def _scorers(self) -> Mixture:
        if self._mixture is None:
            config = self.run.config
            if config.ppo is None:
                raise ConfigError(f"{self.run.folder} has no [ppo] table, so nothing says what a score is")
            reward_model = self.run.classifier("reward_model")
            if config.reward_service.has_model and reward_model is None:
                raise ConfigError(f"{self.run.folder} has not trained its reward model yet; wait for that stage")
            paths = ModelPaths(self.policy.source, reward_model)
            self._mixture = build_mixture(config, paths, scorer_secrets(config, self._environ))
        return self._mixture

    def _judged(self, chunk: RolloutChunk) -> float | None:
        table, path = self.run.config.judge, self.run.classifier("judge")
        if table is None or path is None:
            return None
        if self._judge is None:
            self._judge = text_classifier(self.run.config.reward_service, table, path)
        text = text_of(self.speaker.tokenizer, chunk.prompts[0], chunk.rollouts[0])
        _, chances = self._judge.judge([text.whole])
        return float(chances[0])


def speaker_of(policy: Policy, device: torch.device) -> Speaker:
    """Weights that can be talked with; they are moved to the device."""
    policy.model.to(device)
    return Speaker(policy.model, policy.tokenizer, eos_token_ids(policy.source, policy.tokenizer))


def _chunk(answer: Answer, plain: str | None, temperature: float) -> RolloutChunk:
    """The answer as a rollout worker would hand it on; scorers and reference read no logprobs of it."""
    prompt = Prompt(0, 0, answer.prompt_ids, len(answer.response_ids), plain)
    finish: Finish = "stop" if answer.ending == "stop" else "length"
    logprobs = np.zeros(len(answer.response_ids), dtype=np.float32)
    rollout = Rollout(0, 0, 0, 0, answer.response_ids, logprobs, NOBODY, finish)
    return RolloutChunk((prompt,), (rollout,), temperature)
