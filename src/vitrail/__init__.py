"""Vitrail: Vision Transformers for image classification.

Train, transfer, evaluate, inspect and use ViT and the networks that it is measured against.
The names below are the whole public face; they are imported on first use, so that
`import vitrail` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Classifier": "vitrail.serving.classifier",
    "Error": "vitrail.kit.errors",
    "Recorded": "vitrail.models.tape",
    "Tape": "vitrail.models.tape",
    "WeightsError": "vitrail.kit.errors",
    "create_model": "vitrail.weights.load",
    "list_models": "vitrail.models.zoo",
    "load_model": "vitrail.weights.folder",
    "load_weights": "vitrail.weights.load",
    "save_model": "vitrail.weights.folder",
    "train": "vitrail.recipes.run",
}
__all__ = [
    "Classifier",
    "Error",
    "Recorded",
    "Tape",
    "WeightsError",
    "create_model",
    "list_models",
    "load_model",
    "load_weights",
    "save_model",
    "train",
]

if TYPE_CHECKING:
    from vitrail.kit.errors import Error, WeightsError
    from vitrail.models.tape import Recorded, Tape
    from vitrail.models.zoo import list_models
    from vitrail.recipes.run import train
    from vitrail.serving.classifier import Classifier
    from vitrail.weights.folder import load_model, save_model
    from vitrail.weights.load import create_model, load_weights


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'vitrail' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
