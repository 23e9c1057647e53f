"""Augmentation: the statistics are right, and a view is a function of (seed, epoch, index)."""

import math

import numpy as np
import pytest

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
    assert needed_size((0, 0, 800, 600), (800, 600), (30, 40)) == 30
    assert needed_size((0, 0, 400, 600), (800, 600), (30, 40)) == 60
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
