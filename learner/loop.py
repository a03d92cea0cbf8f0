"""READ THIS FIRST: the whole of reinforcement learning from feedback, on one page.

    ┌────────────── weights ──────────────┐
    ▼                                     │
 rollouts ── trajectories (handles) ──▶ learner ── report ──▶ recorder

`rollouts` sends prompts to workers, has their responses scored, and hands back *handles*: the payloads stay where they
were made until the learner fetches them. Whether workers are Ray actors or objects of this process is decided in
`deploy`; this loop cannot tell.

What happens inside: generation in actors/engine.py, judging in reward_service/scorers.py, the update in learner/ppo.py.
"""

from common.errors import NonFiniteError
from common.ports import Checkpoints, Learner, Recorder, Rollouts
from common.ppo_config import PPOConfig


def train(
    *, learner: Learner, rollouts: Rollouts, recorder: Recorder, checkpoints: Checkpoints, config: PPOConfig
) -> None:
    """Run PPO until `config.updates` are done; every wait inside has a deadline.

    Raises:
        PhaseTimeoutError, MemberFailedError: a process hangs or died; the message names it.
        LedgerError: a sample was lost or counted twice.
        NonFiniteError: no optimizer step of an update was finite.
        CheckpointError: the last checkpoint, or two in a row, could not be written.
    """
    rollouts.publish(learner.weights())
    while learner.step < config.updates:
        trajectories = rollouts.collect(config.trajectories_per_update)
        report = learner.update(trajectories)
        if not report.is_finite:
            raise NonFiniteError(
                f"update {learner.step + 1}: no optimizer step was finite; weights {report.identity} are as they were. "
                "Lower the learning rate or look at the scores"
            )
        rollouts.account(report)
        rollouts.publish(learner.weights())
        recorder.record(report)
        if checkpoints.due(learner.step):
            checkpoints.save(learner, rollouts)
    checkpoints.wait()
