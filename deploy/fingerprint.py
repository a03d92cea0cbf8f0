"""Whether a stage is done already: a hash of all that its result depends on.

A stage's fingerprint covers its own part of the configuration, the contents of its data files, the outputs of the
stages before it, and a format version. The number of workers is not in it: it changes no result.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from common.classifier_config import RewardModelConfig
from common.config import RunConfig
from common.config_base import settings_that_matter
from common.data_config import DataSource
from common.gguf_file import find_gguf
from common.hashing import file_hash
from common.source_tables import WHERE_IT_IS, content_hashes

FORMAT = 2
"""Raise it whenever the same settings give other results than before, rounding aside: finished stages then run anew."""


def fingerprint(config: RunConfig, stage: str, inputs: Mapping[str, str]) -> str:
    """Hash of what a stage depends on; arguments as in `depends_on`."""
    parts = depends_on(config, stage, inputs)
    return xxhash.xxh3_128_hexdigest(json.dumps(parts, sort_keys=True).encode())


def depends_on(config: RunConfig, stage: str, inputs: Mapping[str, str]) -> dict[str, Any]:
    """All that a stage's result depends on, as JSON-able values.

    Args:
        config: the run.
        stage: its name.
        inputs: hashes of the models that it starts from, by role.
    """
    if stage == "base":
        assert config.model.type == "gguf", "other models need no unpacking"
        return {"format": FORMAT, "stage": stage, "file": file_hash(find_gguf(config.model))}
    parts: dict[str, Any] = {
        "format": FORMAT,
        "stage": stage,
        "seed": config.seed,
        "heldout_fraction": config.heldout_fraction,
        "settings": _dump(getattr(config, stage)),
        "data": {name: data_hash(config.data[name]) for name in _data_names(config, stage)},
        "inputs": dict(inputs),
        "learner": settings_that_matter(config.learner),
    }
    if stage == "pretrain":
        parts["model"] = _dump(config.model)
    if stage in ("ppo", "evaluate"):
        parts["ppo"] = settings_that_matter(config.ppo) if config.ppo is not None else None
        parts["reward_model"] = reading_of(config.reward_model)
        parts["rollout"] = settings_that_matter(config.rollout)
        parts["reward_service"] = settings_that_matter(config.reward_service)
    if stage == "evaluate":
        parts["judge"] = reading_of(config.judge)
    return parts


def _dump(table: Any) -> Any:
    return None if table is None else settings_that_matter(table)


def reading_of(table: RewardModelConfig | None) -> Any:
    """How a classifier is read, which its folder does not tell."""
    return None if table is None else table.model_dump(mode="json", include={"positive_class", "max_tokens"})


def _data_names(config: RunConfig, stage: str) -> Sequence[str]:
    if stage in ("pretrain", "sft"):
        return config.data_of_language_models()
    if stage in ("reward_model", "judge"):
        training = getattr(config, stage).training
        return training.data if training is not None else []
    return config.ppo.data if config.ppo is not None else []


def data_hash(source: DataSource) -> str:
    """Hash of a source's settings and of its contents, without reading them as tables; see `content_hashes`."""
    digest = xxhash.xxh3_128(source.model_dump_json(exclude=set(WHERE_IT_IS)).encode())
    for content in content_hashes(source):
        digest.update(content.encode())
    return digest.hexdigest()


def folder_hash(folder: Path) -> str:
    """Hash of the files of a model folder, their names included."""
    digest = xxhash.xxh3_128()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder)} {file_hash(path)}\n".encode())
    return digest.hexdigest()
