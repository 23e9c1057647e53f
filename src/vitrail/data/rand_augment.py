"""RandAugment (arXiv 1909.13719) in the three forms that published recipes were trained with.

They share a name and little else, so each is kept as it is:
- ``big_vision``: 16 operations (`tf_operations`), every layer applied, grey coming in; magnitude 10
  is the full scale, and 15 and 20 are used (AugReg, "Better plain ViT baselines").
- ``torchvision``: 14 operations, one of them nothing; the magnitude is one of the bins 0..30; black
  coming in; nearest pixels are the class's default, and bilinear is what its training script passes
  (transforms/autoaugment.py, references/classification/presets.py).
- ``timm``: 15 operations in the increasing form (``inc1``), each layer applied with probability
  0.5, the magnitude drawn from a normal distribution and cut to 0..10, the mean colour coming in:
  ``rand-m9-mstd0.5-inc1`` of DeiT is magnitude 9, deviation 0.5, 2 layers (data/auto_augment.py).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from vitrail.data import tf_operations
from vitrail.data.crops import below
from vitrail.data.effects import normal
from vitrail.kit.preprocess import INTERPOLATIONS

KINDS = ("none", "big_vision", "torchvision", "timm")
HIGHEST = {"big_vision": 20, "torchvision": 30, "timm": 10}  # magnitudes that mean something
BINS = 31  # torchvision's

_COLOURS = ("Brightness", "Color", "Contrast", "Sharpness")
_MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
TORCHVISION = (
    *("Identity", *_MOVES, *_COLOURS),
    *("Posterize", "Solarize", "AutoContrast", "Equalize"),
)
TIMM = (
    *("AutoContrast", "Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd"),
    *(*_COLOURS, *_MOVES),
)
SIGNED = frozenset((*_MOVES, *_COLOURS))


def rand_augment(
    pixels: np.ndarray,
    kind: str,
    generator: np.random.Generator,
    *,
    layers: int = 2,
    magnitude: float = 10,
    magnitude_std: float = 0,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    interpolation: str | None = None,
) -> np.ndarray:
    """Random operations one after the other: uint8 [h w 3] to the same.

    Args:
        pixels: the picture.
        kind: one of `KINDS` but ``none``.
        generator: of the sample.
        layers: how many operations; the same one may come twice.
        magnitude: how strong, in the units of the kind.
        magnitude_std: of ``timm``: the deviation of a layer's magnitude; above 100 it is uniform
            from 0 to ``magnitude``.
        mean: of ``timm``: the colour that comes in, 0..1.
        interpolation: of ``torchvision`` and ``timm``: how moved pixels are made; None: nearest
            in the one, bicubic in the other.
    """
    if kind == "big_vision":
        for _ in range(layers):
            name = tf_operations.OPERATIONS[below(generator, len(tf_operations.OPERATIONS))]
            sign = _sign(generator) if name in tf_operations.SIGNED else 1
            pixels = tf_operations.apply(name, pixels, magnitude, sign, generator)
        return pixels
    image = Image.fromarray(pixels)
    if kind == "torchvision":
        for _ in range(layers):
            name = TORCHVISION[below(generator, len(TORCHVISION))]
            sign = _sign(generator) if name in SIGNED else 1
            image = torchvision_operation(
                name, image, int(magnitude), sign, interpolation or "nearest"
            )
    else:
        fill = tuple(min(255, round(255 * m)) for m in (mean if len(mean) == 3 else [*mean] * 3))
        for _ in range(layers):
            name = TIMM[below(generator, len(TIMM))]
            if generator.random() >= 0.5:
                continue
            drawn = _timm_magnitude(magnitude, magnitude_std, generator)
            sign = _sign(generator) if name in SIGNED else 1
            image = timm_operation(name, image, drawn, sign, fill, interpolation or "bicubic")
    return np.asarray(image)


def torchvision_operation(
    name: str, image: Image.Image, level: int, sign: int, interpolation: str = "nearest"
) -> Image.Image:
    """One operation of torchvision's RandAugment on a PIL picture at bin ``level`` of 0..30."""
    how = _how(interpolation)
    if name in _COLOURS:
        return _enhanced(name, image, 1 + sign * _bin(0.9, level))
    if name in ("ShearX", "ShearY"):
        return _affine(name, image, sign * _bin(0.3, level), how, None)
    if name in ("TranslateX", "TranslateY"):
        side = image.width if name == "TranslateX" else image.height
        pixels = int(sign * _bin(150 / 331 * side, level))
        return _affine(name, image, -pixels, how, None)
    if name == "Rotate":
        return image.rotate(sign * _bin(30, level), how)
    if name == "Posterize":
        return ImageOps.posterize(image, 8 - round(level / ((BINS - 1) / 4)))
    if name == "Solarize":
        table = [i if i < 255 - _bin(255, level) else 255 - i for i in range(256)]
        return image.point(table * 3)
    return _PLAIN[name](image)


