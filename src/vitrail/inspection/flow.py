"""Attention rollout for every family: what the head reads, followed back to the picture.

In a plain Transformer this is Abnar and Zuidema's rollout read at the head's token, and equal to
`attention.rollout` to the last digits: it is only followed from the end, as one row of weights,
where rollout multiplies whole matrices. For other families the paper has no definition. Ours:
- within a stage, as in the paper; where keys are reduced, the weight of a key goes to the tokens
  of the window that it was made of;
- between stages, the weight of a token goes to the tokens of the stage before that its embedding
  (or pooling) sees; in both, in equal parts, or where windows overlap most to their middle
  (`places.windows`), so that attention to all tokens alike stays so;
- weight that falls on padding, or that is left on a class token where its stage begins, came from
  no place in the picture and is left out.
Convolutions and channels are not looked at, and what lies before the first attention (the stages
of a BoTNet, a hybrid's ResNet, a Performer) is not undone: the map lies on the first layer's grid.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vitrail.inspection.places import Layer, Windows
from vitrail.models.base import ImageClassifier


def reading(model: ImageClassifier, last: Layer, pooling: Tensor | None = None) -> Tensor:
    """How the head reads the last layer's tokens: weights [b or 1, n] that sum to 1.

    Args:
        last: the last layer of attention.
        pooling: an attention pooling's own weights [b h 1 n], where the model has one.
    """
    prefix, tokens = last.queries.prefix, last.queries.tokens
    if pooling is not None:
        weights = pooling.float().mean(1)[:, 0]
        return torch.nn.functional.pad(weights, (tokens - weights.shape[1], 0))
    pool = getattr(model.config, "pool", "token" if prefix else "mean")
    read = torch.zeros(1, tokens)
    if getattr(model.config, "distilled", False):
        read[:, :2] = 0.5
    elif pool == "token":
        read[:, 0] = 1
    else:
        read[:, prefix:] = 1 / (tokens - prefix)
    if pool == "token_mean":
        read = read / 2
        read[:, 0] += 0.5
    return read


def flow(
    layers: Sequence[Layer],
    heads: Sequence[Tensor | None],
    read: Tensor,
    residual: float | None = 0.5,
) -> Tensor:
    """Follow weights on the last layer's tokens back to the grid of the first layer.

    Args:
        layers: see `places.layers_of`.
        heads: each layer's attention with its heads fused, [b n m]; see `attention.fused`. None
            for a layer that is left out, through which every token passes as it is.
        read: [b n], weights on what leaves the last layer.
        residual: the identity's share, as for `attention.rollout`. None is Chefer, Gur and Wolf's
            rule for relevance instead (arXiv 2103.15679, equation 6): w + w A, rows not scaled.

    Returns:
        [b rows columns]; each map of a rollout sums to what of the read weights comes from places.
    """
    like = next((attention for attention in heads if attention is not None), read)
    weights = read.to(like).expand(like.shape[0], -1)
    for index in reversed(range(len(layers))):
        layer, attention = layers[index], heads[index]
        if attention is not None:
            weights = _through(layer, attention, weights, residual)
        if layer.arrived is not None:
            prefix = layer.queries.prefix
            weights = _spread(weights[:, prefix:], layer.queries.grid, 0, layer.arrived)
            before = layers[index - 1].queries.prefix
            weights = torch.nn.functional.pad(weights, (before, 0))
    first = layers[0].queries
    return weights[:, first.prefix :].unflatten(1, first.grid)


def _through(layer: Layer, attention: Tensor, weights: Tensor, residual: float | None) -> Tensor:
    """Weights [b n] on what leaves a layer to those on what enters it."""
    share, kept = weights, weights
    if residual is not None:
        sums = (1 - residual) * attention.sum(-1) + residual
        # A row with nothing left, neither attention nor identity, stays where it is.
        nothing = sums <= 0
        scaled = torch.where(nothing, 0, weights / sums.masked_fill(nothing, 1))
        share = (1 - residual) * scaled
        kept = residual * scaled + torch.where(nothing, weights, 0)
    keys = (share[:, None] @ attention)[:, 0]
    if layer.reduced is not None:
        keys = _spread(keys, layer.keys.grid, layer.keys.prefix, layer.reduced)
    return kept + keys


def _spread(weights: Tensor, grid: tuple[int, int], prefix: int, seen: Windows) -> Tensor:
    """Weights [b prefix+n] on a grid to those on the grid that its windows see."""
    rows, columns = (_as(weights, matrix) for matrix in seen)
    picture = weights[:, prefix:].unflatten(1, grid)
    return torch.cat([weights[:, :prefix], (rows.T @ picture @ columns).flatten(1)], dim=1)


def _as(like: Tensor, matrix: np.ndarray) -> Tensor:
    return torch.as_tensor(matrix, dtype=like.dtype, device=like.device)
