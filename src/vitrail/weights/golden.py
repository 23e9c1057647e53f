"""Golden values: what a model gave for two fixed pictures when it was saved.

They tell a folder whose files are whole but that no longer computes the same: another version of
a library, a field of the config edited by hand, weights swapped for others of the same shapes.
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.models.base import ImageClassifier, height_width

SEED = 0
TOLERANCE = 5e-5
"""Of the largest value. float32 differs by 1e-6 from float64 (BiT, the worst, by 1e-5), the tanh
form of GELU from the exact one by 1e-4 and more."""
KEPT = 64
"""How many values of the features and of the logits are kept, evenly spaced: under 3 kB."""


def golden_pictures(model: ImageClassifier) -> Tensor:
    """The pictures [2 c h w]: normal numbers from a generator whose stream never changes.

    Two, because torch's GroupNorm refuses a single map of one place.
    """
    shape = (2, model.config.in_channels, *height_width(model.config.image_size))
    numbers = np.random.RandomState(SEED).standard_normal(shape)
    return torch.from_numpy(numbers.astype(np.float32))


@torch.no_grad()
def golden_outputs(model: ImageClassifier) -> dict[str, Tensor]:
    """All features and logits of the pictures, by float32 on the CPU; the model stays as it is."""
    if model.training or {(p.dtype, p.device.type) for p in model.parameters()} != {
        (torch.float32, "cpu")
    }:
        model = copy.deepcopy(model).cpu().float().eval()
    with torch.autocast("cpu", enabled=False):
        pictures = golden_pictures(model)
        return {
            "features": model.features(pictures).flatten(),
            "logits": model(pictures).flatten(),
        }


def golden_values(model: ImageClassifier) -> dict[str, Any] | None:
    """What a model folder keeps, as plain JSON values; null for what is not finite.

    Returns:
        None where the model cannot be run here: that is no reason not to save it.
    """
    try:
        outputs = {name: _spaced(values).tolist() for name, values in golden_outputs(model).items()}
    except (RuntimeError, ValueError):
        return None
    kept = {
        name: [float(f"{x:.8g}") if np.isfinite(x) else None for x in values]
        for name, values in outputs.items()
    }
    return {"seed": SEED, "tolerance": TOLERANCE, **kept}


def golden_gap(model: ImageClassifier, golden: Mapping[str, Any]) -> float:
    """How far a model is from the values that were kept, relative to the largest of them.

    Raises:
        KeyError, TypeError, ValueError: these are no golden values, or of other sizes.
    """
    gaps = []
    for name, values in golden_outputs(model).items():
        then = np.array(golden[name], dtype=float)
        now = _spaced(values).double().numpy()
        if now.shape != then.shape:
            raise ValueError(f"{len(then)} {name} were kept, the model has {len(now)}")
        both = np.isnan(then) & ~np.isfinite(now)
        gap = np.abs(now - then)[~both]
        scale = np.nanmax(np.abs(then), initial=1e-12)
        gaps.append(float(np.nan_to_num(gap, nan=np.inf).max(initial=0.0) / scale))
    return max(gaps)


def relative_gap(one: ImageClassifier, other: ImageClassifier) -> float:
    """How far apart two models' logits and features of the pictures are, whichever is more.

    A head of zeros hides whatever stands before it. Features of other sizes are not compared.
    """
    gaps = [0.0]
    theirs = golden_outputs(other)
    for name, first in golden_outputs(one).items():
        if first.shape == theirs[name].shape:
            gap = (first - theirs[name]).double().abs().max()
            gaps.append((gap / first.double().abs().max().clamp_min(1e-12)).item())
    return max(gaps)


def _spaced(values: Tensor) -> Tensor:
    count = len(values)
    if count <= KEPT:
        return values
    return values[torch.linspace(0, count - 1, KEPT).round().long()]
