"""Models whose answer is known from their weights: what an explanation of them must find."""

from types import SimpleNamespace

import torch
from torch import Tensor, nn

from vitrail.models.base import ImageClassifier
from vitrail.models.tape import Tape, record


class Planted(ImageClassifier):
    """Two classes: the first one's logit is a weighted sum of the pixels to a power, the other's 0.

    Args:
        weights: [c h w].
        power: 1 for a linear model, 2 for one whose gradient is linear.
    """

    def __init__(self, weights: Tensor, power: int = 1):
        height, width = weights.shape[1:]
        config = SimpleNamespace(num_classes=2, image_size=(height, width), in_channels=3)
        super().__init__(config)
        self.weights = nn.Parameter(weights)
        self.power, self.head = power, nn.Identity()
        self.seen: list[Tensor] = []

    def features(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        self.seen.append(images.detach().clone())
        logit = (images**self.power * self.weights).sum((1, 2, 3))
        return record(tape, "pooled", torch.stack([logit, torch.zeros_like(logit)], 1))


def by_patch(values: Tensor, patch: int, channels: int = 3) -> Tensor:
    """Values [b rows columns] as flat patches of a picture [b c h w]."""
    picture = values.repeat_interleave(patch, 1).repeat_interleave(patch, 2)
    return picture[:, None].repeat(1, channels, 1, 1)
