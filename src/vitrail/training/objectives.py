"""Objectives: what a model and a batch are compared by. The loop does not know which it runs."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.models.base import ImageClassifier


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


class Objective(nn.Module):
    """What a model and a batch are compared by.

    An objective may have parameters of its own (a decoder, a mask token): they are trained, saved
    with the checkpoints and left out of the model folder.
    """

    def forward(self, model: Callable[..., Tensor], batch: Example) -> Loss:
        """The loss of the model (or of its compiled twin) on the batch."""
        raise NotImplementedError


class Supervised(Objective):
    """Softmax cross-entropy against labels or soft targets, averaged over the batch.

    Args:
        label_smoothing: the share of probability spread evenly over all classes.
    """

    def __init__(self, label_smoothing: float = 0.0):
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, model: Callable[..., Tensor], batch: Example) -> Loss:
        """Parts: ``accuracy``, of the batch against the heaviest label of each picture."""
        logits = model(batch.images)
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()  # autocast: the loss is not for half precision
        target = batch.labels if batch.targets is None else batch.targets.to(logits.dtype)
        loss = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        labels = batch.labels if batch.targets is None else batch.targets.argmax(dim=-1)
        accuracy = (logits.detach().argmax(dim=-1) == labels).float().mean()
        return Loss(loss, {"accuracy": accuracy})


class Learner(nn.Module):
    """A model and its objective as one module: what learns, and what is shared out over processes.

    Args:
        model: what is kept.
        objective: what it is taught.
        compile: whether the model runs through `torch.compile`; the plain one stays in `model`,
            for evaluation, saving and parameter names.
    """

    def __init__(self, model: ImageClassifier, objective: Objective, compile: bool = False):
        super().__init__()
        self.model = model
        self.objective = objective
        # In a tuple: a compiled twin is no module of its own, with parameters under other names.
        self._run = (torch.compile(model) if compile else model,)

    def forward(self, batch: Example) -> Loss:
        """The loss on a batch."""
        return self.objective(self._run[0], batch)
