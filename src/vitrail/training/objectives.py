"""Objectives: what a model and a batch are compared by. The loop does not know which it runs."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Example:
    """A batch as an objective gets it, on the device.

    Args:
        images: normalised, float [b c h w].
        labels: int64 [b].
        targets: soft labels float [b k] that replace the labels (mixup), or None.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """A scalar to descend, and its parts for the record (floats by name)."""

    value: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Objective(Protocol):
    """What the loop asks of an objective."""

    def __call__(self, model: Callable[[Tensor], Tensor], batch: Example) -> Loss:
        """The loss of the model (or of its compiled twin) on the batch."""
        ...


@dataclass(frozen=True)
class Supervised:
    """Softmax cross-entropy against labels or soft targets, averaged over the batch."""

    label_smoothing: float = 0.0

    def __call__(self, model: Callable[[Tensor], Tensor], batch: Example) -> Loss:
        """Parts: ``accuracy``, of the batch against the heaviest label of each picture."""
        logits = model(batch.images)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()  # autocast: the loss is not for half precision
        target = batch.labels if batch.targets is None else batch.targets.to(logits.dtype)
        loss = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        labels = batch.labels if batch.targets is None else batch.targets.argmax(dim=-1)
        accuracy = (logits.detach().argmax(dim=-1) == labels).float().mean()
        return Loss(loss, {"accuracy": accuracy})
