"""The trained parameters of the policy as they are published: one buffer, its manifest and its hash. Used by `ppo.py`.

The parameters lie in memory as the buffer does (`common/flat_parameters.py`), so that on the CPU there is nothing to
gather: the object store copies straight from the policy. The hash is taken once per update and goes into its report.

    update ─▶ renew ─▶ hash in the report         publish ─▶ lend ─▶ buffer in the handle
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import nn

from common.flat_parameters import Buffer, FlatParameters
from common.records import TensorSpec
from common.weights import buffer_hash, distinct_parameters, rest_hash

SERVED = (torch.float32, torch.bfloat16, torch.float16)
"""Precisions in which a worker may hold the frozen rest."""


@dataclass(frozen=True, slots=True)
class Flat:
    """The trained parameters as they are now."""

    buffer: Buffer
    """Valid until the policy changes: it may be the policy's own memory."""
    manifest: tuple[TensorSpec, ...]
    hash: int
    """xxh3-64 of the buffer's bytes."""
    rest_hashes: Mapping[str, int]
    """Of the parameters that are not in the buffer, by precision; empty where all are."""


class FlatPolicy:
    """Lays the policy's parameters out, and knows what is published of them.

    Frozen ones do not travel, for workers load them from the same model folder. They do where the learner holds them in
    less than float32, since a worker may then have read them more exactly.

    Args:
        model: the policy, frozen and placed as it will be trained.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        named = distinct_parameters(model)
        frozen = [p for _, p in named if not p.requires_grad]
        has_rest = bool(frozen) and all(p.dtype == torch.float32 for p in frozen)
        self._parameters = FlatParameters((name, p) for name, p in named if p.requires_grad or not has_rest)
        self._manifest = self._parameters.manifest
        self._has_rest = has_rest
        self._now: Flat | None = None
        self._warm: Buffer | None = None

    @property
    def is_current(self) -> bool:
        """Whether the hash of the policy as it is now is known."""
        return self._now is not None

    def renew(self) -> str:
        """The policy has changed by an update; returns the new hash in 16 hexadecimal digits."""
        self._now = None
        return f"{self.lend().hash:016x}"

    def lend(self) -> Flat:
        """What is to be published now."""
        if self._now is None:
            self._warm = self._parameters.buffer(self._warm)
            self._now = Flat(self._warm, self._manifest, buffer_hash(self._warm), self._rest_hashes)
        return self._now

    def forget_hash(self) -> None:
        """Trained parameters are about to change."""
        self._now = None

    def forget(self) -> None:
        """The parameters were changed by something else than an update, the frozen ones perhaps too."""
        self._now = None
        vars(self).pop("_rest_hashes", None)

    @cached_property
    def _rest_hashes(self) -> Mapping[str, int]:
        if not self._has_rest:
            return {}
        sent = {spec.name for spec in self._manifest}
        return {str(dtype).removeprefix("torch."): rest_hash(self._model, sent, dtype) for dtype in SERVED}
