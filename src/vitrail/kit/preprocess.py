"""Preprocessing: the one object that says how a picture becomes a tensor.

It is saved with the model and used by training, evaluation, calibration, export and serving, so
that a picture can never be scaled one way when training and another way when used.
It has two halves. `geometry` (resize and crop) works on one picture and stays in uint8, because
moving bytes is four times cheaper than moving floats; `normalize` works on a whole batch.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from vitrail.kit.errors import Error, did_you_mean

if TYPE_CHECKING:  # `geometry` must not bring torch: a bundle runs without it
    import torch

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
FITS = ("crop", "squash", "letterbox")
MARGIN = 2  # a file is decoded so much larger than it is needed, at least

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)  # Google's models: pixels in [-1, 1]


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How a picture becomes the model's input.

    Args:
        size: (height, width) of the model's input, in pixels.
        mean, std: per channel, for pixels scaled to 0..1.
        crop: share of the resized picture that the central crop keeps, 0 < crop <= 1.
        interpolation: one of ``nearest bilinear bicubic lanczos box``, always anti-aliased.
        fit: ``crop`` resizes the shorter side to size/crop and cuts out the centre; ``squash``
            resizes both sides to size/crop whatever the aspect ratio, then cuts out the centre
            (with crop 1 that is the ViT repository's plain resize, vit_jax/input_pipeline.py);
            ``letterbox`` makes the longer side fit into size/crop, then cuts or pads with the mean
            colour to size (timm's crop mode ``border``; with crop 1 the whole picture is kept).
    """

    size: tuple[int, int]
    mean: tuple[float, ...] = HALF
    std: tuple[float, ...] = HALF
    crop: float = 1.0
    interpolation: str = "bicubic"
    fit: str = "crop"

    def __post_init__(self):
        if isinstance(self.size, int):
            object.__setattr__(self, "size", (self.size, self.size))
        for name in ("size", "mean", "std"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        if len(self.size) != 2 or any(side < 1 or side != int(side) for side in self.size):
            raise Error(f"size is (height, width) in whole pixels, not {self.size}")
        if not self.mean or len(self.mean) != len(self.std):
            raise Error(f"{len(self.mean)} means and {len(self.std)} deviations do not go together")
        if min(self.std) <= 0:
            raise Error(f"the deviations std must be above 0, not {self.std}")
        if self.interpolation not in INTERPOLATIONS:
            near = did_you_mean(self.interpolation, INTERPOLATIONS)
            raise Error(f"unknown interpolation {self.interpolation!r}{near}")
        if self.fit not in FITS:
            raise Error(f"unknown fit {self.fit!r}: it is one of {', '.join(FITS)}")
        if not isinstance(self.crop, (int, float)) or not 0 < self.crop <= 1:
            raise Error(f"crop is a share between 0 and 1, not {self.crop}")

    def __call__(self, image: Image.Image | np.ndarray) -> "torch.Tensor":
        """One picture, as for `geometry`, to float32 [c h w], resized and normalised."""
        import torch

        # Copied, because torch warns of arrays that it may not write to.
        return self.normalize(torch.tensor(self.geometry(image))[None])[0]

    def geometry(self, image: Image.Image | np.ndarray) -> np.ndarray:
        """Resize and crop one picture to uint8 [*size 3].

        Args:
            image: a PIL picture of any mode, or uint8 [h w 3]; grey ([h w] or [h w 1]) and RGBA
                ([h w 4], its transparency ignored) become RGB.

        Returns:
            The picture; an array that already has the size may come back as it is.

        Raises:
            Error: an array of another type or shape, or an empty one.
        """
        if isinstance(image, np.ndarray):
            image = _squeezed(image)
            if image.shape == (*self.size, 3) and self.crop == 1:
                return np.ascontiguousarray(image)
            image = Image.fromarray(image)
        if image.mode != "RGB":
            image = image.convert("RGB")
        return _FIT[self.fit](self, image)

    def needed_size(self, width: int, height: int) -> int | None:
        """The shorter side, in pixels, at which a file must be decoded for `geometry`.

        A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size, several times faster. Twice the pixels
        that are needed are asked for, so that the resize that follows has the last word: the mean
        difference from decoding in full is about 1 of 255 (`benchmarks/data.py` measures it).

        Args:
            width, height: of the file's picture, upright.

        Returns:
            None where it must be decoded in full.
        """
        goal_h, goal_w = (math.floor(side / self.crop) for side in self.size)
        scales = goal_h / height, goal_w / width
        scale = MARGIN * (min(scales) if self.fit == "letterbox" else max(scales))
        return math.ceil(min(width, height) * scale - 1e-6) if scale < 1 else None

    def window(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a picture that becomes the model's input: (top, left, height, width).

        In pixels of the picture, with fractions; it reaches beyond the picture where `geometry`
        pads. A place (y, x) of the input, in pixels, is (top + y * height / input height,
        left + x * width / input width) of the picture.

        Args:
            width, height: of the picture that `geometry` is given.
        """
        left, upper = 0, 0
        if self.fit == "crop":
            left, upper, right, lower = _middle(width, height, *self._goal)
            width, height = right - left, lower - upper
        shape = _SHAPE[self.fit](width, height, *self._goal)
        scale_y, scale_x = height / shape[1], width / shape[0]
        top = round((shape[1] - self.size[0]) / 2) * scale_y
        across = round((shape[0] - self.size[1]) / 2) * scale_x
        if self.fit == "letterbox":
            top = _border(shape[1], self.size[0]) * scale_y
            across = _border(shape[0], self.size[1]) * scale_x
        return upper + top, left + across, self.size[0] * scale_y, self.size[1] * scale_x

    def region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """What `window` is, as shares of the picture: (left, top, right, bottom).

        0 and 1 are the picture's own sides; with ``letterbox`` what is padded lies beyond them.

        Args:
            width, height: of the upright picture, in pixels.
        """
        top, left, tall, wide = self.window(width, height)
        return left / width, top / height, (left + wide) / width, (top + tall) / height

    @property
    def _goal(self) -> tuple[int, int]:
        """(height, width) that a picture is resized towards, before the crop."""
        return math.floor(self.size[0] / self.crop), math.floor(self.size[1] / self.crop)

    def normalize(self, images: "torch.Tensor") -> "torch.Tensor":
        """A batch of uint8 [b h w 3] to float32 [b c h w] with this mean and std.

        A single mean and deviation are those of a grey model: colours become their luma (ITU-R
        601, as Pillow's ``convert("L")``, unrounded).

        Raises:
            Error: a model of some other number of channels than 1 and 3.
        """
        import torch

        if len(self.mean) != images.shape[-1]:
            if len(self.mean) != 1 or images.shape[-1] != 3:
                raise Error(
                    f"a picture has {images.shape[-1]} channels, and this model takes "
                    f"{len(self.mean)}: make its input yourself"
                )
            luma = torch.tensor([0.299, 0.587, 0.114], device=images.device)
            images = (images * luma).sum(-1, keepdim=True)
        scale = torch.tensor([1 / (255 * s) for s in self.std], device=images.device)
        shift = torch.tensor(
            [-m / s for m, s in zip(self.mean, self.std, strict=True)], device=images.device
        )
        floats = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return floats.mul_(scale[:, None, None]).add_(shift[:, None, None])

    def fitted(self, fit: str) -> "Preprocessing":
        """A copy for pictures of other shapes; ``squash`` and ``letterbox`` keep all of them."""
        return self.replace(fit=fit, crop=self.crop if fit == "crop" else 1.0)

    def replace(self, **changes: Any) -> "Preprocessing":
        """A copy with these fields changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Preprocessing":
        """The inverse of `to_json`.

        Raises:
            Error: a field that does not exist, or a value out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - known)
        if unknown:
            raise Error(f"unknown preprocessing fields: {', '.join(unknown)}")
        if "size" not in fields:
            raise Error("the preprocessing does not say its size")
        return cls(**fields)


def _numbers(name: str, values: Any) -> tuple[Any, ...]:
    if not isinstance(values, (tuple, list)) or not all(
        isinstance(value, (int, float)) and math.isfinite(value) for value in values
    ):
        raise Error(f"{name} must be a list of numbers, not {values!r}")
    return tuple(values)


def _squeezed(image: np.ndarray) -> np.ndarray:
    """A uint8 array as [h w], [h w 3] or [h w 4]."""
    shape = image.shape
    colours = shape[2] if image.ndim == 3 else 1
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or colours not in (1, 3, 4):
        raise Error(
            f"a picture is a uint8 array [height width 3], not {image.dtype} {list(shape)}; "
            "scale floats to 0..255 and put the channels last"
        )
    if 0 in shape:
        raise Error(f"a picture of {list(shape)} has no pixels")
    return image[:, :, 0] if shape[2:] == (1,) else image


def _centre(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    top = round((image.height - height) / 2)
    left = round((image.width - width) / 2)
    return np.array(image.crop((left, top, left + width, top + height)))


def _crop(self: Preprocessing, image: Image.Image) -> np.ndarray:
    # A size that is not square scales by the side that needs the most.
    middle = _middle(image.width, image.height, *self._goal)
    if middle != (0, 0, image.width, image.height):
        image = image.crop(middle)
    shape = _covering(image.width, image.height, *self._goal)
    return _centre(_resized(self, image, shape), self.size)


def _covering(width: int, height: int, goal_h: int, goal_w: int) -> tuple[int, int]:
    """(width, height) of a picture resized until it covers the goal.

    The shorter side becomes floor(size / crop) and the longer one is cut down to a whole number of
    pixels, as torchvision and timm do.
    """
    if goal_h / height >= goal_w / width:
        return max(goal_w, int(goal_h * width / height)), goal_h
    return goal_w, max(goal_h, int(goal_w * height / width))


def _middle(width: int, height: int, goal_h: int, goal_w: int) -> tuple[int, int, int, int]:
    """The middle of an extreme strip, whose ends would be resized to be thrown away: a box.

    A picture of 1x50,000 pixels would otherwise become 248x12,400,000 first. The centre stays
    where it is, and pictures of usual shapes are left alone.
    """
    longest = 8  # times the shape that is asked for
    most_w = max(1, math.ceil(longest * height * goal_w / goal_h))
    most_h = max(1, math.ceil(longest * width * goal_h / goal_w))
    if width <= most_w + 1 and height <= most_h + 1:
        return 0, 0, width, height
    cut_w = (width - most_w) // 2 if width > most_w else 0
    cut_h = (height - most_h) // 2 if height > most_h else 0
    return cut_w, cut_h, width - cut_w, height - cut_h


def _squash(self: Preprocessing, image: Image.Image) -> np.ndarray:
    shape = _exact(image.width, image.height, *self._goal)
    return _centre(_resized(self, image, shape), self.size)


def _exact(width: int, height: int, goal_h: int, goal_w: int) -> tuple[int, int]:
    return goal_w, goal_h


def _letterbox(self: Preprocessing, image: Image.Image) -> np.ndarray:
    height, width = self.size
    inner_w, inner_h = _inside(image.width, image.height, *self._goal)
    inner = _resized(self, image, (inner_w, inner_h))
    inner = _centre(inner, (min(inner_h, height), min(inner_w, width)))
    fill = np.array([round(255 * m) for m in self.mean], np.uint8)
    canvas = np.broadcast_to(fill, (height, width, 3)).copy()
    top, left = (height - inner.shape[0]) // 2, (width - inner.shape[1]) // 2
    canvas[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return canvas


def _inside(width: int, height: int, goal_h: int, goal_w: int) -> tuple[int, int]:
    """(width, height) of a picture resized until it fits into the goal."""
    scale = min(goal_h / height, goal_w / width)
    return min(goal_w, max(1, round(width * scale))), min(goal_h, max(1, round(height * scale)))


def _border(inner: int, side: int) -> int:
    """Where an input of ``side`` begins on a picture of ``inner`` pixels; below 0 where it pads."""
    return -((side - inner) // 2) if inner < side else round((inner - side) / 2)


def _resized(self: Preprocessing, image: Image.Image, shape: tuple[int, int]) -> Image.Image:
    if image.size == shape:
        return image
    return image.resize(shape, INTERPOLATIONS[self.interpolation])


_FIT = {"crop": _crop, "squash": _squash, "letterbox": _letterbox}
_SHAPE = {"crop": _covering, "squash": _exact, "letterbox": _inside}
