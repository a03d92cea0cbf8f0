"""A model's parameters, one behind the other in one stretch of memory: then publishing and loading are single copies.

They stay the parameters that they were; only their data move. The learner lays the trained ones out like this
(`learner/flat_policy.py`), so that what it publishes needs no gathering. A rollout worker makes its own views of the
object store's memory where that can be (`lay_on`); else it lays them out too, so that what arrives is copied in as few
pieces as there are gaps in it. Knows nothing of versions and hashes: `common/weights.py`.
The way to a GPU by pinned memory has never run: no machine of this project's tests has one.

    parameters   embed │ layer 0 │ layer 1 │ norm          each begins at a multiple of 64 bytes
    buffer                         layer 1 │ norm          of a frozen trunk only what lies above it travels
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from common.errors import WeightsMismatchError
from common.records import TensorSpec

Buffer = npt.NDArray[np.float32]

ALIGNED = 16
"""Elements: 64 bytes of float32, where torch lets its own tensors begin."""
PIECE = 1 << 24
"""Elements that are cast or moved to another device at a time."""


class Run(NamedTuple):
    """A piece of a buffer that goes to, or comes from, one piece of a stretch."""

    stretch: int
    source: int
    """First element in the buffer."""
    target: int
    """First element in the stretch."""
    size: int


class Place(NamedTuple):
    """Where a parameter lies."""

    stretch: int
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)


class FlatParameters:
    """Lays parameters out when it is made; there is a stretch for each device and precision among them.

    Args:
        parameters: distinct ones, by name. From now on whoever changes one must copy into it, never replace its data;
            and whoever pickles one must clone it first, for a tensor is pickled with all of the memory that it lies in.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        kinds: dict[tuple[torch.device, torch.dtype], list[tuple[str, nn.Parameter]]] = defaultdict(list)
        for name, parameter in parameters:
            kinds[parameter.device, parameter.dtype].append((name, parameter))
        self.places: dict[str, Place] = {}
        self.stretches = [self._lay_out(i, members) for i, members in enumerate(kinds.values())]
        self._staging: Tensor | None = None

    def _lay_out(self, stretch: int, parameters: Sequence[tuple[str, nn.Parameter]]) -> Tensor:
        offset = 0
        for name, parameter in parameters:
            dtype = str(parameter.dtype).removeprefix("torch.")
            self.places[name] = Place(stretch, offset, tuple(parameter.shape), dtype)
            offset += -(-parameter.numel() // ALIGNED) * ALIGNED
        first = parameters[0][1].detach()
        flat = _zeros(offset, first.dtype, first.device)
        for name, parameter in parameters:
            place = self.places[name]
            lying = flat[place.offset : place.offset + place.size].view(place.shape)
            lying.copy_(parameter.detach())
            parameter.data = lying
        return flat

    @property
    def manifest(self) -> tuple[TensorSpec, ...]:
        """Where each tensor lies in `buffer`."""
        starts = np.cumsum([0, *(len(stretch) for stretch in self.stretches)])
        return tuple(
            TensorSpec(name, place.shape, place.dtype, int(starts[place.stretch]) + place.offset)
            for name, place in self.places.items()
        )

    def buffer(self, warm: Buffer | None = None) -> Buffer:
        """All parameters in float32: where they are float32 in main memory already, that memory itself.

        Args:
            warm: what this returned before, to be written again: memory that is new is many times slower.
        """
        if len(self.stretches) == 1 and _is_plain(self.stretches[0]):
            return _array(self.stretches[0])
        whole = np.empty(sum(map(len, self.stretches)), dtype=np.float32) if warm is None else warm
        start = 0
        for stretch in self.stretches:
            torch.from_numpy(whole[start : start + len(stretch)]).copy_(stretch)
            start += len(stretch)
        return whole

    def load(self, buffer: Buffer, manifest: Sequence[TensorSpec]) -> None:
        """Copy a buffer into the parameters that its manifest names; the buffer, read-only or not, is not kept.

        Raises:
            WeightsMismatchError: a tensor is unknown or of another shape; nothing was copied.
        """
        for run in self._runs(manifest):
            values = buffer[run.source : run.source + run.size]
            stretch = self.stretches[run.stretch]
            if _is_plain(stretch):
                np.copyto(_array(stretch)[run.target : run.target + run.size], values)
            else:
                self._cast(stretch[run.target : run.target + run.size], values)

    def _runs(self, manifest: Sequence[TensorSpec]) -> Iterator[Run]:
        """The longest pieces that lie alike on both sides, what fills the gaps of alignment included."""
        run: Run | None = None
        for spec, place in sorted(self._matched(manifest), key=lambda pair: pair[0].offset):
            if run is not None and _continues(run, spec, place):
                run = run._replace(size=spec.offset - run.source + place.size)
                continue
            if run is not None:
                yield run
            run = Run(place.stretch, spec.offset, place.offset, place.size)
        if run is not None:
            yield run

    def _matched(self, manifest: Sequence[TensorSpec]) -> list[tuple[TensorSpec, Place]]:
        for spec in manifest:
            place = self.places.get(spec.name)
            _match(spec, None if place is None else place.shape)
        return [(spec, self.places[spec.name]) for spec in manifest]

    def _cast(self, target: Tensor, values: Buffer) -> None:
        """By way of memory that may be written and, for a GPU, is pinned; the cast happens where the parameters are."""
        if self._staging is None:
            self._staging = torch.empty(PIECE, pin_memory=target.device.type == "cuda")
        for start in range(0, len(values), PIECE):
            piece = values[start : start + PIECE]
            staged = self._staging[: len(piece)]
            np.copyto(staged.numpy(), piece)
            target[start : start + len(piece)].copy_(staged.to(target.device))


def can_lie_on(parameters: Iterable[tuple[str, nn.Parameter]], buffer: Buffer, manifest: Sequence[TensorSpec]) -> bool:
    """Whether `lay_on` may be called: nobody writes to the buffer, and it is in precision, place and order as they are.

    Order: where a tensor does not begin at a multiple of 64 bytes, kernels may round otherwise.
    """
    if buffer.flags.writeable or buffer.ctypes.data % (ALIGNED * buffer.itemsize):
        return False
    return all(_is_plain(parameter) for _, parameter in parameters) and not any(s.offset % ALIGNED for s in manifest)


def lay_on(parameters: Iterable[tuple[str, nn.Parameter]], buffer: Buffer, manifest: Sequence[TensorSpec]) -> None:
    """Make the parameters that a manifest names views of its buffer; what they were before is let go.

    Nothing is copied, and all workers of a node share one memory. The buffer lives as long as they are views of it.
    Whoever writes to such a parameter changes the model of all of them, for torch does not heed that numpy forbids it:
    only for models that are read.

    Args:
        parameters: distinct ones, by name.
        buffer: one to which nobody writes any more, see `can_lie_on`.
        manifest: of the buffer.

    Raises:
        WeightsMismatchError: a tensor is unknown or of another shape; nothing was changed.
    """
    by_name = dict(parameters)
    for spec in manifest:
        parameter = by_name.get(spec.name)
        _match(spec, None if parameter is None else tuple(parameter.shape))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor is it written to
        whole = torch.from_numpy(buffer)
    for spec in manifest:
        by_name[spec.name].data = whole[spec.offset : spec.offset + math.prod(spec.shape)].view(spec.shape)


def _match(spec: TensorSpec, shape: tuple[int, ...] | None) -> None:
    if shape != spec.shape:
        has = "no such tensor" if shape is None else f"shape {shape}"
        raise WeightsMismatchError(f"published {spec.name!r} has shape {spec.shape}; the worker has {has}")


def _continues(run: Run, spec: TensorSpec, place: Place) -> bool:
    """Whether a tensor comes next in the buffer and in the stretch, with no other between."""
    lies_alike = run.stretch == place.stretch and spec.offset - run.source == place.offset - run.target
    return lies_alike and spec.offset - run.source - run.size < ALIGNED


def sealed(buffer: Buffer) -> Buffer:
    """A copy to which nobody writes and on which models can lie, see `can_lie_on`.

    Args:
        buffer: [n] float32.
    """
    memory = np.empty(len(buffer) + ALIGNED, dtype=np.float32)
    skipped = -(memory.ctypes.data // memory.itemsize) % ALIGNED
    copy = memory[skipped : skipped + len(buffer)]
    np.copyto(copy, buffer)
    copy.setflags(write=False)
    return copy


def _zeros(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Aligned memory; by numpy where it can be, which asks for large pages."""
    if device.type != "cpu" or dtype != torch.float32:
        return torch.zeros(size, dtype=dtype, device=device)
    memory = np.zeros(size + ALIGNED, dtype=np.float32)
    skipped = -(memory.ctypes.data // memory.itemsize) % ALIGNED
    return torch.from_numpy(memory[skipped : skipped + size])


def _is_plain(stretch: Tensor) -> bool:
    return stretch.device.type == "cpu" and stretch.dtype == torch.float32


def _array(stretch: Tensor) -> Buffer:
    array: Buffer = stretch.numpy()
    return array
