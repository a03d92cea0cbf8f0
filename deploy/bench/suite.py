"""How benchmarks are run one after the other: what one of them cannot do takes nothing from the others."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ray.exceptions import RayError
from rich.console import Console

from common.errors import ConfigError, MiniChatGPTError
from deploy.bench import engine, learner, loop, names, overlap, publish, reward, scale
from deploy.bench.figures import Figure
from deploy.bench.options import Options
from deploy.bench.peers import comparison, curves
from deploy.bench.roofline import Roofline, measure_roofline

Benchmark = Callable[[Options, Roofline], list[Figure]]

BENCHMARKS: dict[str, Benchmark] = {
    "engine": engine.measure,
    "learner": learner.measure,
    "reward": reward.measure,
    "publish": publish.measure,
    "overlap": overlap.measure,
    "loop": loop.measure,
    "scale": scale.measure,
    "peers": comparison.measure,
    "curves": curves.measure,
}
"""By the words of names.py."""

FAILURES = (MiniChatGPTError, RayError, OSError)
"""What a benchmark raises where the machine, a cluster or a program that it starts does not do its part. All else is a
fault in a benchmark, and ends the suite."""


@dataclass(frozen=True, slots=True)
class Done:
    """What came of it."""

    roof: Roofline
    figures: Sequence[Figure]
    errors: Mapping[str, str]
    """By benchmark that failed, its words."""


def run(words: Sequence[str], options: Options, console: Console) -> Done:
    """Measure the machine, then the named benchmarks.

    Raises:
        ConfigError: there is no such benchmark.
    """
    if unknown := [word for word in words if word not in (*BENCHMARKS, names.ALL)]:
        raise ConfigError(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)} and {names.ALL}")
    chosen = dict.fromkeys(name for word in words for name in (names.IN_ALL if word == names.ALL else (word,)))
    roof = measure_roofline()
    console.print(
        f"this machine, {roof.threads} threads: {roof.gemm_flops / 1e9:.0f} GF/s in matrix products, "
        f"{roof.copy_bytes / 1e9:.1f} GB/s in copies"
    )
    figures: list[Figure] = []
    errors = {}
    for name in chosen:
        try:
            with console.status(f"bench {name}"):
                figures += BENCHMARKS[name](options, roof)
        except FAILURES as error:
            errors[name] = "\n".join((f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())))
            console.print(f"bench {name} failed; the others go on", highlight=False)
    return Done(roof, figures, errors)
