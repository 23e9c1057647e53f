"""Augmentation: the statistics are right, and a view is a function of (seed, epoch, index)."""

import math

import numpy as np
import pytest
from PIL import Image

from tests.data.pictures import smooth
from vitrail.data.draws import sample_generator
from vitrail.data.transforms import Augment, needed_size, suggest
from vitrail.kit.errors import Error
from vitrail.kit.preprocess import Preprocessing

IMAGE = np.asarray(smooth(80, 60))
SMALL = Preprocessing(size=(32, 24))


def views(augment: Augment, count: int = 200, image=IMAGE, preprocessing=SMALL) -> np.ndarray:
    return np.stack(
        [augment(image, preprocessing, sample_generator(0, 0, i)) for i in range(count)]
    )


def test_nothing_is_what_evaluation_sees():
    assert Augment().nothing
    np.testing.assert_array_equal(views(Augment(), 1)[0], SMALL.geometry(IMAGE))


def test_a_view_is_a_function_of_seed_epoch_and_index():
    augment = Augment(crop="inception", flip=0.5, jitter=0.4, erase=0.5)

    def view(*place):
        return augment(IMAGE, SMALL, sample_generator(*place))

    np.testing.assert_array_equal(view(1, 2, 3), view(1, 2, 3))
    others = [view(*place) for place in ((1, 2, 4), (1, 3, 3), (2, 2, 3))]
    assert all((other != view(1, 2, 3)).any() for other in others)


@pytest.mark.parametrize(
    "augment",
    [
        Augment(crop="inception", flip=0.5, jitter=0.4, erase=1.0),
        Augment(crop="pad", pad=4, flip=1.0),
        Augment(crop="pad", pad=100),
        Augment(erase=1.0, jitter=1.0),
        Augment(crop="inception_tf", antialias=False, interpolation="bilinear", flip=0.5),
        Augment(crop="simple", three_augment=True, erase=1.0, erase_fill="noise"),
        Augment(rand_augment="big_vision", rand_layers=3),
        Augment(rand_augment="torchvision", rand_layers=3),
        Augment(rand_augment="timm", rand_layers=5, rand_magnitude=9, rand_magnitude_std=0.5),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(60, 80), (1, 1), (1, 500), (500, 1), (24, 32)])
