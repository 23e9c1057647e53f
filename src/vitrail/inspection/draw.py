"""Pictures of what a model looks at: rollout maps, and heat laid over an image."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from vitrail.inspection.attention import rollout
from vitrail.kit.chart import heat_colors
from vitrail.kit.errors import Error
from vitrail.models.base import ImageClassifier
from vitrail.models.tape import Tape


def attention_maps(
    model: ImageClassifier, images: Tensor, fuse: str = "mean", residual: float = 0.5
) -> Tensor:
    """How much each patch contributes to what the head sees, by attention rollout.

    A model with a class token is read at its row, one with attention pooling through the pooling's
    own weights, any other by the mean over the patches. Registers are left out.

    Args:
        model: left in the mode that it was in.
        images: uint8 [b h w c], after `preprocessing.geometry`.
        fuse, residual: see `attention.rollout`.

    Returns:
        Float [b rows columns], on the CPU; each map sums to at most 1.

    Raises:
        Error: the model's blocks do not attend from every patch to every other.
    """
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            # One at a time: the attention of all layers of a large model fills memory quickly.
            maps = [_attention_map(model, image[None], fuse, residual) for image in images]
    finally:
        model.train(was_training)
    return torch.cat(maps)


def _attention_map(model: ImageClassifier, image: Tensor, fuse: str, residual: float) -> Tensor:
    weight = next(model.parameters())
    floats = model.preprocessing.normalize(image.to(weight.device)).to(weight.dtype)
    tape = Tape(only=("blocks.*.attention", "pool.attention"))
    model(floats, tape=tape)
    layers = [tensor for name, tensor in tape.items() if name != "pool.attention"]
    if not layers:
        raise Error(
            f"{type(model).__name__} has no attention from patch to patch in all of its blocks, "
            "so there is no attention map to draw"
        )
    rows, columns = model.config.grid_of((image.shape[1], image.shape[2]))
    rolled = rollout(layers, fuse, residual)
    prefix = rolled.shape[1] - rows * columns
    if "pool.attention" in tape:
        read = tape["pool.attention"].mean(1)[:, 0]  # [b h 1 n] to [b n]
        flow = (read[:, None] @ rolled)[:, 0]
    elif model.config.pool == "token":
        flow = rolled[:, 0]
    else:
        flow = rolled[:, prefix:].mean(1)
    return flow[:, prefix:].reshape(-1, rows, columns).float().cpu()


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
