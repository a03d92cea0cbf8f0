"""READ THIS FIRST: the whole of reinforcement learning from feedback, on one page.

    ┌────────────── weights ──────────────┐
    ▼                                     │
 rollouts ── trajectories (handles) ──▶ learner ── report ──▶ recorder
                                          └────── state ────▶ checkpoints

`rollouts` sends prompts to workers, has their responses scored, and hands back *handles*: the payloads stay where they
were made until the learner fetches them. Whether workers are Ray actors or objects of this process is decided in
`deploy`; this loop cannot tell. Workers may come, die and leave meanwhile: `rollouts` sees to it. `evaluations` asks
the same workers about held-out prompts, now and then, and changes nothing of what is trained. `steering` says with
which settings each update is done: an operator may change a few, or pause; a guard rail may lower a rate or go back.

What happens inside: generation in actors/engine.py, judging in reward_service/scorers.py, the update in learner/ppo.py,
who does what in deploy/ppo/conductor.py, and what follows when the learner itself is lost in deploy/ppo/recovery.py.
"""

from common.ports import Checkpoints, Evaluations, Learner, Recorder, Rollouts, Steering
from common.ppo_config import PPOConfig


def train(
    *,
    learner: Learner,
    rollouts: Rollouts,
    recorder: Recorder,
    steering: Steering,
    evaluations: Evaluations,
    checkpoints: Checkpoints,
    config: PPOConfig,
) -> None:
    """Run PPO until `config.updates` are done; every wait inside has a deadline.

    Raises:
        LearnerLostError: the learner died or hangs; another one can go on from the newest checkpoint.
        MemberFailedError, TooManyDropsError: the pools cannot go on; the message names the cause.
        NonFiniteError: too many updates in a row had no finite step.
        RollBack: a guard rail wants to go back to a checkpoint.
        RunStopped: somebody wants the run to end, or a guard rail does.
        LedgerError: a sample was lost or counted twice.
    """
    rollouts.publish(learner.weights())
    evaluations.at(learner.step)
    while learner.step < config.updates:
        settings = steering.at(learner.step)
        trajectories = rollouts.collect(config.trajectories_per_update, settings)
        while lost := learner.prepare(trajectories):
            trajectories = rollouts.regenerate(trajectories, lost)
        report = learner.update(settings)
        rollouts.account(report)
        del trajectories  # the last ones to refer to the payloads: a node that holds some is not idle to an autoscaler
        recorder.record(report)
        if not report.is_finite:
            continue
        rollouts.publish(learner.weights())
        evaluations.at(learner.step)
        if checkpoints.due(learner.step):
            checkpoints.save(learner, rollouts)
    checkpoints.wait()