def test_every_view_has_the_size_wanted(augment, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    result = views(augment, 20, image)
    assert result.shape == (20, 32, 24, 3)
    assert result.dtype == np.uint8


def test_the_inception_crop_has_torchvisions_statistics():
    augment = Augment(crop="inception", area=(0.08, 1.0))
    boxes = np.array([augment.box(400, 300, sample_generator(0, 0, i)) for i in range(4000)])
    left, top, right, bottom = boxes.T
    width, height = right - left, bottom - top
    assert left.min() >= 0
    assert top.min() >= 0
    assert right.max() <= 400
    assert bottom.max() <= 300
    area, aspect = width * height / 120_000, width / height
    assert 0.079 < area.min() < 0.09
    assert area.max() > 0.9
    # Small boxes are never rejected, so below half the area its density is flat: three equal bins.
    bins = np.histogram(area, [0.08, 0.22, 0.36, 0.5])[0]
    assert abs(bins - bins.mean()).max() < 4 * math.sqrt(bins.mean())
    small = aspect[area < 0.5]
    assert small.min() > 0.74
    assert small.max() < 1.35
    assert abs(np.log(small).mean()) < 4 * np.log(small).std() / math.sqrt(len(small))


def tensorflows_box(width, height, area, aspect, generator):
    """sample_distorted_bounding_box in other words: all heights that the area allows, one of them.

    None where the attempt fails.
    """
    ratio = aspect[0] + (aspect[1] - aspect[0]) * generator.random()
    total = width * height
    fits = [h for h in range(1, height + 1) if np.rint(h * ratio) <= width]
    highest = min(fits[-1] if fits else 0, round(math.sqrt(area[1] * total / ratio)))
    lowest = min(round(math.sqrt(area[0] * total / ratio)), highest)
    h = lowest
    if lowest < highest:
        h += int(generator.random() * (highest - lowest + 1))
    for step in (0, 1):  # a row more where rounding made it too small, then one less
        covered = h * np.rint(h * ratio)
        if step == 0 and covered < area[0] * total:
            h += 1
        if step == 1 and covered > area[1] * total:
            h -= 1
    w = round(h * ratio)
    if not area[0] * total <= w * h <= area[1] * total or not (0 < w <= width and 0 < h <= height):
        return None
    top = int(generator.random() * (height - h)) if h < height else 0
    left = int(generator.random() * (width - w)) if w < width else 0
    return left, top, left + w, top + h


@pytest.mark.parametrize("shape", [(400, 300), (300, 400), (37, 11), (224, 224)])
@pytest.mark.parametrize("area", [(0.05, 1.0), (0.3, 0.4)])
def test_the_other_inception_crop_is_tensorflows(shape, area):
    augment = Augment(crop="inception_tf", area=area, aspect=(0.75, 1.33))
    for i in range(300):
        box = augment.box(*shape, sample_generator(0, 0, i))
        generator, wanted = sample_generator(0, 0, i), None
        for _ in range(100):
            wanted = tensorflows_box(*shape, area, (0.75, 1.33), generator)
            if wanted:
                break
        assert box == (wanted or (0, 0, *shape))


def test_tensorflows_crop_is_small_more_often():
    """Heights are uniform there, areas here: facts of both, seen in the mean area."""
    areas = {}
    for crop in ("inception", "inception_tf"):
        augment = Augment(crop=crop, area=(0.05, 1.0), aspect=(0.75, 1.33))
        boxes = np.array([augment.box(500, 500, sample_generator(0, 0, i)) for i in range(2000)])
        left, top, right, bottom = boxes.T
        areas[crop] = (right - left) * (bottom - top) / 250_000
    assert areas["inception_tf"].mean() < areas["inception"].mean() - 0.05
    # A uniform height between 0.22 and 1 of the side makes the root of the area uniform.
    roots = np.sqrt(areas["inception_tf"])
    bins = np.histogram(roots, [0.3, 0.45, 0.6, 0.75])[0]
    assert abs(bins - bins.mean()).max() < 4 * math.sqrt(bins.mean())


def test_tensorflow_takes_the_whole_picture_where_no_box_fits():
    augment = Augment(crop="inception_tf", area=(0.9, 1.0))
    assert augment.box(1000, 10, sample_generator(0, 0, 0)) == (0, 0, 1000, 10)


def test_a_picture_that_no_box_fits_is_cropped_in_the_centre():
    augment = Augment(crop="inception", area=(0.9, 1.0))
    for i in range(20):
        assert augment.box(1000, 10, sample_generator(0, 0, i)) == (493, 0, 506, 10)
        assert augment.box(10, 1000, sample_generator(0, 0, i)) == (0, 493, 10, 506)


def test_the_crop_of_a_picture_decoded_smaller_shows_the_same_part():
    augment = Augment(crop="inception")
    large = np.asarray(smooth(800, 600))
    half = np.asarray(smooth(800, 600).reduce(2))
    for i in range(20):
        box = augment.box(800, 600, sample_generator(0, 0, i))
        seen = [
            augment.view(image, box, (800, 600), SMALL, sample_generator(0, 0, i)).astype(int)
            for image in (large, half)
        ]
        assert np.abs(seen[0] - seen[1]).mean() < 1


def test_the_size_to_decode_at_never_scales_a_crop_up():
    assert needed_size(None, (800, 600), (32, 24)) is None
    # Half as many pixels again as the crop becomes.
    assert 45 <= needed_size((0, 0, 800, 600), (800, 600), (30, 40)) <= 46
    assert 90 <= needed_size((0, 0, 400, 600), (800, 600), (30, 40)) <= 91
    assert needed_size((0, 0, 20, 600), (800, 600), (30, 40)) is None


def test_flips_are_as_frequent_as_asked():
    plain = SMALL.geometry(IMAGE)
    mirrored = (views(Augment(flip=0.3), 1000) == plain[:, ::-1]).all((1, 2, 3))
    assert abs(mirrored.mean() - 0.3) < 0.06
    assert (views(Augment(flip=1.0), 5) == plain[:, ::-1]).all()


def test_shifts_reach_everywhere_and_bring_in_black():
    image = np.full((32, 24, 3), 255, np.uint8)
    image[0, 0] = 7  # a mark that shows the shift
    seen = set()
    for view in views(Augment(crop="pad", pad=2), 300, image):
        mark = np.argwhere(view[..., 0] == 7)
        black = (view == 0).all(-1).sum()
        if len(mark):
            down, across = mark[0]
            assert black == down * 24 + across * 32 - down * across
            seen.add((int(down), int(across)))
        else:
            assert black > 0
    assert seen == {(down, across) for down in range(3) for across in range(3)}


def test_jitter_keeps_grey_grey_and_changes_brightness():
    grey = np.repeat(np.asarray(smooth(24, 32).convert("L"))[..., None], 3, 2)
    seen = views(Augment(jitter=0.4), 200, grey).astype(int)
    assert np.abs(seen - seen[..., :1]).max() <= 1
    means = seen.mean((1, 2, 3)) / grey.mean()
    assert means.min() < 0.7
    assert means.max() > 1.2


def test_erasing_fills_a_box_with_the_mean_colour():
    image = np.zeros((32, 24, 3), np.uint8)
    share = (views(Augment(erase=1.0), 300, image)[..., 0] == 128).mean((1, 2))
    assert share.min() > 0.015
    assert 0.25 < share.max() < 0.36
    assert (views(Augment(erase=0.25), 400, image).any((1, 2, 3))).mean() == pytest.approx(
        0.25, abs=0.08
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("crop", "centre"),
        ("area", (0.5, 1.5)),
        ("area", (0.5, 0.2)),
        ("aspect", (0.0, 1.0)),
        ("flip", 1.5),
        ("pad", -1),
        ("interpolation", "cubic"),
        ("rand_augment", "autoaugment"),
        ("rand_layers", -1),
        ("erase_fill", "black"),
        ("erase_area", (0.1, 2.0)),
    ],
)
def test_a_wrong_setting_is_named(field, value):
    with pytest.raises(Error, match=field):
        Augment(**{field: value})


