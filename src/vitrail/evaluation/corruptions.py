"""The fifteen corruptions of ImageNet-C (Hendrycks and Dietterich, ICLR 2019), made as needed.

Each follows the authors' definition (github.com/hendrycks/robustness, ImageNet-C/create_c), with
their parameters from `severities`, on the picture as the model sees it: uint8 [h w 3] after
resizing and cropping. Three things differ from the published files: the draws; no JPEG of quality
85 is made of the result; and `frost` lays drawn ice over the picture, because the authors'
photographs are not shipped here (the function takes photographs too).

A picture's draws depend on (seed, corruption, key) alone: any order, any number of workers and any
batch size give the same pixels (for one version of numpy), and the severities of one picture share
their draws.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vitrail.evaluation import filters
from vitrail.evaluation.severities import FROST_SIZES, TABLES, table_for
from vitrail.kit.errors import Error, did_you_mean

Numbers = np.random.Generator

LUMA = np.array([0.299, 0.587, 0.114])
ICE = np.array([0.82, 0.92, 1.0])  # the tint of drawn frost


def corrupt(
    image: np.ndarray,
    name: str,
    severity: int,
    key: str = "",
    seed: int = 0,
    table: str | None = None,
    photographs: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """A picture under one corruption.

    Args:
        image: uint8 [h w 3]; it is not changed.
        name: one of `severities.CORRUPTIONS`.
        severity: 1 to 5.
        key: of the picture.
        seed: of the draws.
        table: whose parameters, one of `severities.TABLES`; None: the nearest in size.
        photographs: of ice, for `frost`; see there.

    Returns:
        uint8 [h w 3]. Fractions are cut off, as the authors' code does.

    Raises:
        Error: an unknown corruption, severity or table, or a picture of another kind.
    """
    check_names([name], [severity])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise Error(f"a picture is uint8 [h w 3], not {image.dtype} {list(image.shape)}")
    table = table or table_for(min(image.shape[:2]))
    if table not in TABLES:
        raise Error(f"no parameters are called {table!r}: there are {', '.join(TABLES)}")
    parameters = TABLES[table][name][severity - 1]
    text = f"{seed}\0{name}\0{key}".encode("utf-8", "surrogateescape")
    entropy = int.from_bytes(hashlib.blake2b(text, digest_size=16).digest())
    numbers = np.random.Generator(np.random.Philox(key=entropy))
    if name == "frost":
        made = frost(image, parameters, numbers, photographs)
    else:
        made = MAKERS[name](image, parameters, numbers)
    return made if made.dtype == np.uint8 else np.clip(made * 255, 0, 255).astype(np.uint8)


def ice_photographs(pictures: Sequence[np.ndarray], side: int) -> list[np.ndarray]:
    """Photographs of ice at the size at which the authors lay them over pictures of this side.

    Args:
        pictures: uint8 [h w 3]; the authors' are `frost1.png` to `frost6.jpg`.

    Raises:
        Error: one that is too small then.
    """
    share = FROST_SIZES[table_for(side)]
    made = []
    for picture in pictures:
        size = (round(picture.shape[1] * share), round(picture.shape[0] * share))
        if min(size) < side:
            raise Error(
                f"a photograph of ice of {picture.shape[0]}x{picture.shape[1]} is used at "
                f"{size[1]}x{size[0]}, too small for pictures of {side}"
            )
        image = Image.fromarray(picture)
        made.append(np.array(image.resize(size, Image.Resampling.BILINEAR)))
    return made


def check_names(names: Sequence[str], severities: Sequence[int]) -> None:
    """Check what a user asked for.

    Raises:
        Error: an unknown corruption with the nearest known one, or a severity outside of 1..5.
    """
    for name in names:
        if name not in MAKERS:
            near = did_you_mean(name, MAKERS) or f"; there are {', '.join(MAKERS)}"
            raise Error(f"no corruption is called {name!r}{near}")
    for severity in severities:
        if severity not in range(1, 6):
            raise Error(f"a corruption's severity is 1, 2, 3, 4 or 5, not {severity}")


# Each takes uint8 [h w 3], one row of `severities` and the generator, and returns 0..1 (or uint8).


def gaussian_noise(image: np.ndarray, deviation: float, numbers: Numbers) -> np.ndarray:
    """Normal noise of this deviation, each channel of its own."""
    return np.clip(image / 255 + numbers.normal(scale=deviation, size=image.shape), 0, 1)


def shot_noise(image: np.ndarray, photons: float, numbers: Numbers) -> np.ndarray:
    """Poisson noise of so many photons at white."""
    return np.clip(numbers.poisson(image / 255 * photons) / photons, 0, 1)


def impulse_noise(image: np.ndarray, share: float, numbers: Numbers) -> np.ndarray:
    """A share of all values becomes 0 or 1, half of them each (skimage.util.random_noise "s&p")."""
    made = image / 255
    hit = numbers.random(image.shape) <= share
    white = numbers.random(image.shape) <= 0.5
    made[hit & white], made[hit & ~white] = 1, 0
    return made


def defocus_blur(image: np.ndarray, shape: tuple[float, float], numbers: Numbers) -> np.ndarray:
    """The mean over a disk: (radius, softness of its edge)."""
    return np.clip(filters.convolved(image / 255, filters.disk(*shape)), 0, 1)


def glass_blur(image: np.ndarray, shape: tuple[float, int, int], numbers: Numbers) -> np.ndarray:
    """Pixels take others' places: (blur before and after, how far, how many rounds).

    The authors' swap works on views of one array, so that a pixel takes its neighbour's colour and
    the neighbour keeps it; the published files are made like that, and so is this.
    """
    sigma, reach, rounds = shape
    blurred = (filters.gaussian(image / 255, sigma) * 255).astype(np.uint8)
    height, width = image.shape[:2]
    origin = list(range(height * width))
    for _ in range(rounds):
        rows = range(height - reach, reach, -1)
        columns = range(width - reach, reach, -1)
        moves = numbers.integers(-reach, reach, (len(rows) * len(columns), 2)) @ (1, width)
        draw = iter(moves.tolist())
        for row in rows:
            for place in range(row * width + columns[0], row * width + columns[-1] - 1, -1):
                origin[place] = origin[place + next(draw)]
    moved = blurred.reshape(-1, 3)[origin].reshape(image.shape)
    return np.clip(filters.gaussian(moved / 255, sigma), 0, 1)


def motion_blur(image: np.ndarray, shape: tuple[int, float], numbers: Numbers) -> np.ndarray:
    """Smeared along a line within 45 degrees of the horizontal: (radius, sigma)."""
    angle = numbers.uniform(-45, 45)
    return _rounded(filters.motion_blurred(image, *shape, angle))


def zoom_blur(image: np.ndarray, shape: tuple[float, float], numbers: Numbers) -> np.ndarray:
    """The mean of the picture and its enlargements by 1 up to a factor: (its end, the step)."""
    plain = image / 255
    factors = np.arange(1, *shape)
    total = plain + sum(filters.zoomed(plain, factor) for factor in factors.tolist())
    return np.clip(total / (len(factors) + 1), 0, 1)


def snow(image: np.ndarray, shape: tuple[float, ...], numbers: Numbers) -> np.ndarray:
    """Flakes blown downwards over a whitened picture.

    (mean and deviation of the flakes' noise, its enlargement, what is left of it: at least this,
    radius and sigma of its motion, how much of the picture's own colours stays)
    """
    mean, deviation, zoom, least, radius, sigma, own = shape
    flakes = filters.zoomed(numbers.normal(mean, deviation, image.shape[:2]), zoom)
    flakes = np.where(flakes < least, 0, flakes)
    flakes = (np.clip(flakes, 0, 1) * 255).astype(np.uint8)
    angle = numbers.uniform(-135, -45)
    flakes = _rounded(filters.motion_blurred(flakes, int(radius), sigma, angle))[..., None] / 255
    plain = image / 255
    white = np.maximum(plain, (plain @ LUMA)[..., None] * 1.5 + 0.5)
    whitened = own * plain + (1 - own) * white
    return np.clip(whitened + flakes + flakes[::-1, ::-1], 0, 1)


def frost(
    image: np.ndarray,
    shape: tuple[float, float],
    numbers: Numbers,
    photographs: Sequence[np.ndarray] = (),
) -> np.ndarray:
    """Ice over the picture: (share of the picture, share of the ice).

    Args:
        photographs: of ice, uint8 [h w 3] of at least the picture's size, one of which is cut at
            random; without any the ice is drawn.
    """
    height, width = image.shape[:2]
    if photographs:
        whole = photographs[int(numbers.integers(len(photographs)))]
        top = int(numbers.integers(whole.shape[0] - height + 1))
        left = int(numbers.integers(whole.shape[1] - width + 1))
        ice = whole[top : top + height, left : left + width] / 255
    else:
        ice = drawn_ice(height, width, numbers)
    return np.clip(shape[0] * (image / 255) + shape[1] * ice, 0, 1)


def drawn_ice(height: int, width: int, numbers: Numbers) -> np.ndarray:
    """Ferns of ice, 0..1 [h w 3]: ridges of a cloud, and needles along three directions."""
    side = 1 << (max(height, width) - 1).bit_length()
    cloud = filters.plasma(side, 1.5, numbers)[:height, :width]
    ridges = (1 - np.abs(2 * cloud - 1)) ** 3
    needles = (numbers.random((height, width)) > 0.93).astype(float)
    reach = max(2, min(height, width) // 16)
    turn = numbers.uniform(0, 60)
    ferns = sum(
        filters.motion_blurred(needles, reach, reach, turn + third) for third in (0, 60, 120)
    )
    ice = 0.55 * ridges + 0.45 * np.clip(ferns * 2, 0, 1)
    return np.clip(ice, 0, 1)[..., None] * ICE


def fog(image: np.ndarray, shape: tuple[float, float], numbers: Numbers) -> np.ndarray:
    """A cloud laid over the picture: (how dense, how smooth)."""
    density, decay = shape
    height, width = image.shape[:2]
    # The authors' cloud has 256 pixels for pictures of 224: the next power of two.
    cloud = filters.plasma(1 << (max(height, width) - 1).bit_length(), decay, numbers)
    plain = image / 255
    most = plain.max()
    return np.clip((plain + density * cloud[:height, :width, None]) * most / (most + density), 0, 1)


def brightness(image: np.ndarray, more: float, numbers: Numbers) -> np.ndarray:
    """More of V, where a colour is hue, saturation and V: all channels in proportion."""
    plain = image / 255
    value = plain.max(2, keepdims=True)
    raised = np.clip(value + more, 0, 1)
    return np.where(value > 0, plain * raised / np.where(value > 0, value, 1), raised)


def contrast(image: np.ndarray, share: float, numbers: Numbers) -> np.ndarray:
    """Every channel drawn towards its mean."""
    plain = image / 255
    means = plain.mean((0, 1))
    return np.clip((plain - means) * share + means, 0, 1)


def elastic_transform(
    image: np.ndarray, shape: tuple[float, float, float], numbers: Numbers
) -> np.ndarray:
    """A random affine map, then random small moves: (their reach, their smoothness, the affine's).

    The affine map moves three corners of the inner square, a third of the picture, by a uniform
    draw each (border REFLECT_101); the moves are blurred uniform noise (border symmetric).
    """
    reach, smooth, jitter = shape
    height, width = image.shape[:2]
    centre = np.array([width // 2, height // 2], float)
    third = min(height, width) // 3
    corners = centre + third * np.array([[1, 1], [1, -1], [-1, -1]], float)
    moved = corners + numbers.uniform(-jitter, jitter, corners.shape)
    rows, columns = np.mgrid[:height, :width].astype(float)
    # Where a pixel comes from: the affine map that takes the moved corners back.
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)
    from_x, from_y = np.moveaxis(np.stack([columns, rows, np.ones_like(rows)], 2) @ back, 2, 0)
    warped = filters.sampled(image / 255, from_y, from_x, "reflect")
    down, across = (
        filters.gaussian(numbers.uniform(-1, 1, (height, width)), smooth, "symmetric", 3) * reach
        for _ in range(2)
    )
    return np.clip(filters.sampled(warped, rows + down, columns + across, "symmetric"), 0, 1)


def pixelate(image: np.ndarray, share: float, numbers: Numbers) -> np.ndarray:
    """Made smaller to this share of its sides and large again, by the mean over boxes."""
    height, width = image.shape[:2]
    small = (max(1, int(width * share)), max(1, int(height * share)))
    picture = Image.fromarray(image).resize(small, Image.Resampling.BOX)
    return np.array(picture.resize((width, height), Image.Resampling.BOX))


def jpeg_compression(image: np.ndarray, quality: int, numbers: Numbers) -> np.ndarray:
    """Through a JPEG of this quality, Pillow's."""
    written = io.BytesIO()
    Image.fromarray(image).save(written, "JPEG", quality=quality)
    return np.array(Image.open(written).convert("RGB"))


def _rounded(values: np.ndarray) -> np.ndarray:
    """0..255 to uint8 as ImageMagick stores a pixel."""
    return np.floor(values + 0.5).clip(0, 255).astype(np.uint8)


MAKERS: dict[str, Callable[[np.ndarray, Any, Numbers], np.ndarray]] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "defocus_blur": defocus_blur,
    "glass_blur": glass_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "snow": snow,
    "frost": frost,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}
