"""What every objective has in common: the batch that it gets, the loss that it gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vitrail.models.base import ImageClassifier


@dataclass(frozen=True)
class Example:
    """A batch as an objective gets it, on the device.

    Args:
        images: normalised, float [b c h w].
        labels: int64 [b]; of multi-label data float [b k], 1 for each class that is there.
        targets: soft labels float [b k] that replace the labels (mixup), or None.
        pixels: the same pictures before that, uint8 [b h w 3], or None.
        epochs, indices, repeats: b whole numbers, on the CPU: which samples these are, and how
            often they came before in their epoch, for an objective that draws random numbers; None
            where it shall draw the same for every batch.
    """

    images: Tensor
    labels: Tensor
    targets: Tensor | None = None
    pixels: Tensor | None = None
    epochs: Tensor | Sequence[int] | None = None
    indices: Tensor | Sequence[int] | None = None
    repeats: Tensor | Sequence[int] | None = None


@dataclass(frozen=True)
class Loss:
    """A scalar to descend, and its parts for the record (floats by name)."""

    value: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """What a model and a batch are compared by.

    An objective may have parameters of its own (a decoder, a mask token): they are trained, saved
    with the checkpoints and left out of the model folder.

    Attributes:
        labelled: whether it teaches the classes, so that accuracy is what a run is watched by.
            Without labels it is watched by its own loss on the validation images.
    """

    labelled = True

    def forward(self, model: Callable[..., Tensor], batch: Example) -> Loss:
        """The loss of the model (or of its compiled twin) on the batch."""
        raise NotImplementedError


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


def full_precision(tensor: Tensor) -> Tensor:
    """A half-precision tensor in float32, since a loss is not for half precision; others as is."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