def test_short_runs_on_small_pictures_get_nothing_and_long_ones_much():
    assert suggest(28, 7).nothing
    assert suggest(32, 100).crop == "pad"
    assert suggest(224, 3).area[0] > suggest(224, 100).area[0]
    assert suggest(224, 100).crop == "inception"


def test_a_magnitude_is_in_the_units_of_its_library():
    for kind, wrong in (
        ("timm", 11),
        ("big_vision", 21),
        ("torchvision", 31),
        ("torchvision", 4.5),
    ):
        with pytest.raises(Error, match=f"rand_magnitude.*{kind}"):
            Augment(rand_augment=kind, rand_magnitude=wrong)
    with pytest.raises(Error, match="timm alone"):
        Augment(rand_augment="big_vision", rand_magnitude_std=0.5)


def test_what_is_on_is_not_nothing():
    for on in ({"crop": "simple"}, {"rand_augment": "timm"}, {"three_augment": True}):
        assert not Augment(**on).nothing
    assert Augment(rand_augment="timm", rand_layers=0).nothing


def test_the_simple_crop_is_a_shift_of_the_resized_picture_with_mirrored_edges():
    """DeiT's Resize(size) and RandomCrop(size, padding=4, padding_mode="reflect")."""
    image = np.asarray(smooth(80, 60))
    small = Preprocessing(size=(30, 30), interpolation="bilinear")
    resized = np.asarray(Image.fromarray(image).resize((40, 30), Image.Resampling.BILINEAR))
    padded = np.pad(resized, ((4, 4), (4, 4), (0, 0)), mode="reflect").astype(int)
    places = set()
    for view in views(Augment(crop="simple"), 100, image, small).astype(int):
        gaps = {
            (top, left): np.abs(padded[top : top + 30, left : left + 30] - view).max()
            for top in range(9)
            for left in range(19)
        }
        place = min(gaps, key=gaps.get)
        assert gaps[place] <= 1
        places.add(place)
    assert len({top for top, _ in places}) == 9
    assert {0, 18} <= {left for _, left in places}


