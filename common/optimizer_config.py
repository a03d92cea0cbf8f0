"""Which optimizer, and its numbers. Imports pydantic only."""

from typing import Annotated, Literal

from pydantic import Field

from common.config_base import Config

Decay = Annotated[float, Field(ge=0, lt=1)]


class AdamW(Config):
    """Adam with decoupled weight decay (arXiv:1711.05101), on all parameters."""

    type: Literal["adamw"] = "adamw"
    """Tag of the union."""
    lr: float = Field(gt=0)
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of the first and second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay, times the learning rate, per step."""


class Muon(Config):
    """Muon (Jordan et al. 2024; arXiv:2502.16982) on hidden matrices, AdamW on embeddings, head, norms and biases."""

    type: Literal["muon"] = "muon"
    """Tag of the union."""
    lr: float = Field(gt=0)
    """Peak learning rate of the hidden matrices."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Nesterov momentum of the hidden matrices."""
    adjust_lr: Literal["original", "match_rms_adamw"] = "original"
    """How the rate of a matrix follows from its shape (torch.optim.Muon's `adjust_lr_fn`)."""
    adamw_lr: float = Field(gt=0)
    """Peak learning rate of everything else."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW's decay of the first and second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay of both groups."""


Optimizer = Annotated[AdamW | Muon, Field(discriminator="type")]
