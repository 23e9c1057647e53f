"""Effects on the pixels of one picture: shift, mirror, colours, 3-Augment, random erasing.

All take and give uint8 [h w 3] and draw from the sample's generator, uniform numbers alone: those
are the same for every version of numpy.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from vitrail.data.crops import Range, below, planes, uniform_area_box

LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R 601
BLUR = (0.1, 2.0)  # radius in pixels, of 3-Augment


def shifted(pixels: np.ndarray, pad: int, generator: np.random.Generator) -> np.ndarray:
    """Moved by at most ``pad`` pixels along each axis; black comes in."""
    height, width = pixels.shape[:2]
    down, across = (below(generator, 2 * pad + 1) - pad for _ in range(2))
    moved = np.zeros_like(pixels)
    if abs(down) >= height or abs(across) >= width:
        return moved
    moved[max(down, 0) : height + min(down, 0), max(across, 0) : width + min(across, 0)] = pixels[
        max(-down, 0) : height - max(down, 0), max(-across, 0) : width - max(across, 0)
    ]
    return moved


def mirrored(pixels: np.ndarray) -> np.ndarray:
    """Left and right exchanged. (torch's is vectorised for three interleaved bytes.)"""
    return planes(pixels).flip(3)[0].permute(1, 2, 0).numpy()


def jittered(pixels: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and saturation, each scaled by 1 - strength .. 1 + strength.

    torchvision's ColorJitter applies the three in random order and rounds between; this keeps the
    order and rounds once.
    """
    brightness, contrast, saturation = (
        1 + strength * (2 * generator.random() - 1) for _ in range(3)
    )
    # Saturation pulls to the luma of each pixel, contrast to that of the picture, brightness to
    # black: together one matrix and one offset.
    to_luma = np.outer(LUMA, np.ones(3))
    matrix = contrast * brightness * (saturation * np.eye(3) + (1 - saturation) * to_luma)
    flat = pixels.reshape(-1, 3)
    offset = (1 - contrast) * brightness * (flat.mean(0) @ LUMA)
    values = flat.astype(np.float32) @ matrix.astype(np.float32)
    values += np.float32(offset + 0.5)
    return np.clip(values, 0, 255, out=values).astype(np.uint8).reshape(pixels.shape)


def three_augmented(pixels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """DeiT III's 3-Augment (arXiv 2204.07118): grey, or solarised from 128 up, or blurred.

    One of the three, each as likely; the blur's radius is uniform in 0.1 .. 2 pixels.
    """
    image = Image.fromarray(pixels)
    kind = below(generator, 3)
    if kind == 0:
        image = image.convert("L").convert("RGB")
    elif kind == 1:
        image = ImageOps.solarize(image)
    else:
        radius = BLUR[0] + (BLUR[1] - BLUR[0]) * generator.random()
        image = image.filter(ImageFilter.GaussianBlur(radius))
    return np.asarray(image)


def erased(
    pixels: np.ndarray,
    generator: np.random.Generator,
    *,
    area: Range,
    aspect: Range,
    mean: Sequence[float],
    std: Sequence[float] | None = None,
) -> np.ndarray:
    """A box filled with the mean colour, or with noise (arXiv 1708.04896).

    Args:
        pixels: the picture.
        generator: of the sample.
        area: of the box, as a share of the picture: lowest and highest, uniform.
        aspect: width / height: lowest and highest, uniform in the log.
        mean: the mean colour, 0..1; one number or three.
        std: of the noise around it, which is normal and independent for every pixel and channel;
            None: no noise. Normalised, the noise is timm's ``pixel`` mode but for the few values
            beyond black and white, which bytes cannot hold.
    """
    height, width = pixels.shape[:2]
    box = uniform_area_box(width, height, area, aspect, generator)
    if box is None:
        return pixels
    left, top, right, bottom = box
    fill = np.round(255 * np.asarray(mean))
    if std is not None:
        noise = normal(generator, (bottom - top) * (right - left) * 3)
        noise = noise.reshape(bottom - top, right - left, 3)
        fill = np.clip(np.round(255 * (np.asarray(mean) + np.asarray(std) * noise)), 0, 255)
    pixels = pixels.copy()
    pixels[top:bottom, left:right] = fill
    return pixels


def normal(generator: np.random.Generator, count: int) -> np.ndarray:
    """Standard normal numbers, float64 [count], by Box and Muller's transformation."""
    radius = np.sqrt(-2 * np.log1p(-generator.random((count + 1) // 2)))
    angle = 2 * math.pi * generator.random((count + 1) // 2)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
