"""Tiny models and pictures for the tests of weights."""

import numpy as np
import pytest
import torch

from vitrail.models.zoo import from_config

SIZES = {
    "patch_size": 4,
    "depth": 2,
    "width": 24,
    "heads": 3,
    "mlp_width": 40,
    "num_classes": 5,
    "image_size": 12,
}


@pytest.fixture
def tiny():
    """A function that makes a tiny ViT in float64 from config fields."""

    def make(dtype=torch.float64, **fields):
        return from_config("vit", {**SIZES, **fields}).to(dtype)

    return make


@pytest.fixture
def images():
    """A function that makes normalised images float64 [2 c h w]."""

    def make(height=12, width=None, channels=3):
        generator = torch.Generator().manual_seed(1)
        shape = (2, channels, height, width or height)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return make


def close(ours: torch.Tensor, theirs: torch.Tensor | np.ndarray, tolerance: float = 1e-9) -> bool:
    """Whether two sets of logits agree relative to the largest."""
    theirs = torch.as_tensor(theirs)
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())
