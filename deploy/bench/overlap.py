"""`bench overlap`: what it brings that generation goes on while the learner learns.

The loop, the supervisor's thread, conductor, pools and ledger of real runs over members and a learner that sleep
(sleepers.py): a batch takes its workers as long as an update takes the learner. Taking turns, a step costs both; ahead
by one update, the longer of the two, so that the ratio would be 2 if nothing else took time. Where chunks take
different times (lognormal), taking turns also means to wait for the slowest one.
"""

import itertools
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry

from actors.prompts import PromptStream
from common.config import RunConfig
from common.config_file import load_config
from common.metrics import RunMetrics
from common.supervision import Ledger, Limits
from deploy.bench.figures import Figure
from deploy.bench.interleave import Timed, median, speedup, take_turns
from deploy.bench.options import Options
from deploy.bench.roofline import Roofline
from deploy.bench.sleepers import SleepingTransport
from deploy.bench.stand_ins import FixedSettings, NoCheckpoints, NoRecords, WaitingLearner
from deploy.evaluation.evaluations import NoEvaluations
from deploy.ppo.chunk_flow import ChunkFlow
from deploy.ppo.conductor import Conductor
from deploy.ppo.supervisor import Supervisor
from deploy.stop_signal import StopSignal
from deploy.stopwatch import Stopwatch
from learner.loop import train

TINY = Path(__file__).parents[1] / "configs" / "tiny.toml"
WORKERS, CHUNKS_PER_WORKER = 4, 2
UPDATE_S = 0.25
"""That the learner takes, and that a batch takes the workers."""
SCORE_S = 0.002
UPDATES, WARM_UP = 9, 2
"""Of one run; the first ones, in which the pipeline fills, are not measured."""
SIGMA = 0.8
"""Of the logarithm of a chunk's seconds where chunks differ, as `bench scale` has it."""
MUST = 1.8
ROUNDS = 3
"""At most: a round of both cases takes twenty seconds."""


def measure(options: Options, roof: Roofline) -> list[Figure]:
    """Seconds of a step by staleness, in turns: where all chunks take as long, and where they do not."""
    rounds = min(ROUNDS, options.rounds)
    even = _in_turns((0, 1), 0.0, rounds)
    uneven = _in_turns((0, 1, 2), SIGMA, rounds)
    note = f"a batch takes its workers {UPDATE_S:g} s, an update the learner {UPDATE_S:g} s"
    ratio = speedup(even, "1", "0")
    return [
        *_steps("even", even),
        Figure("overlap.even.speedup", ratio, "x", ratio / 2, "twice", must=MUST, note=note),
        *_steps("uneven", uneven),
        *(
            Figure(f"overlap.uneven.speedup_{ahead}", speedup(uneven, ahead, "0"), "x", note="lognormal times")
            for ahead in ("1", "2")
        ),
    ]


def _in_turns(stalenesses: Sequence[int], sigma: float, rounds: int) -> Timed:
    """Seconds of a step by staleness, round by round; all of a round meet the same times of chunks."""

    def way(staleness: int) -> Callable[[], float]:
        seeds = itertools.count()
        return lambda: seconds_per_step(staleness, sigma=sigma, seed=next(seeds))

    return take_turns({str(staleness): way(staleness) for staleness in stalenesses}, rounds=rounds, warm_up=0)


def _steps(case: str, timed: Timed) -> list[Figure]:
    """Seconds of a step, beside those of the update alone."""
    medians = {staleness: median(timed, staleness) for staleness in timed}
    return [
        Figure(f"overlap.{case}.staleness_{staleness}", seconds, "s/step", UPDATE_S / seconds, "the update alone",
               lower_is_better=True)
        for staleness, seconds in medians.items()
    ]  # fmt: skip


def seconds_per_step(staleness: int, *, sigma: float, seed: int = 0) -> float:
    """Mean over the updates of one run, without the first.

    Args:
        staleness: of the run.
        sigma: of the logarithm of a chunk's seconds; 0: all take as long.
        seed: of what they differ by.
    """
    config = load_config(TINY, _changes(staleness))
    assert config.ppo is not None, "tiny has a PPO stage"
    learner = WaitingLearner(UPDATE_S)
    mean_s, chunks = UPDATE_S / CHUNKS_PER_WORKER, UPDATES * WORKERS * CHUNKS_PER_WORKER
    factors = np.random.default_rng(seed).lognormal(-(sigma**2) / 2, sigma, size=chunks)
    transport = SleepingTransport(generate_s=lambda index: mean_s * float(factors[index]), score_s=SCORE_S)
    with closing(transport), closing(supervisor_of(config, transport)) as supervisor:
        supervisor.resize(workers=WORKERS, replicas=1)
        train(
            learner=learner,
            rollouts=supervisor,
            recorder=NoRecords(),
            steering=FixedSettings(config),
            evaluations=NoEvaluations(),
            checkpoints=NoCheckpoints(),
            config=config.ppo,
        )
    ended = learner.ended_at
    return (ended[-1] - ended[WARM_UP]) / (len(ended) - 1 - WARM_UP)


def supervisor_of(config: RunConfig, transport: SleepingTransport) -> Supervisor:
    """Of a run with members that sleep."""
    assert config.ppo is not None, "tiny has a PPO stage"
    texts = [np.arange(20, dtype=np.int32) + 20 * i for i in range(7)]
    prompts = PromptStream(
        texts, prompt_tokens=config.ppo.prompt_tokens, response_tokens=config.ppo.response_tokens, seed=config.seed
    )
    flow = ChunkFlow(
        config,
        prompts=prompts,
        rollout=Limits.of(config.rollout, min_members=1, are_processes=False),
        reward=Limits.of(config.reward_service, min_members=1, are_processes=False),
        with_reference=False,
        ledger=Ledger(),
    )
    return Supervisor(
        Conductor(flow),
        transport,
        metrics=RunMetrics(CollectorRegistry()),
        watch=Stopwatch(),
        stop=StopSignal(),
        note=lambda note: None,
    )


def _changes(staleness: int) -> list[str]:
    chunk = 8
    batch = chunk * WORKERS * CHUNKS_PER_WORKER
    return [
        f"ppo.max_staleness={staleness}",
        f"ppo.updates={UPDATES}",
        f"ppo.trajectories_per_update={batch}",
        f"ppo.minibatch_sequences={batch}",
        f"rollout.chunk_sequences={chunk}",
    ]
