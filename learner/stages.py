"""The supervised stages, by name: one generator that any process can run and any other can watch."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from common.config import RunConfig
from common.gguf_file import find_gguf, import_gguf
from common.records import Progress, StageResult
from common.run_place import share
from learner.language_model import train_language_model
from learner.reward_model import train_reward_model
from learner.service import build_accelerator

WATCH_S = 0.1
"""Shortest time between two signs of progress: more would only cost."""


@dataclass(frozen=True, slots=True)
class StageRequest:
    """What to train, from what, and where the result goes."""

    stage: str
    """`base`, `pretrain`, `sft`, `reward_model` or `judge`."""
    config: RunConfig
    source: str | None
    """Model that fine-tuning goes on from, or that a classifier of type `policy` starts from."""
    folder: str
    """Where model and tokenizer go."""


def run_stage(request: StageRequest) -> Iterator[Progress | StageResult]:
    """Train; yields progress a few times a second, and last the result."""
    shown = 0.0
    for item in _train(request):
        now = time.monotonic()
        if isinstance(item, StageResult) or now - shown > WATCH_S or item.step == item.total:
            shown = now
            if isinstance(item, StageResult):
                share(Path(request.folder))
            yield item


def _train(request: StageRequest) -> Iterator[Progress | StageResult]:
    config, folder = request.config, Path(request.folder)
    if request.stage == "base":
        assert config.model.type == "gguf", "other models need no unpacking"
        yield from import_gguf(find_gguf(config.model), folder)
        return
    accelerator = build_accelerator(config)
    match request.stage:
        case "pretrain" | "sft" as stage:
            table = config.pretrain if stage == "pretrain" else config.sft
            assert table is not None, "the pipeline runs the stages that the configuration names"
            yield from train_language_model(
                config, table, source=request.source, folder=folder, accelerator=accelerator
            )
        case "reward_model" | "judge" as stage:
            classifier = config.reward_model if stage == "reward_model" else config.judge
            assert classifier is not None, "the pipeline runs the stages that the configuration names"
            yield from train_reward_model(
                config, classifier, role=stage, folder=folder, accelerator=accelerator, policy=request.source
            )
        case unknown:
            raise ValueError(f"no supervised stage is called {unknown!r}")