def timm_operation(
    name: str,
    image: Image.Image,
    magnitude: float,
    sign: int,
    fill: tuple[int, ...],
    interpolation: str = "bicubic",
) -> Image.Image:
    """One operation of timm's increasing set on a PIL picture at magnitude 0..10."""
    part = magnitude / 10
    how = _how(interpolation)
    if name in _COLOURS:
        return _enhanced(name, image, max(0.1, 1 + sign * 0.9 * part))
    if name in ("ShearX", "ShearY"):
        return _affine(name, image, sign * 0.3 * part, how, fill)
    if name in ("TranslateX", "TranslateY"):
        side = image.width if name == "TranslateX" else image.height
        return _affine(name, image, sign * 0.45 * part * side, how, fill)
    if name == "Rotate":
        return image.rotate(sign * 30 * part, how, fillcolor=fill)
    if name == "Posterize":
        # At 10 no bit is left: black. (Pillow's own function refuses that from version 13 on.)
        kept = 256 - 2 ** (4 + int(part * 4))
        return image.point([i & kept for i in range(256)] * 3)
    if name == "Solarize":
        return ImageOps.solarize(image, 256 - min(256, int(part * 256)))
    if name == "SolarizeAdd":
        added = min(128, int(part * 110))
        return image.point([min(255, i + added) if i < 128 else i for i in range(256)] * 3)
    return _PLAIN[name](image)


_PLAIN: dict[str, Callable[[Image.Image], Image.Image]] = {
    "Identity": lambda image: image,
    "AutoContrast": ImageOps.autocontrast,
    "Equalize": ImageOps.equalize,
    "Invert": ImageOps.invert,
}


def _how(interpolation: str) -> Image.Resampling:
    # Pillow moves pixels in three ways only.
    known = interpolation in ("nearest", "bilinear", "bicubic")
    return INTERPOLATIONS[interpolation if known else "bicubic"]


def _bin(highest: float, level: int) -> float:
    return float(torch.linspace(0, highest, BINS)[level])  # float32, as there


def _enhanced(name: str, image: Image.Image, factor: float) -> Image.Image:
    return getattr(ImageEnhance, name)(image).enhance(factor)


def _affine(
    name: str,
    image: Image.Image,
    amount: float,
    how: Image.Resampling,
    fill: tuple[int, ...] | None,
) -> Image.Image:
    matrix = {
        "ShearX": (1, amount, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, amount, 1, 0),
        "TranslateX": (1, 0, amount, 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, amount),
    }[name]
    return image.transform(image.size, Image.Transform.AFFINE, matrix, how, fillcolor=fill)


def _timm_magnitude(magnitude: float, std: float, generator: np.random.Generator) -> float:
    if std > 100:
        return min(10.0, magnitude * generator.random())
    if std > 0:
        magnitude += std * float(normal(generator, 1)[0])
    return max(0.0, min(magnitude, 10.0))


def _sign(generator: np.random.Generator) -> int:
    return 1 if generator.random() < 0.5 else -1


def check_magnitude(kind: str, magnitude: float) -> str | None:
    """What is wrong with a magnitude of a kind, as the end of a sentence; None: nothing."""
    highest = HIGHEST.get(kind, math.inf)
    if not 0 <= magnitude <= highest:
        return f"lies between 0 and {highest} for {kind}, not at {magnitude:g}"
    if kind == "torchvision" and magnitude != int(magnitude):
        return f"is the number of a bin for torchvision, not {magnitude:g}"
    return None
