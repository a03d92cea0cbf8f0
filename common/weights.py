"""A model's weights as one flat buffer with a manifest: what is published, and the hashes by which it is checked.

One flat numpy array crosses Ray's object store without a copy per tensor (18 times faster than pickled torch tensors).
How parameters lie in memory, and how a buffer gets into them: `common/flat_parameters.py`.
"""

import dataclasses
from collections.abc import Collection

import numpy as np
import torch
import xxhash
from torch import nn

from common.flat_parameters import Buffer
from common.modeling import load_policy
from common.records import Identity, TensorSpec, WeightsHandle


def distinct_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Every parameter once: of tied ones the first name stands for all."""
    return list(model.named_parameters(remove_duplicate=True))


def flatten(model: nn.Module) -> tuple[Buffer, tuple[TensorSpec, ...]]:
    """Copy all parameters into one float32 buffer.

    Returns:
        [N] float32, and where each tensor lies in it.
    """
    parameters = distinct_parameters(model)
    buffer = np.empty(sum(p.numel() for _, p in parameters), dtype=np.float32)
    specs, offset = [], 0
    for name, parameter in parameters:
        values = parameter.detach().to("cpu", torch.float32).reshape(-1).numpy()
        buffer[offset : offset + values.size] = values
        specs.append(TensorSpec(name, tuple(parameter.shape), str(parameter.dtype).removeprefix("torch."), offset))
        offset += values.size
    return buffer, tuple(specs)


def buffer_hash(buffer: Buffer) -> int:
    """xxh3-64 of the buffer's bytes: fast, and no defence against an attacker."""
    return xxhash.xxh3_64_intdigest(buffer.data)


def rest_hash(model: nn.Module, sent: Collection[str], dtype: torch.dtype | None = None) -> int:
    """xxh3-64 of the names and values of all parameters that are not sent: frozen ones, equal on both sides.

    Args:
        model: learner's or worker's.
        sent: names of the tensors that travel.
        dtype: in which precision; None: in their own.
    """
    state = xxhash.xxh3_64()
    for name, parameter in distinct_parameters(model):
        if name not in sent:
            values = parameter.detach().to("cpu", dtype or parameter.dtype).contiguous()
            state.update(name.encode())
            state.update(values.view(-1).view(torch.uint8).numpy().data)
    return state.intdigest()


def weights_of(path: str, identity: Identity) -> WeightsHandle:
    """The weights of a model folder, as if a learner had published them: for evaluation."""
    buffer, manifest = flatten(load_policy(path))
    return WeightsHandle(identity, buffer, buffer_hash(buffer), manifest)


def detached(handle: WeightsHandle) -> tuple[Buffer, WeightsHandle]:
    """Buffer and handle as two objects, so that the driver can own the buffer without holding it."""
    return handle.ref, dataclasses.replace(handle, ref=None)
