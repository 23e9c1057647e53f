"""Crops: which part of a picture training sees, and how it is resized.

A box is drawn from the picture's size alone, before decoding: so a large JPEG is decoded only as
large as its crop needs. The resizing is torch's for uint8: Pillow's algorithm, but five times as
fast, and the same bytes on every processor (with and without AVX), so that a run may be resumed on
another machine.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from vitrail.kit.preprocess import INTERPOLATIONS

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels
Range = tuple[float, float]

TRIES = 10  # torchvision's, at finding a box that lies inside the picture
TF_TRIES = 100  # TensorFlow's
MARGIN = 1.5  # a crop is decoded so much larger than it is needed: see `needed_size`
SIMPLE_PAD = 4  # pixels around the picture of `simple_crop`, as in DeiT III


def below(generator: np.random.Generator, n: int) -> int:
    """A whole number in 0..n-1. (The stream of `Generator.integers` may change with numpy.)"""
    return int(generator.random() * n)


def inception_box(
    width: int, height: int, area: Range, aspect: Range, generator: np.random.Generator
) -> Box:
    """torchvision's RandomResizedCrop: area uniform, aspect ratio uniform in the log.

    Ten tries; then the largest central box with an allowed aspect ratio.
    """
    box = uniform_area_box(width, height, area, aspect, generator)
    if box is not None:
        return box
    w = min(width, max(1, round(height * aspect[1])))
    h = min(height, max(1, round(width / aspect[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def uniform_area_box(
    width: int, height: int, area: Range, aspect: Range, generator: np.random.Generator
) -> Box | None:
    """A box of uniform area and log-uniform aspect ratio, or None after ten tries."""
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(TRIES):
        wanted = width * height * (area[0] + (area[1] - area[0]) * generator.random())
        ratio = math.exp(low + (high - low) * generator.random())
        w, h = round(math.sqrt(wanted * ratio)), round(math.sqrt(wanted / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = below(generator, height - h + 1)
            left = below(generator, width - w + 1)
            return left, top, left + w, top + h
    return None


def inception_tf_box(
    width: int, height: int, area: Range, aspect: Range, generator: np.random.Generator
) -> Box:
    """TensorFlow's sample_distorted_bounding_box (core/kernels/image/, the op's C++ file).

    The aspect ratio is uniform, and then the *height* is uniform among those that the area allows,
    so small crops are more frequent than in `inception_box`. A hundred tries; then the whole
    picture. The last row and the last column of places are never drawn, as there.
    """
    least, most = area[0] * width * height, area[1] * width * height
    for _ in range(TF_TRIES):
        ratio = aspect[0] + (aspect[1] - aspect[0]) * generator.random()
        highest = min(round(math.sqrt(most / ratio)), height)
        if round(highest * ratio) > width:
            highest = int((width + 0.5 - 1e-7) / ratio)
        lowest = min(round(math.sqrt(least / ratio)), highest)
        h = lowest
        if lowest < highest:
            h += below(generator, highest - lowest + 1)
        # Rounding may have left the allowed areas by a row.
        if h * round(h * ratio) < least:
            h += 1
        if h * round(h * ratio) > most:
            h -= 1
        w = round(h * ratio)
        if not (least <= w * h <= most and 0 < w <= width and 0 < h <= height):
            continue
        top = below(generator, height - h) if h < height else 0
        left = below(generator, width - w) if w < width else 0
        return left, top, left + w, top + h
    return 0, 0, width, height


BOXES: dict[str, Callable[[int, int, Range, Range, np.random.Generator], Box]] = {
    "inception": inception_box,
    "inception_tf": inception_tf_box,
}

_AVERAGING = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
}


def needed_size(box: Box | None, full: tuple[int, int], size: tuple[int, int]) -> int | None:
    """The shorter side at which a picture must be decoded for a crop; None: as it is.

    The decoder's own reduction is sharper than a resize that averages. With half as many pixels
    again as are needed, the resize that follows has the last word: the mean difference from
    decoding in full is about 1 of 255.

    Args:
        box: the crop, in pixels of the whole picture; None: the picture is needed as it is.
        full: (width, height) of the picture.
        size: (height, width) of the result.
    """
    if box is None:
        return None
    left, top, right, bottom = box
    scale = MARGIN * max(size[0] / (bottom - top), size[1] / (right - left))
    return math.ceil(min(full) * scale) if scale < 1 else None


def cut_out(
    image: np.ndarray,
    box: Box,
    full: tuple[int, int],
    size: tuple[int, int],
    interpolation: str,
    antialias: bool = True,
) -> np.ndarray:
    """The part of a picture in a box, resized: uint8 [h w 3] to uint8 [*size 3].

    Args:
        image: the picture, perhaps decoded smaller than it is.
        box: the part, in pixels of the full picture.
        full: (width, height) of the full picture.
        size: (height, width) of the result.
        interpolation, antialias: see `resized`.
    """
    left, top, right, bottom = box
    if (image.shape[1], image.shape[0]) == full:
        return resized(image[top:bottom, left:right], size, interpolation, antialias)
    # Of a smaller picture the box has broken edges, which only Pillow's resize takes.
    across, down = image.shape[1] / full[0], image.shape[0] / full[1]
    first_row, first_column = int(top * down), int(left * across)
    part = image[
        first_row : min(math.ceil(bottom * down), image.shape[0]),
        first_column : min(math.ceil(right * across), image.shape[1]),
    ]
    edges = (
        left * across - first_column,
        top * down - first_row,
        min(right * across - first_column, part.shape[1]),
        min(bottom * down - first_row, part.shape[0]),
    )
    how = INTERPOLATIONS[interpolation]
    return np.asarray(Image.fromarray(part).resize((size[1], size[0]), how, box=edges))


def resized(
    image: np.ndarray, size: tuple[int, int], interpolation: str, antialias: bool = True
) -> np.ndarray:
    """A picture at another size: uint8 [h w 3] to uint8 [*size 3].

    Args:
        image: the picture.
        size: (height, width) of the result.
        interpolation: one of `INTERPOLATIONS`.
        antialias: whether pixels are averaged when the picture is made smaller. Without, the
            nearest few are taken, as `tf.image.resize` does unless it is told otherwise.
    """
    if image.shape[:2] == size:
        return image
    if antialias and interpolation in _AVERAGING:
        # What `F.interpolate(antialias=True)` calls; asked directly, it leaves colours interleaved.
        out = torch.empty((1, 3, *size), dtype=torch.uint8, memory_format=torch.channels_last)
        _AVERAGING[interpolation](planes(image), size, False, None, None, out=out)
        return out[0].permute(1, 2, 0).numpy()
    picture, shape, how = Image.fromarray(image), (size[1], size[0]), INTERPOLATIONS[interpolation]
    if antialias:
        return np.asarray(picture.resize(shape, how))
    whole = (0, 0, image.shape[1], image.shape[0])
    return np.asarray(picture.transform(shape, Image.Transform.EXTENT, whole, how))


def planes(image: np.ndarray) -> torch.Tensor:
    """uint8 [h w 3] as torch takes it: [1 3 h w], interleaved as before; a copy only if need be."""
    if not (image.flags.writeable and image.flags.c_contiguous):
        image = image.copy()  # torch warns of arrays that it may not write to
    return torch.from_numpy(image).permute(2, 0, 1)[None]


def simple_crop(
    image: np.ndarray, size: tuple[int, int], interpolation: str, generator: np.random.Generator
) -> np.ndarray:
    """DeiT III's simple random crop: uint8 [h w 3] to uint8 [*size 3].

    The picture is resized so that it just covers ``size``, surrounded by four mirrored pixels, and
    a random part of ``size`` is taken (DeiT, augment.py).
    """
    height, width = size
    image = _without_far_ends(image, size)
    scale = max(height / image.shape[0], width / image.shape[1])
    covering = (
        max(height, int(image.shape[0] * scale)),
        max(width, int(image.shape[1] * scale)),
    )
    pixels = resized(image, covering, interpolation)
    mode = "reflect" if min(pixels.shape[:2]) > 1 else "edge"
    around = ((SIMPLE_PAD, SIMPLE_PAD), (SIMPLE_PAD, SIMPLE_PAD), (0, 0))
    pixels = np.pad(pixels, around, mode=mode)
    top = below(generator, pixels.shape[0] - height + 1)
    left = below(generator, pixels.shape[1] - width + 1)
    return pixels[top : top + height, left : left + width]


def _without_far_ends(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of an extreme strip, at most eight times as long as ``size`` asks for.

    A picture of 1x50,000 pixels would otherwise become 224x11,200,000 first.
    """
    rows, columns = image.shape[:2]
    most_rows = max(1, math.ceil(8 * columns * size[0] / size[1]))
    most_columns = max(1, math.ceil(8 * rows * size[1] / size[0]))
    top, left = max(0, rows - most_rows) // 2, max(0, columns - most_columns) // 2
    return image[top : top + most_rows, left : left + most_columns]
