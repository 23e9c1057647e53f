"""Views: from one picture, encoded or not, to the pixels that a model sees.

Evaluation, the classifier and the server must go the same way, or what is measured is not what is
used; so they all decode by `decode_for`. Training draws the crop before decoding. A JPEG that is
much larger than what is needed is decoded smaller, in both.
"""

from typing import TYPE_CHECKING

import numpy as np

from vitrail.data.decode import MAX_PIXELS, decode, is_jpeg, read_size
from vitrail.kit.preprocess import Preprocessing

if TYPE_CHECKING:  # it brings torch
    from vitrail.data.transforms import Augment


def decode_for(
    data: bytes, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """A file to uint8 [h w 3], as large as `Preprocessing.geometry` needs it or larger.

    Raises:
        Error: what `decode` raises.
    """
    if not is_jpeg(data):
        return decode(data, max_pixels=max_pixels)
    width, height, _ = read_size(data)
    if min(width, height) < 1:  # `decode` says what is wrong
        return decode(data, max_pixels=max_pixels)
    return decode(data, preprocessing.needed_size(width, height), max_pixels)


def evaluation_view(
    picture: bytes | np.ndarray, preprocessing: Preprocessing, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """A file, or uint8 [h w 3], to uint8 [*preprocessing.size 3].

    Raises:
        Error: what `decode` and `Preprocessing.geometry` raise.
    """
    if isinstance(picture, bytes):
        picture = decode_for(picture, preprocessing, max_pixels)
    return preprocessing.geometry(picture)


def training_view(
    picture: bytes | np.ndarray,
    augment: "Augment",
    preprocessing: Preprocessing,
    generator: np.random.Generator,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """A file, or uint8 [h w 3], to one training view, uint8 [*preprocessing.size 3].

    Args:
        picture: what is seen.
        augment: what is done to it.
        preprocessing: gives the size.
        generator: of the sample; a view is a function of what it draws.
        max_pixels: see `decode`.

    Raises:
        Error: what `decode` raises.
    """
    if isinstance(picture, bytes) and is_jpeg(picture):
        width, height, _ = read_size(picture)
        if min(width, height) < 1:
            return decode(picture, max_pixels=max_pixels)  # which says what is wrong
        box = augment.box(width, height, generator)
        full = (width, height)
        small = augment.needed_size(box, full, preprocessing)
        image = decode(picture, small, max_pixels)
    else:
        image = decode(picture, None, max_pixels) if isinstance(picture, bytes) else picture
        full = (image.shape[1], image.shape[0])
        box = augment.box(*full, generator)
    return augment.view(image, box, full, preprocessing, generator)
