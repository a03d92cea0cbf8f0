"""What a user asks of a benchmark."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Options:
    """Of all benchmarks; each reads what concerns it."""

    models: tuple[str, ...] = ("tiny", "smollm2-135m")
    """Names of deploy/bench/shapes.py, or folders."""
    workers: tuple[int, ...] = (8, 64, 256, 1024)
    """Numbers of simulated workers."""
    rounds: int = 5
    """Measured rounds of interleaved work; a benchmark whose rounds are long takes fewer."""
    cache: Path | None = None
    """Where environments of `peers` are kept; None: beside what Hugging Face caches."""
    out: Path = Path()
    """Folder that `curves` writes into."""
