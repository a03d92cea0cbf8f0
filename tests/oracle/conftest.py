"""Loads the oracle by its path: test folders are not packages, and every one may have its own `oracle`."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def oracle():
    spec = importlib.util.spec_from_file_location("ppo_oracle", Path(__file__).with_name("oracle.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def ragged():
    """Makes a ragged batch from drawn lengths: standard normals at live slots, garbage and NaN at dead ones."""
    import torch

    def make(lengths, seed, num_tensors, extra=2):
        noise = torch.Generator().manual_seed(seed)
        B, R = len(lengths), max(lengths) + extra
        mask = torch.arange(R)[None, :] < torch.tensor(lengths)[:, None]
        garbage = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e6, -100.0], dtype=torch.float64)
        tensors = []
        for _ in range(num_tensors):
            live = torch.randn(B, R, generator=noise, dtype=torch.float64)
            dead = garbage[torch.randint(len(garbage), (B, R), generator=noise)]
            tensors.append(torch.where(mask, live, dead))
        return mask, tensors

    return make
