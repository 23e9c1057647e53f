"""Pictures become tensors as torchvision and timm make them, pixel for pixel."""

import json
import math
import resource

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail import Error
from vitrail.kit.preprocess import HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocessing


def photo(height, width, channels=3, seed=0):
    """A picture with smooth parts, edges and noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = np.stack([np.sin(9 * x + i) * np.cos(7 * y * i) for i in range(channels)], -1)
    edges = ((x * 10).astype(int) % 2)[..., None]
    picture = 100 + 60 * waves + 50 * edges + random.normal(0, 12, (height, width, channels))
    return picture.clip(0, 255).astype(np.uint8)


def torchvisions(image: Image.Image, size: int, crop: float, resample) -> np.ndarray:
    """Resize(floor(size / crop)) and CenterCrop(size) by torchvision's documented rules.

    Resize: the shorter side becomes s, the longer int(s * long / short). CenterCrop: from
    int(round((height - size) / 2.0)), and so for the width.
    """
    short = math.floor(size / crop)
    width, height = image.size
    if width <= height:
        resized = image.resize((short, int(short * height / width)), resample)
    else:
        resized = image.resize((int(short * width / height), short), resample)
    top = round((resized.height - size) / 2.0)
    left = round((resized.width - size) / 2.0)
    return np.asarray(resized)[top : top + size, left : left + size]


SHAPES = [(375, 500), (500, 375), (333, 333), (224, 224), (248, 249), (301, 224), (97, 301)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("size", "crop", "interpolation"),
    [
        (224, 0.9, "bicubic"),
        (224, 0.875, "bilinear"),
        (224, 1.0, "bicubic"),
        (96, 0.95, "lanczos"),
        (384, 1.0, "bicubic"),
        (28, 1.0, "bilinear"),
    ],
)
def test_geometry_is_torchvisions(shape, size, crop, interpolation):
    array = photo(*shape)
    ours = Preprocessing(size=size, crop=crop, interpolation=interpolation)
    resample = Image.Resampling[interpolation.upper()]
    expected = torchvisions(Image.fromarray(array), size, crop, resample)
    assert np.array_equal(ours.geometry(array), expected)
    assert np.array_equal(ours.geometry(Image.fromarray(array)), expected)


def test_normalised_values_are_torchvisions():
    image = Image.fromarray(photo(60, 80))
    for mean, std in [(HALF, HALF), (IMAGENET_MEAN, IMAGENET_STD)]:
        ours = Preprocessing(size=48, crop=0.9, mean=mean, std=std)
        pixels = torchvisions(image, 48, 0.9, Image.Resampling.BICUBIC)
        scaled = torch.from_numpy(pixels.astype(np.float64) / 255).permute(2, 0, 1)
        expected = (scaled - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        result = ours(image)
        assert result.dtype == torch.float32
        assert result.shape == (3, 48, 48)
        torch.testing.assert_close(result.double(), expected.double(), rtol=0, atol=2e-6)


def test_a_batch_is_normalised_as_each_picture():
    ours = Preprocessing(size=(32, 48), mean=IMAGENET_MEAN, std=IMAGENET_STD)
    pictures = [photo(50, 60, seed=i) for i in range(3)]
    batch = ours.normalize(torch.from_numpy(np.stack([ours.geometry(p) for p in pictures])))
    assert batch.is_contiguous()
    assert torch.equal(batch, torch.stack([ours(p) for p in pictures]))


def test_black_and_white_become_minus_one_and_one():
    ours = Preprocessing(size=4)
    assert torch.equal(ours(np.zeros((4, 4, 3), np.uint8)), torch.full((3, 4, 4), -1.0))
    torch.testing.assert_close(ours(np.full((4, 4, 3), 255, np.uint8)), torch.ones(3, 4, 4))


@pytest.mark.parametrize("shape", [(100, 300), (300, 100), (10, 10), (64, 96)])
def test_sizes_that_are_not_square_keep_the_aspect_ratio(shape):
    """A circle stays a circle, and the crop is filled to its edges."""
    height, width = shape
    y, x = np.mgrid[:height, :width]
    radius = min(shape) * 0.3
    disc = (y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2 < radius**2
    array = np.where(disc[..., None], 255, 100).astype(np.uint8).repeat(3, axis=2)
    result = Preprocessing(size=(64, 96), interpolation="bilinear").geometry(array)
    assert result.shape == (64, 96, 3)
    assert result.min() >= 99
    bright = result[..., 0] > 177
    tall, wide = bright.any(axis=1).sum(), bright.any(axis=0).sum()
    if tall < 64:
        assert abs(int(tall) - int(wide)) <= max(2, 96 / min(shape))


def test_squash_resizes_both_sides_whatever_the_aspect_ratio():
    array = photo(75, 200)
    resample = Image.Resampling.BICUBIC
    whole = np.asarray(Image.fromarray(array).resize((64, 64), resample))
    assert np.array_equal(Preprocessing(size=64, fit="squash").geometry(array), whole)
    larger = np.asarray(Image.fromarray(array).resize((80, 80), resample))
    cropped = Preprocessing(size=64, crop=0.8, fit="squash").geometry(array)
    assert np.array_equal(cropped, larger[8:72, 8:72])


@pytest.mark.parametrize("shape", [(40, 80), (80, 40), (64, 64), (1, 200), (500, 3)])
def test_letterbox_keeps_the_whole_picture_and_pads_with_the_mean(shape):
    array = np.full((*shape, 3), 250, np.uint8)
    ours = Preprocessing(size=64, mean=IMAGENET_MEAN, std=IMAGENET_STD, fit="letterbox")
    result = ours.geometry(array)
    assert result.shape == (64, 64, 3)
    picture = (result == 250).all(axis=2)
    rows, columns = picture.any(axis=1).sum(), picture.any(axis=0).sum()
    scale = 64 / max(shape)
    assert rows == max(1, round(shape[0] * scale))
    assert columns == max(1, round(shape[1] * scale))
    padding = result[~picture]
    assert (padding == [124, 116, 104]).all()
    # centred: the margins differ by one pixel at most
    top, left = int(picture.any(axis=1).argmax()), int(picture.any(axis=0).argmax())
    assert abs(64 - rows - 2 * top) <= 1
    assert abs(64 - columns - 2 * left) <= 1
    if not picture.all():
        assert ours(array)[:, ~torch.from_numpy(picture)].abs().max() < 0.02  # 0 but for rounding


def test_grey_and_transparent_pictures_become_rgb():
    ours = Preprocessing(size=16, crop=0.9)
    grey = photo(20, 30, 1)
    expected = ours.geometry(grey.repeat(3, axis=2))
    for same in (grey, grey[:, :, 0], Image.fromarray(grey[:, :, 0])):
        assert np.array_equal(ours.geometry(same), expected)
    colour = photo(20, 30)
    alpha = np.concatenate([colour, np.full((20, 30, 1), 7, np.uint8)], axis=2)
    for same in (alpha, Image.fromarray(alpha)):
        assert np.array_equal(ours.geometry(same), ours.geometry(colour))
    for mode in ("L", "P", "1", "LA", "CMYK", "I", "F", "HSV"):
        picture = Image.fromarray(colour).convert("L" if mode in "IF" else "RGB").convert(mode)
        assert ours(picture).shape == (3, 16, 16)
        assert ours.geometry(picture).dtype == np.uint8


@pytest.mark.parametrize("channels", [1, 4, None])
def test_arrays_of_the_right_size_become_rgb_too(channels):
    ours = Preprocessing(size=16)
    array = photo(16, 16, channels or 1)
    result = ours.geometry(array if channels else array[:, :, 0])
    assert result.shape == (16, 16, 3)
    assert np.array_equal(result, array[..., :3] if channels == 4 else array.repeat(3, axis=2))


def test_a_picture_that_fits_is_left_alone():
    array = photo(32, 48)
    for fit in ("crop", "squash", "letterbox"):
        assert np.array_equal(Preprocessing(size=(32, 48), fit=fit).geometry(array), array)


def test_read_only_and_strided_arrays(recwarn):
    ours = Preprocessing(size=16)
    array = photo(16, 16)
    expected = ours(array.copy())
    frozen = array.copy()
    frozen.setflags(write=False)
    for same in (
        frozen,
        np.asfortranarray(array),
        array[::-1][::-1],
        np.asarray(Image.fromarray(array)),
    ):
        assert torch.equal(ours(same), expected)
    result = ours(array)
    result.zero_()
    assert array.any(), "the caller's picture is not touched"
    assert not recwarn.list


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 3), (3, 1), (2, 2), (5, 1000), (1, 50_000), (50_000, 1)]
)
@pytest.mark.parametrize("fit", ["crop", "squash", "letterbox"])
def test_tiny_and_extreme_pictures(shape, fit):
    """Small pictures are enlarged; a strip must not be resized whole only to be cropped."""
    array = np.full((*shape, 3), (10, 200, 90), np.uint8)
    ours = Preprocessing(size=224, crop=0.9, fit=fit)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = ours.geometry(array)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB
    assert result.shape == (224, 224, 3)
    seen = (result == (10, 200, 90)).all(axis=2)
    assert seen.any() if fit == "letterbox" else seen.all()


def test_the_middle_of_a_strip_is_what_is_seen():
    strip = np.zeros((4, 401, 3), np.uint8)
    strip[:, 200] = 255  # the very middle
    result = Preprocessing(size=32, interpolation="bilinear").geometry(strip)
    profile = result[16, :, 0].astype(float)
    centre = (profile * np.arange(32)).sum() / profile.sum()
    assert abs(centre - 15.5) <= 1


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.zeros((8, 8, 3)), "uint8 array .* not float64"),
        (np.zeros((3, 8, 8), np.uint8), r"channels last"),
        (np.zeros((8, 8, 2), np.uint8), r"not uint8 \[8, 8, 2\]"),
        (np.zeros((2, 8, 8, 3), np.uint8), "uint8 array"),
        (np.zeros(8, np.uint8), "uint8 array"),
        (np.zeros((0, 8, 3), np.uint8), "no pixels"),
    ],
)
def test_arrays_that_are_no_pictures(array, sentence):
    with pytest.raises(Error, match=sentence):
        Preprocessing(size=8)(array)


def test_json_round_trip():
    ours = Preprocessing(
        size=(32, 48),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        crop=0.9,
        interpolation="box",
        fit="squash",
    )
    back = Preprocessing.from_json(json.loads(json.dumps(ours.to_json())))
    assert back == ours
    assert hash(back) == hash(ours)
    assert Preprocessing.from_json({"size": 224}) == Preprocessing(size=(224, 224))
    assert ours.replace(crop=1.0).crop == 1.0


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"size": 8, "interpolation": "bicubics"}, "did you mean 'bicubic'"),
        ({"size": 8, "fit": "stretch"}, "crop, squash, letterbox"),
        ({"size": 8, "crop": 0}, "crop is a share"),
        ({"size": 8, "crop": 90}, "crop is a share"),
        ({"size": 8, "crop": "all"}, "crop is a share"),
        ({"size": (8, 0)}, "whole pixels"),
        ({"size": (8,)}, "whole pixels"),
        ({"size": (3, 8, 8)}, "whole pixels"),
        ({"size": 0}, "whole pixels"),
        ({"size": (8.5, 8)}, "whole pixels"),
        ({"size": "8"}, "size must be a list of numbers"),
        ({"size": 8, "mean": 0.5}, "mean must be a list of numbers"),
        ({"size": 8, "mean": (0.5,)}, "1 means and 3 deviations"),
        ({"size": 8, "std": (0.5, 0.5, 0)}, "above 0"),
        ({"size": 8, "std": (0.5, 0.5, float("nan"))}, "std must be a list of numbers"),
        ({"size": 8, "resize": 9}, "unknown preprocessing fields: resize"),
        ({"mean": HALF}, "does not say its size"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(fields, sentence):
    with pytest.raises(Error, match=sentence):
        Preprocessing.from_json(fields)


def test_a_grey_model_takes_the_luma_of_colours():
    preprocessing = Preprocessing(size=(4, 4), mean=(0.5,), std=(0.5,))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    grey = np.asarray(Image.fromarray(pixels).convert("L"), np.float32)
    made = preprocessing(pixels)
    assert made.shape == (1, 4, 4)
    assert np.abs((made[0].numpy() + 1) * 127.5 - grey).max() <= 1
    with pytest.raises(Error, match="has 3 channels, and this model takes 5"):
        Preprocessing(size=(4, 4), mean=(0.5,) * 5, std=(0.5,) * 5)(pixels)


def test_a_letterbox_with_a_crop_is_timms_border_mode():
    """The longer side becomes floor(size / crop), then the centre is cut out or padded to size."""
    array = photo(60, 120)
    ours = Preprocessing(size=64, mean=IMAGENET_MEAN, std=IMAGENET_STD, crop=0.8, fit="letterbox")
    result = ours.geometry(array)
    inner = np.asarray(Image.fromarray(array).resize((80, 40), Image.Resampling.BICUBIC))
    assert np.array_equal(result[12:52], inner[:, 8:72])
    assert (result[:12] == [124, 116, 104]).all()
    assert (result[52:] == [124, 116, 104]).all()


def test_fitted_keeps_the_whole_picture():
    ours = Preprocessing(size=32, crop=0.8)
    assert (ours.fitted("letterbox").fit, ours.fitted("letterbox").crop) == ("letterbox", 1.0)
    assert ours.fitted("squash").crop == 1.0
    assert ours.fitted("crop") == ours
    with pytest.raises(Error, match="stretch"):
        ours.fitted("stretch")


def test_the_size_to_decode_at_is_twice_what_is_needed():
    crop = Preprocessing(size=224, crop=0.875)  # the shorter side becomes 256
    assert crop.needed_size(4000, 3000) == 512
    assert crop.needed_size(500, 375) is None
    squash, letterbox = crop.fitted("squash"), crop.fitted("letterbox")
    assert squash.needed_size(4000, 3000) == 448
    assert letterbox.needed_size(4000, 3000) == 336  # 448 for the longer side
    assert letterbox.needed_size(3000, 4000) == 336
    assert Preprocessing(size=(100, 400)).needed_size(4000, 3000) == 600  # the width decides
    assert crop.needed_size(1, 50_000) is None


@pytest.mark.parametrize("fit", ["crop", "squash", "letterbox"])
@pytest.mark.parametrize("size", [(40, 40), (30, 50)])
def test_the_region_is_where_the_models_pixels_come_from(fit, size):
    for crop in (1.0, 0.875, 0.5):
        pre = Preprocessing(size=size, crop=crop, fit=fit, interpolation="box", mean=(0, 0, 0))
        for height, width in ((600, 600), (400, 900), (900, 411), (30, 2000), (2000, 30)):
            # each pixel says where it is: red from the left, green from the top
            x = np.broadcast_to(255 * (np.arange(width) + 0.5) / width, (height, width))
            y = np.broadcast_to(255 * (np.arange(height) + 0.5) / height, (width, height)).T
            inside = np.full_like(x, 255)
            picture = np.rint(np.stack([x, y, inside], -1)).astype(np.uint8)
            seen = pre.geometry(picture).astype(float)
            left, top, right, bottom = pre.region(width, height)
            assert fit == "letterbox" or (min(left, top) >= 0 and max(right, bottom) < 1 + 1e-9)
            for axis, channel, begin, end in ((1, 0, left, right), (0, 1, top, bottom)):
                share = begin + (end - begin) * (np.arange(seen.shape[axis]) + 0.5) / size[axis]
                shown = seen[..., channel].max(1 - axis) / 255
                padded = seen[..., 2].max(1 - axis) == 0
                assert (padded == ((share < 0) | (share > 1))).all()
                # half a pixel, of the input or of the picture, and rounding
                step = max((end - begin) / size[axis], 1 / (height, width)[axis])
                assert np.abs(shown - share)[~padded].max() <= step / 2 + 1.5 / 255
