"""What the writers of other libraries' layouts share: their outcome, and laying down files."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from vitrail.kit.errors import WeightsError, listing
from vitrail.models import zoo
from vitrail.models.base import ImageClassifier
from vitrail.weights.load import NUMERICS

SOFT = tuple(name for name in NUMERICS if name not in ("attention_scale", "position_resize"))
"""Numerics that are told, not refused, where a layout has no word for them."""


@dataclass
class Written:
    """What `convert` made.

    Attributes:
        path: the folder or file.
        layout: ``timm hf google``.
        name: what the other library calls the model.
        files: the names of the files.
        gap: how far logits and features are from the model's when the result is read back,
            relative to the largest.
        notes: what a user should know, in sentences.
    """

    path: Path
    layout: str
    name: str
    files: list[str]
    gap: float = 0.0
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.path} ({self.layout}: {self.name}): {', '.join(self.files)}"]
        lines.append(f"  {'logits':10}read back, within {self.gap:.1e} of the model's")
        return "\n".join([*lines, *(f"  {'note':10}{note}" for note in self.notes)])


def twin_of(config: Any, family: str) -> ImageClassifier:
    """A fresh model of the same config, to read into what was written."""
    return zoo.from_config(family, fields_of(config))


def fields_of(config: Any) -> dict[str, Any]:
    """A config's fields and values."""
    return {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}


def ready_to_save(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ready for safetensors: on the CPU, float32, of their own memory."""
    return {
        name: (t.detach().cpu().float() if t.is_floating_point() else t.detach().cpu()).clone()
        for name, t in ((name, t.contiguous()) for name, t in tensors.items())
    }


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON file for people to read too."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def refusal(library: str, what: list[str]) -> WeightsError:
    """The error of a layout that does not exist for a model."""
    return WeightsError(f"{library} has no model with {listing(what)}, so nothing was written")
