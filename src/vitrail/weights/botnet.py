"""BoTNet's state dicts: only our own, because nobody published weights of the paper's models."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.models.botnet import BoTNetConfig
from vitrail.weights.rules import Reading, Rule


def recognise(tensors: Mapping[str, Tensor], config: Any) -> Reading | None:
    """What a BoTNet's state dict holds; None where this is none, or not for this model."""
    if not isinstance(config, BoTNetConfig) or "layer1.0.conv1.weight" not in tensors:
        return None
    return Reading("vitrail", [Rule("{name}", "{name}")], tensors, droppable=("fc",))
