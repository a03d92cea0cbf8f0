"""READ THIS FIRST: the whole of reinforcement learning from feedback, on one page.

    ┌────────────── weights ──────────────┐
    ▼                                     │
 rollouts ── trajectories (handles) ──▶ learner ── report ──▶ recorder

`rollouts` sends prompts to workers, has their responses scored, and hands back *handles*: the payloads stay where they
were made until the learner fetches them. Whether workers are Ray actors or objects of this process is decided in
`deploy`; this loop cannot tell.

What happens inside: generation in actors/engine.py, judging in reward_service/scorers.py, the update in learner/ppo.py.
"""

from common.ports import Checkpoints, Learner, Recorder, Rollouts
from common.ppo_config import PPOConfig


def train(
    *, learner: Learner, rollouts: Rollouts, recorder: Recorder, checkpoints: Checkpoints, config: PPOConfig
) -> None:
    """Run PPO until `config.updates` are done; every wait inside has a deadline.

    Raises:
        PhaseTimeoutError, MemberFailedError: a process hangs or died; the message names it.
        LedgerError: a sample was lost or counted twice.
    """
    rollouts.publish(learner.weights())
    while learner.step < config.updates:
        trajectories = rollouts.collect(config.trajectories_per_update)
        report = learner.update(trajectories)
        rollouts.account(report)
        rollouts.publish(learner.weights())
        recorder.record(report)
        if due(learner.step, config.checkpoint_every) or learner.step == config.updates:
            checkpoints.save(learner)


def due(step: int, every: int) -> bool:
    """Whether something that happens every `every` updates happens after update `step`; 0 is never."""
    return every > 0 and step % every == 0
