"""Which benchmarks there are, and how they are run one after the other."""

from collections.abc import Callable, Sequence

from rich.console import Console

from common.errors import ConfigError
from deploy.bench import engine, learner, loop, overlap, publish, reward, scale
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
}
"""By the word of the command line, in the order of `all`."""

APART: dict[str, Benchmark] = {"peers": comparison.measure, "curves": curves.measure}
"""Those that are not part of `all`, for they install what is compared."""


def run(words: Sequence[str], options: Options, console: Console) -> tuple[Roofline, list[Figure]]:
    """Measure the machine, then the named benchmarks.

    Raises:
        ConfigError: there is no such benchmark.
    """
    if unknown := [word for word in words if word not in (*BENCHMARKS, *APART, "all")]:
        raise ConfigError(f"no benchmark {unknown[0]!r}; there are {', '.join([*BENCHMARKS, *APART])} and all")
    named = [name for word in words for name in (BENCHMARKS if word == "all" else (word,))]
    chosen = list(dict.fromkeys(named))
    roof = measure_roofline()
    console.print(
        f"this machine, {roof.threads} threads: {roof.gemm_flops / 1e9:.0f} GF/s in matrix products, "
        f"{roof.copy_bytes / 1e9:.1f} GB/s in copies"
    )
    figures = []
    for name in chosen:
        with console.status(f"bench {name}"):
            figures += (BENCHMARKS | APART)[name](options, roof)
    return roof, figures
