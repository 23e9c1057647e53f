"""Prints: what the doctor keeps of every picture, about 1.1 kB, after having read it once.

A grey thumbnail of 32 x 32 (area-averaged, whatever the picture's shape), a hash of the content,
the picture's size, and how bright and how varied it is. Everything that the doctor compares is made
of these, so a million pictures are one gigabyte and are decoded once.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vitrail.data.decode import decode, read_size
from vitrail.data.sources import Source
from vitrail.kit.cores import cores
from vitrail.kit.errors import Error

SIDE = 32
LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as JPEG has it
BLOCK = 256  # pictures that are read together
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Prints:
    """What is kept of the pictures of a source, row by row; unreadable ones have a row of zeros.

    Attributes:
        thumbs: uint8 [n 32 32], grey.
        digests: [n] of 16 bytes: of the file, or of the pixels where there is none.
        sizes: int32 [n 2], width and height in pixels.
        brightness, contrast: float32 [n], mean and standard deviation of grey, 0..1.
        unreadable: (key, reason).
        readable: bool [n].
    """

    thumbs: np.ndarray
    digests: np.ndarray
    sizes: np.ndarray
    brightness: np.ndarray
    contrast: np.ndarray
    unreadable: tuple[tuple[str, str], ...]
    readable: np.ndarray

    def __len__(self) -> int:
        return len(self.thumbs)


def look(source: Source, threads: int | None = None, progress: Progress | None = None) -> Prints:
    """Read every picture of a source once.

    Args:
        threads: that decode; None for as many as there are cores. (The decoders let go of
            Python's lock.)
        progress: called with (pictures done, pictures in all).
    """
    n = len(source)
    thumbs = np.zeros((n, SIDE, SIDE), np.uint8)
    digests = np.zeros(n, "V16")
    sizes = np.zeros((n, 2), np.int32)
    contrast, brightness = np.zeros(n, np.float32), np.zeros(n, np.float32)
    readable, unreadable = np.zeros(n, bool), []
    with ThreadPoolExecutor(threads or cores()) as pool:
        for start in range(0, n, BLOCK):
            places = range(start, min(start + BLOCK, n))
            # One thread reads, since sources need not bear several; the others decode.
            fetched = [_fetched(source, i) for i in places]
            for i, found in zip(places, pool.map(_looked, fetched), strict=True):
                if isinstance(found, str):
                    unreadable.append((source.keys[i], found))
                    continue
                thumb, digests[i], sizes[i], brightness[i], contrast[i] = found
                thumbs[i], readable[i] = thumb, True
            if progress is not None:
                progress(places.stop, n)
    return Prints(thumbs, digests, sizes, brightness, contrast, tuple(unreadable), readable)


def thumbnail(image: np.ndarray) -> np.ndarray:
    """A picture, uint8 [h w 3], as a grey one, uint8 [32 32], each pixel the mean of its area."""
    grey = image.astype(np.float32) @ LUMA if image.size <= 3 * SIDE * SIDE * 16 else None
    if grey is None:
        grey = np.asarray(Image.fromarray(image).convert("L"), np.float32)
    small = Image.fromarray(grey, "F").resize(
        (SIDE, SIDE),
        Image.Resampling.BOX if min(grey.shape) >= SIDE else Image.Resampling.BILINEAR,
    )
    return np.clip(np.rint(np.asarray(small)), 0, 255).astype(np.uint8)


def _fetched(source: Source, i: int) -> bytes | np.ndarray | str:
    """A picture, or why it cannot be read."""
    try:
        return source.image(i)
    except Error as error:
        return str(error)


def _looked(image: bytes | np.ndarray | str) -> tuple | str:
    """What is kept of a picture, or why it cannot be read."""
    if isinstance(image, str):
        return image
    if isinstance(image, bytes):
        digest = hashlib.blake2b(image, digest_size=16).digest()
        try:
            width, height, _ = read_size(image)
            image = decode(image, min_size=4 * SIDE)  # large JPEGs at a fraction of their size
        except Error as error:
            return str(error)
    else:
        digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
        height, width = image.shape[:2]
    thumb = thumbnail(image)
    values = thumb.astype(np.float32) / 255
    return thumb, np.void(digest), (width, height), values.mean(), values.std()
