"""Learning from labels: softmax, or a yes or no for each class."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.kit.errors import Error
from vitrail.training.objectives.base import Example, Loss, Objective, full_precision


class Supervised(Objective):
    """A loss against labels or soft targets, averaged over the batch.

    Args:
        label_smoothing: the share of probability spread evenly over all classes.
        loss: ``softmax``: cross-entropy. ``sigmoid``: binary cross-entropy summed over the
            classes (big_vision utils.py sigmoid_xent). ``bce``: its mean over the classes, against
            1 wherever the target is above 0 (DeiT-III engine.py).
        class_weights: float [k] that each class's part of the loss is multiplied by, or None.
    """

    class_weights: Tensor | None

    def __init__(
        self,
        label_smoothing: float = 0.0,
        loss: str = "softmax",
        class_weights: Tensor | None = None,
    ):
        super().__init__()
        self.label_smoothing = label_smoothing
        self.loss = loss
        # The data decide them, so they need not be in a checkpoint.
        self.register_buffer("class_weights", class_weights, persistent=False)

    def forward(self, model: Callable[..., Tensor], batch: Example) -> Loss:
        """Parts: ``accuracy``, of the batch against the heaviest label of each picture."""
        return self.compare(model(batch.images), batch)

    def compare(self, logits: Tensor, batch: Example) -> Loss:
        """The loss of logits [b k] that are there already."""
        logits = full_precision(logits)
        several = batch.labels.ndim == 2
        if several and self.loss == "softmax":
            raise Error("images of several labels need target.loss sigmoid, not softmax")
        if self.loss == "softmax":
            value = self._softmax(logits, batch)
        else:
            value = self._sigmoid(logits, batch)
        answers = logits.detach().argmax(dim=-1)
        if several and batch.targets is None:  # right is whatever is in the picture
            right = batch.labels.gather(1, answers[:, None])[:, 0] > 0
        else:
            labels = batch.labels if batch.targets is None else batch.targets.argmax(dim=-1)
            right = answers == labels
        return Loss(value, {"accuracy": right.float().mean()})

    def _softmax(self, logits: Tensor, batch: Example) -> Tensor:
        target = batch.labels if batch.targets is None else batch.targets.to(logits.dtype)
        if self.class_weights is None:
            return F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        weights = self.class_weights.to(logits.dtype)
        each = F.cross_entropy(
            logits, target, weights, reduction="none", label_smoothing=self.label_smoothing
        )
        return each.mean()

    def _sigmoid(self, logits: Tensor, batch: Example) -> Tensor:
        classes = logits.shape[-1]
        target = batch.labels if batch.targets is None else batch.targets
        if target.ndim == 1:
            target = F.one_hot(target, classes)
        target = target.to(logits.dtype)
        if self.loss == "bce":
            target = (target > 0).to(logits.dtype)
        elif self.label_smoothing:
            target = target * (1 - self.label_smoothing) + self.label_smoothing / classes
        weights = None if self.class_weights is None else self.class_weights.to(logits.dtype)
        each = F.binary_cross_entropy_with_logits(logits, target, weights, reduction="none")
        return each.mean() if self.loss == "bce" else each.sum(dim=-1).mean()


def balanced_weights(counts: Sequence[int] | np.ndarray) -> Tensor:
    """Weights that make every class count alike: n / (k * images of the class), float32 [k].

    Their mean over the images is 1, so the loss keeps its size; a class without images weighs 0.
    """
    images = torch.tensor(np.asarray(counts), dtype=torch.float64)
    present = (images > 0).sum().clamp(min=1)
    weights = torch.where(images > 0, images.sum() / (present * images.clamp(min=1)), 0.0)
    return weights.float()
