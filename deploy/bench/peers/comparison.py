"""The benchmark `peers`: a step of PPO by us and by TRL's trainers, in turns, on the same work.

What differs is said in each figure's note: the classic trainer runs our algorithm; the experimental one trains a value
network of its own, as ours with `value_network = "own"`; GRPO has no value at all; and ours with `trainable_layers`
trains fewer parameters.
"""

import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedModel

from deploy.bench.figures import Figure
from deploy.bench.options import Options
from deploy.bench.peers.children import Child, Peer, StepTimes, started
from deploy.bench.peers.environments import (
    TRL_CLASSIC,
    TRL_EXPERIMENTAL,
    TRL_GROUP,
    Environment,
    default_cache,
    python_of,
)
from deploy.bench.peers.programs.task import Task
from deploy.bench.peers.work_folder import write_work
from deploy.bench.roofline import Roofline
from deploy.bench.shapes import model_of

ROOT = Path(__file__).parents[3]
OURS, OURS_TOP_2, OURS_OWN_VALUE = "ours", "ours-top-2", "ours-own-value"
CLASSIC, EXPERIMENTAL, EXPERIMENTAL_SMALL, GROUP = (
    "trl-0.11.4-ppo",
    "trl-1.9.2-ppo",
    "trl-1.9.2-ppo-small",
    "trl-1.16-grpo",
)
VARIANTS: dict[str, tuple[str, ...]] = {OURS: (), OURS_TOP_2: ("top-2",), OURS_OWN_VALUE: ("own-value",)}
"""Of ours: further arguments of its program."""
TRL: dict[str, tuple[Environment, str, tuple[str, ...]]] = {
    CLASSIC: (TRL_CLASSIC, "classic_ppo", ()),
    EXPERIMENTAL: (TRL_EXPERIMENTAL, "experimental_ppo", ("value",)),
    EXPERIMENTAL_SMALL: (TRL_EXPERIMENTAL, "experimental_ppo", ("small_value",)),
    GROUP: (TRL_GROUP, "group_ppo", ()),
}
"""Environment, program and its further arguments."""
NOTES = {
    OURS: "value head, all layers",
    OURS_TOP_2: "trainable_layers = 2: fewer parameters learn",
    OURS_OWN_VALUE: 'value_network = "own": as large as the policy',
    CLASSIC: "value head, all layers: the same algorithm as ours",
    EXPERIMENTAL: "value model as large as the policy",
    EXPERIMENTAL_SMALL: "value model of one layer, 32 wide: its most favourable case",
    GROUP: "groups of 8, no values: another algorithm",
}
MUSTS = {
    ("smollm2-135m", OURS, CLASSIC): 1.4,
    ("smollm2-135m", OURS, EXPERIMENTAL): 2.0,
    ("smollm2-135m", OURS_TOP_2, CLASSIC): 4.0,
    ("smollm2-135m", OURS_TOP_2, EXPERIMENTAL): 4.0,
}
"""Least ratio of seconds per step, by model, ours and theirs."""
GROUPS = (
    (OURS, OURS_TOP_2, CLASSIC, EXPERIMENTAL),
    (OURS, OURS_TOP_2, EXPERIMENTAL_SMALL, GROUP),
    (OURS_OWN_VALUE, EXPERIMENTAL),
)
"""Who takes turns with whom: not all at once, for each keeps its model, gradients and optimizer in memory. What two
groups measure alike is told of the first.
"""

Turns = Mapping[str, Sequence[StepTimes]]


def peers_of(names: Sequence[str], work: Path, cache: Path, console: Console) -> list[Peer]:
    """Programs to be started; environments that are not there are built first."""
    peers = []
    for name in names:
        if name in VARIANTS:
            command = (sys.executable, "-m", "deploy.bench.peers.ours", str(work), *VARIANTS[name])
            peers.append(Peer(name, command, ROOT))
            continue
        environment, program, arguments = TRL[name]
        with console.status(f"environment of {environment.name}") as status:
            python = python_of(environment, cache, lambda line, s=status: s.update(line[:100]))  # type: ignore[misc]
        code = f"deploy.bench.peers.programs.{program}"
        peers.append(Peer(name, (str(python), "-m", code, str(work), *arguments), work / "code"))
    return peers


@contextmanager
def at_work(
    names: Sequence[str], policy: PreTrainedModel, task: Task, cache: Path | None, console: Console
) -> Iterator[Mapping[str, Child]]:
    """Peers that are loaded and wait for their turn, with a work folder that is gone afterwards."""
    where = cache or default_cache()
    where.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="work-", dir=where) as name:
        work = Path(name)
        peers = peers_of(names, work, where, console)
        write_work(work, policy, task)
        with started(peers, work, task.threads) as children:
            yield children


def take_turns(children: Mapping[str, Child], steps: int, console: Console) -> Turns:
    """One step of each in every round, every second round in the opposite order; the first round is the warm-up."""
    times: dict[str, list[StepTimes]] = {name: [] for name in children}
    for number in range(steps + 1):
        for name in list(children)[:: 1 if number % 2 == 0 else -1]:
            times[name].append(children[name].step())
        told = ", ".join(f"{name} {seen[-1].total:.3g} s" for name, seen in times.items())
        console.print(f"{'warm-up' if number == 0 else f'step {number} of {steps}'}: {told}", highlight=False)
    return {name: seen[1:] for name, seen in times.items()}


def figures_of(model: str, turns: Turns) -> list[Figure]:
    """Seconds per step of each, by phase, then how many times faster ours are: medians over rounds."""
    figures = []
    for name, seen in turns.items():
        for phase in ("total", "generation", "forward", "update"):
            seconds = statistics.median(getattr(times, phase) for times in seen)
            note = NOTES[name] if phase == "total" else ""
            figures.append(Figure(f"peers.{model}.{name}.{phase}", seconds, "s", note=note))
    for ours in VARIANTS:
        for theirs in TRL:
            if ours in turns and theirs in turns:
                pairs = zip(turns[theirs], turns[ours], strict=True)
                ratio = statistics.median(them.total / us.total for them, us in pairs)
                must = MUSTS.get((model, ours, theirs))
                note = f"{NOTES[ours]}; there: {NOTES[theirs]}"
                figures.append(Figure(f"peers.{model}.{ours}.over-{theirs}", ratio, "x", must=must, note=note))
    return figures


def measure(options: Options, _roof: Roofline) -> list[Figure]:
    """Build what is missing, then let all do their steps in turns."""
    console = Console(stderr=True)
    figures: dict[str, Figure] = {}
    for model in options.models:
        task = Task(steps=options.rounds + 1)
        for group in GROUPS:
            policy = model_of(model, seed=task.seed)
            with at_work(group, policy, task, options.cache, console) as children:
                turns = take_turns(children, options.rounds, console)
            figures = {figure.name: figure for figure in figures_of(model, turns)} | figures
    return sorted(figures.values(), key=lambda figure: figure.unit)
