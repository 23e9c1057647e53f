"""Transforms: what training does to one picture on top of `Preprocessing`; evaluation does none.

A picture stays uint8 until its batch is on the device. An `Augment` draws from one generator in a
fixed order, so a sample's view is a function of (seed, epoch, index). The crop is drawn from the
picture's size alone, before decoding: so a large JPEG is decoded only as large as its crop needs.
"""

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from vitrail.kit.errors import Error
from vitrail.kit.preprocess import INTERPOLATIONS, Preprocessing

CROPS = ("none", "pad", "inception", "inception_tf", "simple")
ERASE_AREA, ERASE_ASPECT = (0.02, 1 / 3), (0.3, 1 / 0.3)  # random erasing, arXiv 1708.04896
TRIES = 10  # at finding a box that lies inside the picture

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Training augmentation of one picture; without arguments it changes nothing.

    Args:
        crop: ``none`` takes evaluation's view; ``pad`` shifts that view by at most ``pad`` pixels
            along each axis, black coming in (the usual thing on CIFAR); ``inception`` cuts out a
            box of random area and aspect ratio and resizes it (arXiv 1409.4842, with the
            statistics of torchvision's RandomResizedCrop).
        area: of the inception crop, as a share of the picture: lowest and highest, uniform.
        aspect: of the inception crop, width / height: lowest and highest, uniform in the log.
        pad: the largest shift of ``pad``, in pixels.
        flip: probability of a mirrored picture.
        jitter: brightness, contrast and saturation are each scaled by 1 - jitter .. 1 + jitter.
        erase: probability that a random box is filled with the mean colour.
    """

    crop: str = "none"
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    pad: int = 0
    flip: float = 0.0
    jitter: float = 0.0
    erase: float = 0.0
    erase_fill: str = "mean"
    rand_augment: str = "none"
    rand_layers: int = 2
    rand_magnitude: float = 10
    rand_magnitude_std: float = 0
    three_augment: bool = False
    antialias: bool = True
    interpolation: str | None = None

    def __post_init__(self):
        for name in ("area", "aspect"):
            if len(getattr(self, name)) != 2:
                raise Error(f"augment {name} is (lowest, highest), not {getattr(self, name)}")
            low, high = getattr(self, name)
            object.__setattr__(self, name, (low, high))
            if not 0 < low <= high:
                raise Error(f"augment {name} is (lowest, highest) above 0, not ({low}, {high})")
        if self.area[1] > 1:
            raise Error(f"augment area is a share of the picture, not {self.area[1]}")
        if self.crop not in CROPS:
            raise Error(f"unknown augment crop {self.crop!r}: it is one of {', '.join(CROPS)}")
        for name in ("flip", "jitter", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise Error(f"augment {name} lies between 0 and 1, not at {getattr(self, name)}")
        if self.pad < 0:
            raise Error(f"augment pad is a number of pixels, not {self.pad}")

    @property
    def nothing(self) -> bool:
        """Whether training sees exactly what evaluation sees."""
        moved = self.crop == "inception" or (self.crop == "pad" and self.pad > 0)
        return not (moved or self.flip or self.jitter or self.erase)

    def __call__(
        self, image: np.ndarray, preprocessing: Preprocessing, generator: np.random.Generator
    ) -> np.ndarray:
        """One picture, uint8 [h w 3], to one training view of it, uint8 [*preprocessing.size 3]."""
        height, width = image.shape[:2]
        box = self.box(width, height, generator)
        return self.view(image, box, (width, height), preprocessing, generator)

    def box(self, width: int, height: int, generator: np.random.Generator) -> Box | None:
        """The crop of a picture of this size, drawn first of all; None unless ``inception``."""
        if self.crop != "inception":
            return None
        return _draw_box(width, height, self.area, self.aspect, generator) or _central(
            width, height, self.aspect
        )

    def view(
        self,
        image: np.ndarray,
        box: Box | None,
        full: tuple[int, int],
        preprocessing: Preprocessing,
        generator: np.random.Generator,
    ) -> np.ndarray:
        """What follows `box`: uint8 [h w 3] to uint8 [*preprocessing.size 3].

        Args:
            image: the picture, perhaps decoded smaller than it is.
            box: what `box` drew, in pixels of the full picture.
            full: (width, height) of the full picture.
            preprocessing: size and interpolation of the result.
            generator: the one that drew the box.
        """
        if box is None:
            pixels = preprocessing.geometry(image)
        else:
            pixels = _resized(image, box, full, preprocessing)
        if self.crop == "pad" and self.pad:
            pixels = _shifted(pixels, self.pad, generator)
        if self.flip and generator.random() < self.flip:
            pixels = pixels[:, ::-1]
        if self.jitter:
            pixels = _jittered(pixels, self.jitter, generator)
        if self.erase and generator.random() < self.erase:
            pixels = _erased(pixels, preprocessing, generator)
        return np.ascontiguousarray(pixels)

    def replace(self, **changes) -> "Augment":
        """A copy with these fields changed."""
        return dataclasses.replace(self, **changes)


def suggest(image_size: int, epochs: float) -> Augment:
    """A choice that is good without thought, by the input's side in pixels and the run's length.

    Augmentation pays when a model sees a picture many times; in a short run it only makes the task
    harder. On 28x28 pictures of clothes, mirroring lost 0.8 points in 15 epochs, and mirroring,
    shifting and label smoothing together 4 points in 7.
    """
    if image_size < 96:  # a crop of a small picture has too few pixels left
        if epochs < 30:
            return Augment()
        return Augment(crop="pad", pad=max(1, image_size // 8), flip=0.5)
    return Augment(crop="inception", area=(0.35 if epochs < 10 else 0.08, 1.0), flip=0.5)


def needed_size(box: Box | None, full: tuple[int, int], size: tuple[int, int]) -> int | None:
    """The shorter side at which a picture must be decoded so that no crop is scaled up.

    Args:
        box: what `Augment.box` drew; None: the whole picture is needed as it is.
        full: (width, height) of the picture.
        size: (height, width) of the result.
    """
    if box is None:
        return None
    left, top, right, bottom = box
    scale = max(size[0] / (bottom - top), size[1] / (right - left))
    return math.ceil(min(full) * scale) if scale < 1 else None


def _below(generator: np.random.Generator, n: int) -> int:
    # Not Generator.integers: its stream may change with the version of numpy.
    return int(generator.random() * n)


def _draw_box(
    width: int,
    height: int,
    area: tuple[float, float],
    aspect: tuple[float, float],
    generator: np.random.Generator,
) -> Box | None:
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(TRIES):
        wanted = width * height * (area[0] + (area[1] - area[0]) * generator.random())
        ratio = math.exp(low + (high - low) * generator.random())
        w, h = round(math.sqrt(wanted * ratio)), round(math.sqrt(wanted / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = _below(generator, height - h + 1)
            left = _below(generator, width - w + 1)
            return left, top, left + w, top + h
    return None


def _central(width: int, height: int, aspect: tuple[float, float]) -> Box:
    """The largest central box with an allowed aspect ratio."""
    w = min(width, max(1, round(height * aspect[1])))
    h = min(height, max(1, round(width / aspect[0])))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _resized(
    image: np.ndarray, box: Box, full: tuple[int, int], preprocessing: Preprocessing
) -> np.ndarray:
    across, down = image.shape[1] / full[0], image.shape[0] / full[1]
    left, top, right, bottom = box
    part = (
        left * across,
        top * down,
        min(right * across, image.shape[1]),
        min(bottom * down, image.shape[0]),
    )
    height, width = preprocessing.size
    how = INTERPOLATIONS[preprocessing.interpolation]
    return np.asarray(Image.fromarray(image).resize((width, height), how, box=part))


def _shifted(pixels: np.ndarray, pad: int, generator: np.random.Generator) -> np.ndarray:
    height, width = pixels.shape[:2]
    down, across = (_below(generator, 2 * pad + 1) - pad for _ in range(2))
    shifted = np.zeros_like(pixels)
    if abs(down) >= height or abs(across) >= width:
        return shifted
    shifted[max(down, 0) : height + min(down, 0), max(across, 0) : width + min(across, 0)] = pixels[
        max(-down, 0) : height - max(down, 0), max(-across, 0) : width - max(across, 0)
    ]
    return shifted


def _jittered(pixels: np.ndarray, strength: float, generator: np.random.Generator) -> np.ndarray:
    brightness, contrast, saturation = (
        1 + strength * (2 * generator.random() - 1) for _ in range(3)
    )
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    values = pixels.astype(np.float32) * np.float32(brightness)
    mean = (values @ luma).mean()
    values = mean + (values - mean) * np.float32(contrast)
    grey = (values @ luma)[..., None]
    values = grey + (values - grey) * np.float32(saturation)
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def _erased(
    pixels: np.ndarray, preprocessing: Preprocessing, generator: np.random.Generator
) -> np.ndarray:
    height, width = pixels.shape[:2]
    box = _draw_box(width, height, ERASE_AREA, ERASE_ASPECT, generator)
    if box is None:
        return pixels
    left, top, right, bottom = box
    pixels = pixels.copy()
    pixels[top:bottom, left:right] = [round(255 * m) for m in preprocessing.mean]
    return pixels
