"""The way back onto the picture: what lies where in the input lies there in the original."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from vitrail.inspection.pictures import (
    Picture,
    evened,
    interpolation,
    onto_picture,
    overlaid,
    short_names,
    told_answer,
)
from vitrail.inspection.places import Places
from vitrail.kit.preprocess import Preprocessing

SHAPES = [(64, 64), (120, 64), (64, 150), (31, 29), (300, 20), (20, 900)]


def cells(rows: int, columns: int, size: tuple[int, int]) -> Places:
    y = (np.arange(rows) + 0.5) * size[0] / rows
    x = (np.arange(columns) + 0.5) * size[1] / columns
    return Places(y, x)


@pytest.mark.parametrize(
    ("fit", "crop", "size"),
    [*itertools.product(["crop", "squash", "letterbox"], [1.0, 0.875], [(32, 32), (24, 40)])],
)
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_the_window_is_where_geometry_looks(fit, crop, size, height, width):
    # A picture that says of each pixel where it is, read back from what the model sees.
    preprocessing = Preprocessing(size=size, crop=crop, fit=fit, interpolation="bilinear")
    top, left, tall, wide = preprocessing.window(width, height)
    for axis, (begin, extent, side) in enumerate([(top, tall, height), (left, wide, width)]):
        line = np.linspace(0, 250, side)
        pixels = np.broadcast_to(
            line[:, None] if axis == 0 else line[None], (height, width)
        ).astype(np.uint8)
        seen = preprocessing.geometry(np.repeat(pixels[..., None], 3, axis=2))[..., 0]
        row = int((height / 2 - top) * size[0] / tall)  # through the picture's middle
        column = int((width / 2 - left) * size[1] / wide)
        shown = seen[:, column] if axis == 0 else seen[row]
        count = size[axis]
        where = begin + (np.arange(count) + 0.5) * extent / count - 0.5  # in pixels of the picture
        # Away from borders, where resampling sees less, and from padding.
        margin = 1.5 * max(1, extent / count)
        inner = (where > margin) & (where < side - 1 - margin)
        if inner.any():
            expected = np.interp(where, np.arange(side), line)
            slope = 250 / max(1, side - 1) * max(1, extent / count)
            assert np.abs(shown[inner] - expected[inner]).max() <= 1.5 + 0.3 * slope


def a_picture(height: int, width: int, preprocessing: Preprocessing, at=None) -> Picture:
    pixels = np.zeros((height, width, 3), np.uint8)
    if at is not None:
        pixels[at] = 255
    window = preprocessing.window(width, height)
    return Picture("a", pixels, preprocessing.geometry(pixels), window)


@pytest.mark.parametrize("fit", ["crop", "squash", "letterbox"])
@pytest.mark.parametrize(("height", "width"), [(90, 60), (60, 90), (200, 170)])
def test_the_brightest_patch_lies_over_the_object(fit, height, width):
    preprocessing = Preprocessing(size=(32, 32), fit=fit)
    y, x = round(height * 0.6), round(width * 0.35)
    picture = a_picture(height, width, preprocessing, (slice(y - 9, y + 9), slice(x - 9, x + 9)))
    heat = picture.seen[..., 0].reshape(16, 2, 16, 2).mean((1, 3))
    drawn = onto_picture(heat, cells(16, 16, (32, 32)), picture)
    assert drawn.shape == (height, width)
    bright = np.argwhere(drawn > 0.9 * np.nanmax(drawn))
    assert np.abs(bright.mean(0) - [y - 0.5, x - 0.5]).max() < 3.5


def test_what_the_model_does_not_see_has_no_heat():
    picture = a_picture(64, 128, Preprocessing(size=(32, 32)))
    drawn = onto_picture(np.ones((4, 4)), cells(4, 4, (32, 32)), picture)
    assert np.isnan(drawn[:, :31]).all()
    assert np.isnan(drawn[:, 97:]).all()
    assert (drawn[:, 33:95] == 1).all()
    colors = overlaid(picture, np.arange(16.0).reshape(4, 4), cells(4, 4, (32, 32)))
    assert colors.shape == (64, 128, 3)
    assert (colors[:, :31] == colors[0, 0]).all()
    assert colors[60, 90].sum() > colors[3, 35].sum()


def test_padding_of_a_letterbox_is_not_drawn():
    picture = a_picture(30, 60, Preprocessing(size=(32, 32), fit="letterbox"))
    heat = np.zeros((4, 4))
    heat[1:3] = [[1, 1, 1, 1], [2, 2, 2, 2]]  # the rows that hold the picture
    drawn = onto_picture(heat, cells(4, 4, (32, 32)), picture)
    assert np.isfinite(drawn).all()
    assert drawn[7].mean() == pytest.approx(1, abs=0.1)
    assert drawn[-8].mean() == pytest.approx(2, abs=0.1)


def test_interpolation_is_linear_between_centres_and_constant_beyond():
    matrix = interpolation(np.array([2.0, 4.0, 8.0]), np.array([0.0, 2.0, 3.0, 7.0, 9.0]))
    np.testing.assert_allclose(matrix @ [10.0, 20.0, 40.0], [10, 10, 15, 35, 40])
    doubled = interpolation(np.array([1.0, 1.0, 3.0]), np.array([1.0, 2.0]))
    np.testing.assert_allclose(doubled @ [2.0, 4.0, 9.0], [3, 6])
    assert interpolation(np.array([5.0]), np.array([0.0, 9.0])).tolist() == [[1], [1]]


def test_evened_maps_keep_their_sum_and_move_by_what_they_were_beside():
    places = cells(4, 4, (32, 32))
    heat = np.random.default_rng(0).random((3, 4, 4))
    assert evened(heat, places, (32, 32)) is heat
    moved = Places(places.y - 4, places.x)  # half a cell too high
    shifted = evened(heat, moved, (32, 32))
    np.testing.assert_allclose(shifted.sum((1, 2)), heat.sum((1, 2)), rtol=1e-5)
    middle = (heat[:, :-1] + heat[:, 1:]) / 2
    ratio = shifted[:, :-1] / middle
    np.testing.assert_allclose(ratio, ratio[:, :1, :1] * np.ones_like(ratio), rtol=1e-4)


def test_grey_and_colour_files_are_pictures(tmp_path):
    Image.new("L", (8, 8), 7).save(tmp_path / "a.png")
    grey = np.asarray(Image.open(tmp_path / "a.png"))
    assert Preprocessing(size=(8, 8)).geometry(grey).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["/data/test/Bag/1.png", "/data/test/Shirt/1.png"], ["Bag/1.png", "Shirt/1.png"]),
        (["test/Bag/1.png", "test/Bag/2.png"], ["1.png", "2.png"]),
        (["test/1.png", "test/Bag/1.png"], ["1.png", "Bag/1.png"]),
        (["alone.png"], ["alone.png"]),
        (["/a/1.png", "b/1.png"], ["/a/1.png", "b/1.png"]),
        (["test-00001", "test-00002"], ["test-00001", "test-00002"]),
    ],
)
def test_names_are_as_short_as_tells_pictures_apart(keys, names):
    assert short_names(keys) == names


@pytest.mark.parametrize(
    ("label", "labels", "answer", "told"),
    [
        (
            "dog",
            ["cat", "dog"],
            (1, 0.269),
            ["seen as dog, 27\N{NO-BREAK SPACE}%", "right: it is dog"],
        ),
        (
            "cat",
            ["cat", "dog"],
            (1, 1.0),
            ["seen as dog, 100\N{NO-BREAK SPACE}%", "wrong: it is cat"],
        ),
        ("owl", ["cat", "dog"], (1, 1.0), ["seen as dog, 100\N{NO-BREAK SPACE}%", "it is owl"]),
        ("cat", None, (1, 0.5), ["seen as class 1, 50\N{NO-BREAK SPACE}%", "it is cat"]),
        (None, ["cat", "dog"], (0, 0.5), ["seen as cat, 50\N{NO-BREAK SPACE}%"]),
        ("cat", None, None, ["it is cat"]),
    ],
)
def test_an_answer_is_judged_where_its_class_is_among_the_models(label, labels, answer, told):
    picture = a_picture(32, 32, Preprocessing(size=(32, 32)))
    assert told_answer(replace(picture, label=label), labels, answer) == told
