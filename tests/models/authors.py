"""The authors' own logits, kept as data, and the weights and images that they belong to.

The files in tests/data_reference hold, for each case, the config, the seed, the shape of the
images and the logits in float64, as the authors' repository computed them; each says how it was
made. Weights are drawn by name with numpy's legacy generator, whose streams never change, so that
the data hold no weights and do not depend on the order of anybody's layers.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).resolve().parents[1] / "data_reference"


def cases(family: str) -> dict[str, dict[str, Any]]:
    """The cases of a family by name: ``config``, ``seed``, ``images`` (a shape), ``logits``."""
    return json.loads((FOLDER / f"{family}.json").read_text())["cases"]


def logits_of(case: dict[str, Any]) -> Tensor:
    return torch.tensor(case["logits"], dtype=torch.float64)


def images_of(case: dict[str, Any]) -> Tensor:
    draw = np.random.RandomState(case["seed"]).standard_normal(case["images"])
    return torch.from_numpy(draw)


def fill(model: nn.Module, seed: int, factors: Mapping[str, float] | None = None) -> None:
    """Random values for every parameter and buffer, by name.

    Args:
        factors: endings of names, and what their tensors are multiplied by: queries and keys are
            made large, so that attention is not flat.
    """
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(drawn(name, tuple(tensor.shape), seed, factors or {}))


def drawn(name: str, shape: tuple[int, ...], seed: int, factors: Mapping[str, float]) -> Tensor:
    """The values of one tensor, float64."""
    noise = np.random.RandomState(zlib.crc32(name.encode()) ^ seed).standard_normal(shape)
    if name.endswith("running_var"):
        noise = 0.5 + np.abs(noise)
    elif name.endswith(("cls_token", "pos_embed", "running_mean")):
        noise = 0.5 * noise
    elif len(shape) > 1:
        noise = noise / np.prod(shape[1:]) ** 0.5
    elif name.endswith("weight"):  # norms
        noise = 1 + 0.3 * noise
    else:
        noise = 0.5 * noise
    for ending, factor in factors.items():
        if name.endswith(ending):
            noise = noise * factor
    return torch.from_numpy(np.asarray(noise))
