"""Transforms: what training does to one picture on top of `Preprocessing`; evaluation does none.

A picture stays uint8 until its batch is on the device. An `Augment` draws from one generator in a
fixed order (crop, shift, mirror, RandAugment, 3-Augment, jitter, erasing), so a sample's view is a
function of (seed, epoch, index). What is switched off draws nothing.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np

from vitrail.data import crops, effects
from vitrail.data.crops import BOXES, Box, needed_size
from vitrail.data.rand_augment import KINDS, check_magnitude, rand_augment
from vitrail.kit.errors import Error
from vitrail.kit.preprocess import INTERPOLATIONS, Preprocessing

CROPS = ("none", "pad", "inception", "inception_tf", "simple")
FILLS = ("mean", "noise")

__all__ = ["Augment", "needed_size", "suggest"]


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Training augmentation of one picture; without arguments it changes nothing.

    Args:
        crop: ``none`` takes evaluation's view; ``pad`` shifts that view by at most ``pad`` pixels
            along each axis, black coming in (the usual thing on CIFAR); ``inception`` cuts out a
            box of random area and aspect ratio and resizes it (arXiv 1409.4842, with the
            statistics of torchvision's RandomResizedCrop); ``inception_tf`` does so with those of
            TensorFlow's sample_distorted_bounding_box, which big_vision uses and which draws small
            boxes more often; ``simple`` is DeiT III's: the shorter side resized to the model's
            size, four mirrored pixels around, a random part.
        area: of an inception crop, as a share of the picture: lowest and highest.
        aspect: of an inception crop, width / height: lowest and highest (big_vision: 0.75, 1.33).
        antialias: whether an inception crop is averaged when it is made smaller; big_vision's is
            not.
        interpolation: of the crop, and of what RandAugment moves; None: evaluation's, and
            RandAugment's own. (big_vision and torchvision's script train with ``bilinear``.)
        pad: the largest shift of ``pad``, in pixels.
        flip: probability of a mirrored picture.
        rand_augment: ``none``, ``big_vision``, ``torchvision`` or ``timm``: which RandAugment
            (`vitrail.data.rand_augment` says how they differ).
        rand_layers: operations of RandAugment one after the other.
        rand_magnitude: their strength in that library's units: 0..10 and up to 20 for
            big_vision, bins 0..30 for torchvision, 0..10 for timm.
        rand_magnitude_std: timm's deviation of the strength (``mstd``).
        three_augment: whether the picture is made grey, solarised or blurred, one of the three
            (DeiT III).
        jitter: brightness, contrast and saturation are each scaled by 1 - jitter .. 1 + jitter.
            (timm, and so DeiT, leaves its jitter out where RandAugment is on.)
        erase: probability that a random box is erased, after all else.
        erase_fill: ``mean`` fills it with the mean colour, ``noise`` with normal noise of the
            data's mean and deviation (timm's ``pixel``).
        erase_area: of the erased box, as a share of the picture: lowest and highest.
        erase_aspect: of the erased box: lowest and highest.
    """

    crop: str = "none"
    area: tuple[float, float] = (0.08, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    antialias: bool = True
    interpolation: str | None = None
    pad: int = 0
    flip: float = 0.0
    rand_augment: str = "none"
    rand_layers: int = 2
    rand_magnitude: float = 10
    rand_magnitude_std: float = 0
    three_augment: bool = False
    jitter: float = 0.0
    erase: float = 0.0
    erase_fill: str = "mean"
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    erase_aspect: tuple[float, float] = (0.3, 1 / 0.3)

    def __post_init__(self):
        for name in ("area", "aspect", "erase_area", "erase_aspect"):
            if len(getattr(self, name)) != 2:
                raise Error(f"augment {name} is (lowest, highest), not {getattr(self, name)}")
            low, high = getattr(self, name)
            object.__setattr__(self, name, (low, high))
            if not 0 < low <= high:
                raise Error(f"augment {name} is (lowest, highest) above 0, not ({low}, {high})")
            if name.endswith("area") and high > 1:
                raise Error(f"augment {name} is a share of the picture, not {high}")
        choices: dict[str, tuple[str, ...]] = {
            "crop": CROPS,
            "rand_augment": KINDS,
            "erase_fill": FILLS,
        }
        if self.interpolation is not None:
            choices["interpolation"] = tuple(INTERPOLATIONS)
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise Error(
                    f"unknown augment {name} {getattr(self, name)!r}: it is one of "
                    f"{', '.join(known)}"
                )
        for name in ("flip", "jitter", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise Error(f"augment {name} lies between 0 and 1, not at {getattr(self, name)}")
        for name in ("pad", "rand_layers", "rand_magnitude_std"):
            if not getattr(self, name) >= 0:
                raise Error(f"augment {name} is at least 0, not {getattr(self, name)}")
        if self.rand_augment != "none":
            wrong = check_magnitude(self.rand_augment, self.rand_magnitude)
            if wrong:
                raise Error(f"augment rand_magnitude {wrong}")
        if self.rand_magnitude_std and self.rand_augment != "timm":
            raise Error("augment rand_magnitude_std belongs to rand_augment timm alone")

    @property
    def nothing(self) -> bool:
        """Whether training sees exactly what evaluation sees."""
        moved = self.crop in (*BOXES, "simple") or (self.crop == "pad" and self.pad > 0)
        randomly = self.rand_augment != "none" and self.rand_layers > 0
        return not (
            moved or randomly or self.flip or self.three_augment or self.jitter or self.erase
        )

    def __call__(
        self, image: np.ndarray, preprocessing: Preprocessing, generator: np.random.Generator
    ) -> np.ndarray:
        """One picture, uint8 [h w 3], to one training view of it, uint8 [*preprocessing.size 3]."""
        height, width = image.shape[:2]
        box = self.box(width, height, generator)
        return self.view(image, box, (width, height), preprocessing, generator)

    def box(self, width: int, height: int, generator: np.random.Generator) -> Box | None:
        """The crop of a picture of this size, drawn first of all; None where no box is drawn."""
        if self.crop not in BOXES:
            return None
        return BOXES[self.crop](width, height, self.area, self.aspect, generator)

    def needed_size(
        self, box: Box | None, full: tuple[int, int], preprocessing: Preprocessing
    ) -> int | None:
        """The shorter side to decode at for what `box` drew, as `decode` takes it.

        Args:
            box: what `box` drew, in pixels of the full picture.
            full: (width, height) of the full picture.
            preprocessing: gives the size of the result.
        """
        if self.crop in BOXES:
            return needed_size(box, full, preprocessing.size) if self.antialias else None
        return preprocessing.needed_size(*full)

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
        how = self.interpolation or preprocessing.interpolation
        if box is not None:
            pixels = crops.cut_out(image, box, full, preprocessing.size, how, self.antialias)
        elif self.crop == "simple":
            pixels = crops.simple_crop(image, preprocessing.size, how, generator)
        else:
            pixels = preprocessing.geometry(image)
        if self.crop == "pad" and self.pad:
            pixels = effects.shifted(pixels, self.pad, generator)
        if self.flip and generator.random() < self.flip:
            pixels = effects.mirrored(pixels)
        return np.ascontiguousarray(self._coloured(pixels, preprocessing, generator))

    def _coloured(
        self, pixels: np.ndarray, preprocessing: Preprocessing, generator: np.random.Generator
    ) -> np.ndarray:
        if self.rand_augment != "none":
            pixels = rand_augment(
                pixels,
                self.rand_augment,
                generator,
                layers=self.rand_layers,
                magnitude=self.rand_magnitude,
                magnitude_std=self.rand_magnitude_std,
                mean=preprocessing.mean,
                interpolation=self.interpolation,
            )
        if self.three_augment:
            pixels = effects.three_augmented(pixels, generator)
        if self.jitter:
            pixels = effects.jittered(pixels, self.jitter, generator)
        if self.erase and generator.random() < self.erase:
            pixels = effects.erased(
                pixels,
                generator,
                area=self.erase_area,
                aspect=self.erase_aspect,
                mean=preprocessing.mean,
                std=preprocessing.std if self.erase_fill == "noise" else None,
            )
        return pixels

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
