"""The sixteen operations of big_vision's RandAugment, byte for byte as in its TensorFlow code.

Source: big_vision/pp/archive/autoaugment.py, which AugReg and "Better plain ViT baselines" used.
All take and give uint8 [h w 3]; ``level`` is RandAugment's magnitude (10 is its full scale, but 15
and 20 are used). What is surprising there is so here, because the published results have it:
- Contrast blends with (height x width) / 256, at most 255, and not with the mean grey
  (github.com/google-research/big_vision/issues/109).
- Solarize's threshold int(25.6 level) wraps around at 256, as a uint8 (its issue 110): at level 10
  and 20 the whole picture is inverted, at 15 the threshold is 128.
- Posterize keeps int(0.4 level) bits, so it grows *weaker* with the level: 4 at 10, all 8 at 20. At
  level 0 it would shift a byte by 8, which TensorFlow leaves to the implementation; here it shifts
  by 7, as TensorFlow's own CPU kernel does (core/kernels/cwise_ops.h), and one bit is left.
- Color, Contrast, Brightness and Sharpness blend by 0.18 level + 0.1: level 0 is not "nothing", it
  leaves a tenth of the picture.
Ours alone: Translate and Cutout are meant for pictures of 224x224, as AugReg's all are (at level
10 they move by 100 and cover 80), and shrink with a smaller one, of which nothing would be left.
Floats are truncated and not rounded. Where float32 rounding would decide a sum, the exact one is
taken (Sharpness).
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image

from vitrail.data.crops import below
from vitrail.kit.errors import Error

OPERATIONS = (
    *("AutoContrast", "Equalize", "Invert", "Rotate", "Posterize", "Solarize", "Color"),
    *("Contrast", "Brightness", "Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY"),
    *("Cutout", "SolarizeAdd"),
)
SIGNED = frozenset(("Rotate", "ShearX", "ShearY", "TranslateX", "TranslateY"))
FILL = 128
TRANSLATE, CUTOUT, MEANT_FOR = 100, 40, 224  # pixels at level 10, of a picture of so many


def apply(
    name: str, pixels: np.ndarray, level: float, sign: int, generator: np.random.Generator
) -> np.ndarray:
    """One operation; the sign is used by those in `SIGNED`, the generator by Cutout alone."""
    if name == "Cutout":
        height, width = pixels.shape[:2]
        row, column = below(generator, height), below(generator, width)
        return cutout(pixels, row, column, int(level / 10 * CUTOUT * _reach(min(height, width))))
    if name in _SIMPLE:
        return _SIMPLE[name](pixels)
    if name in _LEVELLED:
        return _LEVELLED[name](pixels, level)
    if name in _MOVING:
        height, width = pixels.shape[:2]
        return _transformed(pixels, _MOVING[name](height, width, sign * level / 10))
    raise Error(f"unknown RandAugment operation {name!r}")


def autocontrast(pixels: np.ndarray) -> np.ndarray:
    """Each channel stretched to 0..255, in float32."""
    image = Image.fromarray(pixels)
    table = np.tile(np.arange(256, dtype=np.float32), (3, 1))
    for channel, counts in enumerate(np.array(image.histogram()).reshape(3, 256)):
        present = counts.nonzero()[0]
        low, high = int(present[0]), int(present[-1])
        if high > low:
            scale = np.float32(255) / np.float32(high - low)
            table[channel] = np.clip(table[channel] * scale + np.float32(-low) * scale, 0, 255)
    return _looked_up(image, table.astype(np.uint8))


def equalize(pixels: np.ndarray) -> np.ndarray:
    """Each channel's histogram made even."""
    image = Image.fromarray(pixels)
    table = np.tile(np.arange(256), (3, 1))
    for channel, counts in enumerate(np.array(image.histogram()).reshape(3, 256)):
        step = (counts.sum() - counts[counts > 0][-1]) // 255
        if step:
            before = np.concatenate([[0], np.cumsum(counts)[:-1]])
            table[channel] = np.clip((before + step // 2) // step, 0, 255)
            table[channel, 0] = 0
    return _looked_up(image, table)


def invert(pixels: np.ndarray) -> np.ndarray:
    """255 minus each byte."""
    return 255 - pixels


def posterize(pixels: np.ndarray, level: float) -> np.ndarray:
    """The lower bits cleared."""
    shift = min((8 - int(level / 10 * 4)) % 256, 7)  # a uint8, and clamped as by the kernel
    return pixels >> shift << shift


def solarize(pixels: np.ndarray, level: float) -> np.ndarray:
    """Bytes from the threshold up inverted."""
    threshold = int(level / 10 * 256) % 256
    return np.where(pixels < threshold, pixels, 255 - pixels)


def solarize_add(pixels: np.ndarray, level: float) -> np.ndarray:
    """Dark bytes made lighter."""
    values = np.arange(256)
    added = np.minimum(values + int(level / 10 * 110), 255)
    return _looked_up(Image.fromarray(pixels), np.tile(np.where(values < 128, added, values), 3))


def color(pixels: np.ndarray, level: float) -> np.ndarray:
    """Saturation."""
    return _blended(grey(pixels)[..., None], pixels, _factor(level))


def contrast(pixels: np.ndarray, level: float) -> np.ndarray:
    """Contrast around a "mean" that depends on the picture's size alone."""
    mean = np.uint8(min(pixels.shape[0] * pixels.shape[1] / 256, 255))
    return _blended(np.full((1, 1, 1), mean), pixels, _factor(level))


def brightness(pixels: np.ndarray, level: float) -> np.ndarray:
    """Brightness."""
    return _blended(np.zeros((1, 1, 1), np.uint8), pixels, _factor(level))


def sharpness(pixels: np.ndarray, level: float) -> np.ndarray:
    """Sharper or softer than a 3x3 smoothing; the border stays as it is."""
    smooth = pixels.copy()
    if min(pixels.shape[:2]) > 2:
        wide = pixels.astype(np.uint16)
        rows = wide[:-2] + wide[1:-1] + wide[2:]
        sums = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * wide[1:-1, 1:-1]
        smooth[1:-1, 1:-1] = sums // 13
    return _blended(smooth, pixels, _factor(level))


def cutout(pixels: np.ndarray, row: int, column: int, half: int) -> np.ndarray:
    """A grey square of side 2 half around a place, cut off at the edges."""
    pixels = pixels.copy()
    pixels[max(0, row - half) : row + half, max(0, column - half) : column + half] = FILL
    return pixels


def grey(pixels: np.ndarray) -> np.ndarray:
    """`tf.image.rgb_to_grayscale` of uint8: uint8 [h w 3] to uint8 [h w]."""
    floats = pixels.astype(np.float32) * np.float32(1 / 255)
    weights = np.array([0.2989, 0.587, 0.114], np.float32)
    return ((floats @ weights) * np.float32(255.5)).astype(np.uint8)


def _factor(level: float) -> float:
    return level / 10 * 1.8 + 0.1


def _blended(first: np.ndarray, second: np.ndarray, factor: float) -> np.ndarray:
    if factor == 1:
        return second
    base = first.astype(np.float32)
    values = base + np.float32(factor) * (second.astype(np.float32) - base)
    return np.clip(values, 0, 255).astype(np.uint8)


def _looked_up(image: Image.Image, table: np.ndarray) -> np.ndarray:
    return np.asarray(image.point(table.reshape(-1).tolist()))


Matrix = tuple[float, float, float, float, float, float]


def _rotation(height: int, width: int, part: float) -> Matrix:
    """Around the centre, by up to 30 degrees."""
    cos, sin = math.cos(math.radians(30 * part)), math.sin(math.radians(30 * part))
    across, down = width - 1, height - 1
    return (
        *(cos, -sin, (across - (cos * across - sin * down)) / 2),
        *(sin, cos, (down - (sin * across + cos * down)) / 2),
    )


def _transformed(pixels: np.ndarray, matrix: Matrix) -> np.ndarray:
    """Each result pixel (x, y) is the one nearest to matrix (x, y, 1), or grey outside."""
    height, width = pixels.shape[:2]
    a, b, c, d, e, f = (np.float32(value) for value in matrix)
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    column, row = _rounded(a * x + b * y + c), _rounded(d * x + e * y + f)
    outside = (column < 0) | (column >= width) | (row < 0) | (row >= height)
    place = np.where(outside, height * width, row * width + column)
    flat = np.concatenate([pixels.reshape(-1, 3), np.full((1, 3), FILL, np.uint8)])
    return flat.take(place, axis=0)


def _reach(side: int) -> float:
    return min(1.0, side / MEANT_FOR)


def _rounded(values: np.ndarray) -> np.ndarray:
    """To the nearest whole number, halves away from zero, as C's round."""
    return np.trunc(values + np.copysign(np.float32(0.5), values)).astype(np.int64)


_SIMPLE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "AutoContrast": autocontrast,
    "Equalize": equalize,
    "Invert": invert,
}
_LEVELLED: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {
    "Posterize": posterize,
    "Solarize": solarize,
    "SolarizeAdd": solarize_add,
    "Color": color,
    "Contrast": contrast,
    "Brightness": brightness,
    "Sharpness": sharpness,
}
# The level comes in as a share of 10, with its sign.
_MOVING: dict[str, Callable[[int, int, float], Matrix]] = {
    "Rotate": _rotation,
    "ShearX": lambda height, width, part: (1, 0.3 * part, 0, 0, 1, 0),
    "ShearY": lambda height, width, part: (1, 0, 0, 0.3 * part, 1, 0),
    "TranslateX": lambda height, width, part: (1, 0, TRANSLATE * part * _reach(width), 0, 1, 0),
    "TranslateY": lambda height, width, part: (1, 0, 0, 0, 1, TRANSLATE * part * _reach(height)),
}
