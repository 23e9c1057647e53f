"""Mixup and CutMix (arXiv 1710.09412, 1905.04899) on a batch that is on the device.

What is mixed with what is a function of (seed, epoch, position) alone: the partner of a picture is
the one before it in the global batch (the order is random already, so a fixed partner is as good
as a drawn one, and a process needs only one picture of its neighbour's share), the kind and the
shares are drawn once a batch.

How others' settings are said here:
- big_vision's ``mixup(p=P)`` (AugReg, "Better plain ViT baselines") is ``mixup=P``: Beta(P, P), the
  partner is the one before. There the share is max(a, 1 - a), so that a picture keeps the greater
  part of itself; here it is not folded. As partners are random both give the same mixed batches in
  distribution: two pictures at shares a and 1 - a.
- timm's ``Mixup(mixup_alpha, cutmix_alpha, prob, switch_prob, mode="batch")`` (DeiT: 0.8, 1.0, 1.0,
  0.5) is ``mixup, cutmix, prob, switch``. Its partner is the batch in reverse; its CutMix box has
  whole sides and corrects the share for what is clipped, as here. Its label smoothing comes before
  mixing, which is the same as after.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vitrail.data.draws import mix_generator


@dataclass(frozen=True)
class Mix:
    """How one global batch is mixed.

    Attributes:
        share: what a picture keeps of itself, 0..1.
        box: of CutMix, (top, left, bottom, right) as shares of the sides; None for mixup.
    """

    share: float
    box: tuple[float, float, float, float] | None = None


def mix(
    images: Tensor,
    targets: Tensor,
    *,
    seed: int,
    epoch: int,
    position: int,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    prob: float = 1.0,
    switch: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Draw and mix a global batch: `draw_mix`, then `apply_mix`.

    Args:
        images: normalised, float [b c h w].
        targets: probabilities, float [b k] (`soft_targets`).
        seed, epoch, position, mixup, cutmix, prob, switch: see `draw_mix`.
    """
    drawn = draw_mix(seed, epoch, position, mixup, cutmix, prob, switch)
    return (images, targets) if drawn is None else apply_mix(images, targets, drawn)


def draw_mix(
    seed: int,
    epoch: int,
    position: int,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    prob: float = 1.0,
    switch: float = 0.5,
) -> Mix | None:
    """The mix of the global batch that starts at ``position`` of this epoch's order.

    Args:
        seed, epoch, position: the place of the batch in the run.
        mixup: alpha of mixup's Beta(alpha, alpha); 0: never.
        cutmix: alpha of CutMix's; 0: never. With both, each batch has one of them.
        prob: probability that a batch is mixed at all.
        switch: probability that it is CutMix's turn, where both are given.

    Returns:
        The mix, or None for a batch that stays as it is.
    """
    if mixup <= 0 and cutmix <= 0:
        return None
    generator = mix_generator(seed, epoch, position)
    if prob < 1 and generator.random() >= prob:
        return None
    cut = cutmix > 0 and (mixup <= 0 or generator.random() < switch)
    share = _beta(generator, cutmix if cut else mixup)
    if not cut:
        return Mix(share)
    half = math.sqrt(1 - share) / 2
    down, across = generator.random(), generator.random()
    top, left = max(0.0, down - half), max(0.0, across - half)
    return Mix(share, (top, left, min(1.0, down + half), min(1.0, across + half)))


def apply_mix(images: Tensor, targets: Tensor, mix: Mix) -> tuple[Tensor, Tensor]:
    """Mix every picture with the one before it: float [b c h w] and [b k], both new tensors."""
    share = mix.share
    if mix.box is None:
        images = torch.lerp(images.roll(1, 0), images, share)
    else:
        height, width = images.shape[-2:]
        top, left, bottom, right = mix.box
        rows = slice(round(top * height), round(bottom * height))
        columns = slice(round(left * width), round(right * width))
        mixed = images.clone()
        mixed[..., rows, columns] = images.roll(1, 0)[..., rows, columns]
        images = mixed
        # The box was clipped at the edges and to whole pixels: its true area counts.
        taken = (rows.stop - rows.start) * (columns.stop - columns.start)
        share = 1 - taken / (height * width)
    return images, torch.lerp(targets.roll(1, 0), targets, share)


def soft_targets(labels: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """Labels, int64 [b], to probabilities, float [b k]: one-hot, smoothed towards uniform."""
    targets = torch.full(
        (len(labels), classes), smoothing / classes, dtype=torch.float32, device=labels.device
    )
    return targets.scatter_(1, labels[:, None], 1 - smoothing + smoothing / classes)


def _beta(generator: np.random.Generator, alpha: float) -> float:
    """Beta(alpha, alpha) by Jöhnk's rejection: uniforms alone, whose stream numpy keeps."""
    while True:
        x, y = (generator.random() ** (1 / alpha) for _ in range(2))
        if 0 < x + y <= 1:
            return x / (x + y)
