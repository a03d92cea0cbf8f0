"""AdamW and Muon from their configuration, and their state as plain tensors and JSON."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from common.errors import CheckpointError, ConfigError
from common.optimizer_config import AdamW, Muon
from common.optimizer_config import Optimizer as OptimizerConfig

Named = tuple[str, nn.Parameter]


def build_optimizers(
    config: OptimizerConfig, trunk: Iterable[Named], *, head: Sequence[nn.Parameter] = (), head_lr: float | None = None
) -> list[Optimizer]:
    """Optimizers for a model's trainable parameters.

    Args:
        config: which, and the peak learning rates.
        trunk: named parameters; frozen ones are left out.
        head: parameters with a rate of their own, always by AdamW.
        head_lr: that rate; None: the AdamW rate of the trunk.

    Returns:
        One optimizer, or Muon's two: Muon proper for hidden matrices; AdamW for embeddings, output head, norms, biases.
    """
    named = [(name, p) for name, p in trunk if p.requires_grad]
    match config:
        case AdamW():
            groups = [_group([p for _, p in named], config.lr), _group(head, head_lr or config.lr)]
            return [_adamw([g for g in groups if g["params"]], config.betas, config.eps, config.weight_decay)]
        case Muon():
            matrices = [p for name, p in named if p.ndim == 2 and not is_table(name)]
            rest = [p for name, p in named if p.ndim != 2 or is_table(name)]
            if not matrices:
                raise ConfigError('Muon needs hidden matrices, and this model has none; choose type = "adamw"')
            groups = [_group(rest, config.adamw_lr), _group(head, head_lr or config.adamw_lr)]
            muon = torch.optim.Muon(
                matrices,
                lr=config.lr,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                adjust_lr_fn=config.adjust_lr,
            )
            return [muon, _adamw([g for g in groups if g["params"]], config.betas, 1e-8, config.weight_decay)]


def is_table(name: str) -> bool:
    """Embeddings and output heads: their rows are looked up or compared, not composed as hidden matrices are."""
    return any(part in name for part in ("embed", "wte", "wpe", "head", "score", "classifier", "words", "pairs"))


def _group(parameters: Sequence[nn.Parameter], lr: float) -> dict[str, Any]:
    return {"params": list(parameters), "lr": lr, "peak_lr": lr}


def _adamw(
    groups: list[dict[str, Any]], betas: tuple[float, float], eps: float, weight_decay: float
) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)


def set_rate(optimizers: Sequence[Optimizer], scale: float) -> None:
    """Set every group's rate to `scale` times its peak rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("peak_lr", group["lr"]) * scale


def pack_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimizer's state as named tensors (`3.exp_avg`) and JSON-able groups."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{key}": value.detach().contiguous()
        for index, slots in state["state"].items()
        for key, value in slots.items()
    }
    return tensors, state["param_groups"]


def unpack_state(optimizer: Optimizer, tensors: dict[str, Tensor], groups: list[dict[str, Any]]) -> None:
    """Put back what `pack_state` took; raises CheckpointError if it is of another set of parameters."""
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        slots.setdefault(int(index), {})[key] = value
    try:
        optimizer.load_state_dict({"state": slots, "param_groups": groups})
    except ValueError as error:
        raise CheckpointError(f"optimizer state does not fit the model: {error}") from error
