"""The policy as one buffer, copied and hashed once per update: the hash goes into the update's report, the buffer to
the workers. Used by `ppo.py`; how a buffer is laid out is told in `common/weights.py`.

    update ─▶ renew ─▶ hash in the report         publish ─▶ take ─▶ buffer in the handle
"""

from dataclasses import dataclass

from torch import nn

from common.records import TensorSpec
from common.weights import Buffer, buffer_hash, flatten


@dataclass(frozen=True, slots=True)
class Flat:
    """A copy of a model's parameters."""

    buffer: Buffer
    manifest: tuple[TensorSpec, ...]
    hash: int
    """xxh3-64 of the buffer's bytes."""

    @classmethod
    def of(cls, model: nn.Module) -> "Flat":
        """As it is now."""
        buffer, manifest = flatten(model)
        return cls(buffer, manifest, buffer_hash(buffer))


class FlatCopy:
    """Holds a copy from the end of an update until it is published, and none while the next one trains.

    Args:
        model: whose parameters are copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._kept: Flat | None = None

    def renew(self) -> str:
        """Copy the parameters as they are now; returns the hash in 16 hexadecimal digits."""
        self._kept = None  # two copies at once are never needed
        self._kept = Flat.of(self._model)
        return f"{self._kept.hash:016x}"

    def take(self) -> Flat:
        """The kept copy, which is then the caller's alone; a new one where there is none."""
        kept, self._kept = self._kept, None
        return kept or Flat.of(self._model)

    def forget(self) -> None:
        """The parameters were changed by something else than an update."""
        self._kept = None
