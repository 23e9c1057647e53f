"""What attention matrices say: how far heads look, how widely, and what reaches the output.

Pure functions of the tensors on a tape ("blocks.3.attention", [b h n m]: row = query, column =
key, rows sum to 1; n = m unless keys are reduced). They follow the ViT paper (Dosovitskiy et al.,
2021, section 4.5, Figure 7 and appendices D.7 and D.8) and, for rollout, Abnar and Zuidema
("Quantifying Attention Flow in Transformers", 2020).
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitrail.kit.errors import Error, did_you_mean

FUSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda heads: heads.mean(1),
    "max": lambda heads: heads.amax(1),
    "min": lambda heads: heads.amin(1),
}


def attention_distance(
    attention: Tensor,
    grid: int | tuple[int, int],
    patch_size: int | tuple[int, int],
    prefix: int = 1,
) -> Tensor:
    """How far each head looks, in pixels: [b h].

    For each patch the mean distance between its centre and the others', weighted by attention;
    then the mean over patches. Class token and registers are left out, and each row of weights is
    scaled to sum to 1 without them (the paper does not say; a patch that attends to nothing but
    such tokens has no distance and is left out of the mean).

    Args:
        attention: [b h n n] with n = prefix + patches.
        grid: (rows, columns) of patches; one number for a square.
        patch_size: pixels, or (height, width).
        prefix: how many tokens stand before the patches.

    Raises:
        Error: the grid and the prefix do not make n tokens, or keys are fewer than queries.
    """
    rows, columns = _pair(grid)
    height, width = _pair(patch_size)
    n = prefix + rows * columns
    if attention.shape[-2:] != (n, n):
        raise Error(
            f"attention of {tuple(attention.shape[-2:])} tokens does not fit a grid of {rows} x "
            f"{columns} patches after {prefix} other tokens, which makes {n} x {n}"
        )
    y = torch.arange(rows, device=attention.device).repeat_interleave(columns) * height
    x = torch.arange(columns, device=attention.device).repeat(rows) * width
    distances = torch.hypot(
        (y[:, None] - y[None]).to(attention.dtype), (x[:, None] - x[None]).to(attention.dtype)
    )
    return mean_distance(attention, distances, prefix)


def mean_distance(attention: Tensor, distances: Tensor, prefix: int = 0) -> Tensor:
    """`attention_distance` where the keys may lie elsewhere than the queries, and be fewer.

    Args:
        attention: [b h prefix+n prefix+m].
        distances: [n m], from each query to each key; see `places.Places.distances`.
        prefix: how many tokens stand before the queries, and as many before the keys.

    Returns:
        [b h], in the unit of the distances.
    """
    weights = attention[..., prefix:, prefix:]
    if weights.shape[-2:] != distances.shape:
        raise Error(
            f"attention of {tuple(attention.shape[-2:])} tokens, {prefix} of them before the grid, "
            f"does not fit distances of {tuple(distances.shape)}"
        )
    far = (weights * distances.to(weights)).sum(-1)
    return (far / weights.sum(-1)).nanmean(-1)


def entropy(attention: Tensor) -> Tensor:
    """How widely each head looks, in nats: [b h n m] to [b h], the mean over queries.

    0 is one single key, ln(m) all keys alike.
    """
    return torch.special.entr(attention).sum(-1).mean(-1)


def rollout(
    attentions: Sequence[Tensor], fuse: str = "mean", residual: float = 0.5, discard: float = 0.0
) -> Tensor:
    """How much of each input token reaches each output token: [b n n], rows sum to 1.

    Each layer's heads are fused, the identity stands for the residual path, rows are scaled to
    sum to 1, and the layers are multiplied, the last one leftmost. Models of several stages or
    with fewer keys than queries: `flow.flow`.

    Args:
        attentions: one [b h n n] a layer, first layer first.
        fuse: ``mean`` (the paper), ``max`` or ``min`` over heads.
        residual: the identity's share, 0..1; 0.5 is Abnar and Zuidema's A + I.
        discard: the share of each picture's fused weights, the smallest, that is left out before
            the identity is added and rows are scaled; 0 (the paper) for none.

    Raises:
        Error: no layers, layers that are not square or not alike, an unknown ``fuse``, or a share
            out of range.
    """
    check_rollout(fuse, residual, discard)
    if not attentions:
        raise Error("there is no attention to roll out: the tape holds none")
    shapes = {(layer.shape[0], *layer.shape[2:]) for layer in attentions}
    if len(shapes) > 1 or any(layer.shape[2] != layer.shape[3] for layer in attentions):
        raise Error("rollout needs layers of one number of tokens, every token attending to all")
    steps = (_step(fused(layer, fuse, discard), residual) for layer in attentions)
    return functools.reduce(lambda below, step: step @ below, steps)


def check_rollout(fuse: str, residual: float, discard: float) -> None:
    """Raise an Error unless `rollout` takes these."""
    if fuse not in FUSIONS:
        near = did_you_mean(fuse, FUSIONS)
        raise Error(f"cannot fuse heads by {fuse!r}{near}; it is one of {', '.join(FUSIONS)}")
    if not 0 <= residual <= 1:
        raise Error(f"residual is a share between 0 and 1, not {residual}")
    if not 0 <= discard < 1:
        raise Error(f"discard is a share from 0 up to 1, not {discard}")


def fused(attention: Tensor, fuse: str = "mean", discard: float = 0.0) -> Tensor:
    """The heads of a layer as one, [b h n m] to [b n m], without the smallest weights.

    Of each picture's n x m weights the share ``discard`` that is smallest becomes 0. Rows are left
    as they are, so they need not sum to 1.
    """
    heads = FUSIONS[fuse](attention)
    count = int(discard * heads[0].numel())
    if not count:
        return heads
    flat = heads.flatten(1)
    dropped = flat.argsort(dim=1, stable=True)[:, :count]
    return flat.scatter(1, dropped, 0.0).view_as(heads)


def _step(heads: Tensor, residual: float) -> Tensor:
    identity = torch.eye(heads.shape[-1], dtype=heads.dtype, device=heads.device)
    mixed = (1 - residual) * heads + residual * identity
    sums = mixed.sum(-1, keepdim=True)
    # A row with nothing left, neither attention nor identity, stays where it is.
    return torch.where(sums > 0, mixed / sums.clamp(min=torch.finfo(mixed.dtype).tiny), identity)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