def test_without_averaging_the_nearest_pixels_are_taken():
    """tf.image.resize(bilinear, antialias=False): half-pixel centres, truncated to bytes."""
    image = np.asarray(smooth(50, 70))
    box = (5, 8, 45, 66)
    augment = Augment(crop="inception_tf", antialias=False, interpolation="bilinear")
    seen = augment.view(image, box, (50, 70), SMALL, sample_generator(0, 0, 0)).astype(int)
    part = image[8:66, 5:45].astype(float)
    y = np.clip((np.arange(32) + 0.5) * 58 / 32 - 0.5, 0, 57)
    x = np.clip((np.arange(24) + 0.5) * 40 / 24 - 0.5, 0, 39)
    top, left = y.astype(int), x.astype(int)
    below, right = np.minimum(top + 1, 57), np.minimum(left + 1, 39)
    down, across = (y - top)[:, None, None], (x - left)[None, :, None]
    upper = part[top][:, left] * (1 - across) + part[top][:, right] * across
    lower = part[below][:, left] * (1 - across) + part[below][:, right] * across
    wanted = upper * (1 - down) + lower * down
    assert np.abs(seen - np.floor(wanted)).max() <= 1
    assert np.abs(seen - np.floor(wanted)).mean() < 0.01
    assert augment.needed_size(box, (4000, 3000), SMALL) is None


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_quick_resize_is_pillows(interpolation):
    large = Preprocessing(size=(224, 224), interpolation=interpolation)
    # Where noise is cut off at black or white, it matters which axis is first; so it is not.
    image = np.random.default_rng(0).integers(80, 176, (300, 400, 3), np.uint8)
    augment, how = Augment(crop="inception"), getattr(Image.Resampling, interpolation.upper())
    for i in range(10):
        box = augment.box(400, 300, sample_generator(0, 0, i))
        seen = augment.view(image, box, (400, 300), large, sample_generator(0, 0, i))
        wanted = np.asarray(Image.fromarray(image).crop(box).resize((224, 224), how))
        gap = np.abs(seen.astype(int) - wanted)
        assert gap.mean() < 0.5  # noise is the worst case; 0.03 on photographs
        assert gap.max() <= 2


def test_three_augment_is_one_of_three():
    colours = SMALL.geometry(IMAGE).astype(int)
    kinds = {"grey": 0, "solarised": 0, "blurred": 0}
    solarised = np.where(colours < 128, colours, 255 - colours)
    for view in views(Augment(three_augment=True), 600).astype(int):
        if (view == view[..., :1]).all():
            kinds["grey"] += 1
            luma = colours @ [0.299, 0.587, 0.114]
            assert np.abs(view[..., 0] - luma).max() <= 1
        elif (view == solarised).all():
            kinds["solarised"] += 1
        else:
            kinds["blurred"] += 1
            assert view.mean() == pytest.approx(colours.mean(), abs=1)
            assert np.abs(np.diff(view, axis=1)).sum() <= np.abs(np.diff(colours, axis=1)).sum()
    assert min(kinds.values()) > 150  # 200 each are expected


def test_noise_has_the_mean_and_deviation_of_the_data():
    preprocessing = Preprocessing(size=(32, 24), mean=(0.4, 0.5, 0.6), std=(0.1, 0.12, 0.14))
    image = np.zeros((32, 24, 3), np.uint8)
    augment = Augment(erase=1.0, erase_fill="noise", erase_area=(0.2, 0.3), erase_aspect=(0.5, 2))
    seen = views(augment, 200, image, preprocessing)
    shares, pixels = (seen > 0).all(-1).mean((1, 2)), seen[(seen > 0).all(-1)] / 255
    assert shares.min() > 0.18
    assert shares.max() < 0.32
    np.testing.assert_allclose(pixels.mean(0), preprocessing.mean, atol=0.005)
    np.testing.assert_allclose(pixels.std(0), preprocessing.std, atol=0.005)
    apart = pixels - pixels.mean(0)
    assert abs((apart[:, 0] * apart[:, 1]).mean()) < 0.001  # channels are independent
