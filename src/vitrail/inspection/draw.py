"""Pictures of what a model looks at: rollout maps, and heat laid over an image."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vitrail.inspection.flow import flow, reading
from vitrail.inspection.look import evaluating, hear, layers_with_attention
from vitrail.inspection.pictures import evened
from vitrail.kit.chart import heat_colors
from vitrail.models.base import ImageClassifier


def attention_maps(
    model: ImageClassifier, images: Tensor, fuse: str = "mean", residual: float = 0.5
) -> Tensor:
    """How much each patch contributes to what the head sees, by attention rollout.

    A model with a class token is read at its row, one with attention pooling through the pooling's
    own weights, any other by the mean over the patches. Registers are left out. In families of
    several stages, or with fewer keys than queries, see `flow`.

    Args:
        model: left in the mode that it was in.
        images: uint8 [b h w c], after `preprocessing.geometry`.
        fuse, residual: see `attention.rollout`.

    Returns:
        Float [b rows columns] on the grid of the first layer that attends, as equal cells of the
        picture, on the CPU; each map sums to at most 1.

    Raises:
        Error: the model has no attention from place to place.
    """
    size = (images.shape[1], images.shape[2])
    layers = layers_with_attention(model, size)
    weight, maps = next(model.parameters()), []
    with evaluating(model):
        # One at a time: the attention of all layers of a large model fills memory quickly.
        for image in images:
            floats = model.preprocessing.normalize(image[None].to(weight.device)).to(weight.dtype)
            heard = hear(model, floats, layers, fuse)
            read = reading(model, layers[-1], heard.pooling)
            maps.append(flow(layers, heard.fused, read, residual).float().cpu().numpy())
    return torch.from_numpy(evened(np.concatenate(maps), layers[0].queries, size))


def overlay(image: np.ndarray, heat: Tensor | np.ndarray, alpha: float = 0.6) -> np.ndarray:
    """Lay heat over an image in colour: yellow where it is strongest, dark blue where weakest.

    Args:
        image: uint8 [h w 3] or [h w 1].
        heat: [rows columns], any range: scaled from its own least to its own greatest, then
            upsampled bilinearly.
        alpha: how much the colour covers, 0..1.

    Returns:
        uint8 [h w 3].
    """
    values = torch.as_tensor(heat, dtype=torch.float32)
    values = values - values.min()
    values = values / values.max().clamp(min=torch.finfo(values.dtype).tiny)
    size = (image.shape[0], image.shape[1])
    smooth = functional.interpolate(values[None, None], size, mode="bilinear", align_corners=False)
    colors = heat_colors(smooth[0, 0].numpy())
    mixed = (1 - alpha) * image.astype(np.float32) + alpha * colors
    return np.rint(mixed).astype(np.uint8)
