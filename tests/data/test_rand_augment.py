"""RandAugment against each of the three originals.

timm's runs here and is the oracle itself. TensorFlow's and torchvision's do not; their formulas are
written down again, in float64 and pixel by pixel, from big_vision/pp/archive/autoaugment.py (with
tensorflow_addons' ImageProjectiveTransform) and torchvision's transforms/autoaugment.py and
_functional_pil.py.
"""

import collections
import math

import numpy as np
import pytest
from PIL import Image

from tests.data.pictures import smooth
from tests.reference.torchvision_stub import timm
from vitrail.data import tf_operations
from vitrail.data.draws import sample_generator
from vitrail.data.rand_augment import (
    SIGNED,
    TIMM,
    TORCHVISION,
    rand_augment,
    timm_operation,
    torchvision_operation,
)

PICTURE = smooth(48, 40, seed=3)
PIXELS = np.asarray(PICTURE)
# Also one without contrast, one that uses only some of the values, and noise.
PICTURES = [
    PIXELS,
    np.full((40, 48, 3), (7, 130, 255), np.uint8),
    (PIXELS // 3 + 60).astype(np.uint8),
    np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8),
]
FILL = (124, 116, 104)


# --- big_vision -----------------------------------------------------------------------------


def blend(first, second, factor):
    mixed = first + factor * (second.astype(float) - first)
    return np.clip(mixed, 0, 255)


def luma(pixels):
    return np.floor((pixels / 255.0) @ [0.2989, 0.587, 0.114] * 255.5)


def per_channel(function, pixels):
    return np.stack([function(pixels[..., c].astype(int)) for c in range(3)], -1)


def tf_autocontrast(channel):
    low, high = channel.min(), channel.max()
    return (channel - low) * (255.0 / (high - low)) if high > low else channel


def tf_equalize(channel):
    counts = [int((channel == v).sum()) for v in range(256)]
    last = [count for count in counts if count][-1]
    step = (channel.size - last) // 255
    if step == 0:
        return channel
    table = [0] + [(sum(counts[: v + 1]) + step // 2) // step for v in range(255)]
    return np.clip(np.array(table), 0, 255)[channel]


def tf_smooth(pixels):
    result = pixels.astype(float)
    for row in range(1, pixels.shape[0] - 1):
        for column in range(1, pixels.shape[1] - 1):
            around = pixels[row - 1 : row + 2, column - 1 : column + 2].astype(int)
            result[row, column] = (around.sum((0, 1)) + 4 * pixels[row, column].astype(int)) // 13
    return result


def projective(pixels, a, b, c, d, e, f):
    height, width = pixels.shape[:2]
    result = np.full_like(pixels, 128)
    for y in range(height):
        for x in range(width):
            column, row = (
                math.copysign(math.floor(abs(v) + 0.5), v)
                for v in (a * x + b * y + c, d * x + e * y + f)
            )
            if 0 <= column < width and 0 <= row < height:
                result[y, x] = pixels[int(row), int(column)]
    return result


def tf_rotate(pixels, degrees):
    height, width = pixels.shape[:2]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    x = ((width - 1) - (cos * (width - 1) - sin * (height - 1))) / 2
    y = ((height - 1) - (sin * (width - 1) + cos * (height - 1))) / 2
    return projective(pixels, cos, -sin, x, sin, cos, y)


def big_vision(name, pixels, m, sign):
    """The operation with its level-to-argument rule, in float64, before truncation."""
    factor = 1.8 * m / 10 + 0.1
    size = pixels.shape[0] * pixels.shape[1]
    shift = min((8 - int(m / 10 * 4)) % 256, 7)
    threshold = np.uint8(int(m / 10 * 256) % 256)
    lighter = np.minimum(pixels.astype(int) + int(m / 10 * 110), 255)
    return {
        "AutoContrast": lambda: per_channel(tf_autocontrast, pixels),
        "Equalize": lambda: per_channel(tf_equalize, pixels),
        "Invert": lambda: 255 - pixels,
        "Rotate": lambda: tf_rotate(pixels, sign * 3 * m),
        "Posterize": lambda: pixels // 2**shift * 2**shift,
        "Solarize": lambda: np.where(pixels < threshold, pixels, 255 - pixels),
        "SolarizeAdd": lambda: np.where(pixels < 128, lighter, pixels),
        "Color": lambda: blend(luma(pixels)[..., None], pixels, factor),
        "Contrast": lambda: blend(math.floor(min(size / 256, 255)), pixels, factor),
        "Brightness": lambda: blend(0, pixels, factor),
        "Sharpness": lambda: blend(tf_smooth(pixels), pixels, factor),
        "ShearX": lambda: projective(pixels, 1, sign * 0.03 * m, 0, 0, 1, 0),
        "ShearY": lambda: projective(pixels, 1, 0, 0, sign * 0.03 * m, 1, 0),
        # These two are for pictures of 224 pixels, and shrink with ours.
        "TranslateX": lambda: projective(pixels, 1, 0, sign * 10 * m * 48 / 224, 0, 1, 0),
        "TranslateY": lambda: projective(pixels, 1, 0, 0, 0, 1, sign * 10 * m * 40 / 224),
    }[name]()


@pytest.mark.parametrize("level", [0, 1.5, 10, 15, 20])
@pytest.mark.parametrize("name", [n for n in tf_operations.OPERATIONS if n != "Cutout"])
def test_big_visions_operations(name, level):
    exact = name in ("Equalize", "Invert", "Posterize", "Solarize", "SolarizeAdd")
    for pixels in PICTURES:
        for sign in (1, -1) if name in tf_operations.SIGNED else (1,):
            seen = tf_operations.apply(name, pixels, level, sign, sample_generator(0, 0, 0))
            wanted = big_vision(name, pixels, level, sign)
            assert seen.shape == pixels.shape
            assert seen.dtype == np.uint8
            if exact:
                np.testing.assert_array_equal(seen, wanted)
            elif name in tf_operations.SIGNED:
                # A place that lies on the border of two pixels may fall to either in float32.
                assert (seen != wanted).any(-1).mean() < 0.02
            else:
                assert np.abs(seen - wanted).max() <= 1 + 1e-3
                assert (seen != np.floor(wanted + 1e-9)).mean() < 0.01


def test_big_visions_surprises():
    """Its issues 109 and 110, level 0, and Posterize that grows weaker."""
    noise = PICTURES[3]
    for level in (0, 10, 20):
        np.testing.assert_array_equal(tf_operations.solarize(noise, level), 255 - noise)
    tile = np.zeros((224, 224, 3), np.uint8)
    tile[:, :112], tile[:, 112:] = (192, 64, 64), (64, 192, 192)
    seen = tf_operations.contrast(tile, 10)
    assert seen[0, 0].tolist() == [188, 0, 0]  # as its issue 109 prints them
    assert seen[0, 200].tolist() == [0, 188, 188]
    assert tf_operations.brightness(np.full((2, 2, 3), 200, np.uint8), 0).max() == 20
    left = [len(np.unique(tf_operations.posterize(noise, level))) for level in (0, 10, 15, 20)]
    assert left == [2, 16, 64, 256]


def test_at_their_own_size_moves_are_big_visions():
    picture = np.zeros((224, 224, 3), np.uint8)
    picture[120, 130] = 255
    for name, level, place in (("TranslateX", 10, (120, 30)), ("TranslateY", 5, (70, 130))):
        seen = tf_operations.apply(name, picture, level, 1, sample_generator(0, 0, 0))
        assert np.argwhere(seen[..., 0] == 255).tolist() == [list(place)]
        larger = np.pad(picture, ((0, 160), (0, 160), (0, 0)))
        seen = tf_operations.apply(name, larger, level, 1, sample_generator(0, 0, 0))
        assert np.argwhere(seen[..., 0] == 255).tolist() == [list(place)]


def test_cutout_is_a_square_around_a_uniform_place():
    white = np.full((240, 320, 3), 255, np.uint8)
    centres, whole = [], 0
    for i in range(400):
        seen = tf_operations.apply("Cutout", white, 8, 1, sample_generator(0, 0, i))
        assert set(np.unique(seen)) == {128, 255}
        rows, columns = (np.flatnonzero((seen[..., 0] == 128).any(axis)) for axis in (1, 0))
        assert (seen[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 128).all()
        assert len(rows) <= 64
        assert len(columns) <= 64
        if len(rows) == len(columns) == 64:
            whole += 1
            centres.append((rows[0] + 32, columns[0] + 32))
    assert whole / 400 == pytest.approx((176 / 240) * (256 / 320), abs=0.08)
    assert np.mean(centres, 0) == pytest.approx((120, 160), abs=12)
    small = tf_operations.apply("Cutout", PIXELS * 0, 10, 1, sample_generator(0, 0, 0))
    assert 0 < (small == 128).mean() < 0.3  # 80 of 224 pixels, and so 14 of 40
    nothing = tf_operations.apply("Cutout", white, 0, 1, sample_generator(0, 0, 0))
    np.testing.assert_array_equal(nothing, white)


# --- torchvision ----------------------------------------------------------------------------


def enhanced(name, pixels, factor):
    """Pillow's ImageEnhance: away from black, grey, the mean grey or a smoothed picture."""
    floats = pixels.astype(float)
    grey = np.floor((pixels @ np.array([19595, 38470, 7471]) + 0x8000) / 65536)
    base = {
        "Brightness": lambda: np.zeros_like(floats),
        "Color": lambda: np.repeat(grey[..., None], 3, -1),
        "Contrast": lambda: np.full_like(floats, int(grey.mean() + 0.5)),
        "Sharpness": lambda: np.where(_inside(pixels), tf_smooth(pixels), floats),
    }[name]()
    return np.clip(base + factor * (floats - base), 0, 255)


def _inside(pixels):
    inside = np.zeros(pixels.shape, bool)
    inside[1:-1, 1:-1] = True
    return inside


def nearest(pixels, a, b, c, d, e, f):
    """Pillow's affine: through the centres of pixels, black outside."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    column, row = np.floor(a * x + b * y + c).astype(int), np.floor(d * x + e * y + f).astype(int)
    good = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    result = np.zeros_like(pixels)
    result[good] = pixels[row[good], column[good]]
    return result


def rotated(pixels, degrees):
    height, width = pixels.shape[:2]
    cos, sin = math.cos(-math.radians(degrees)), math.sin(-math.radians(degrees))
    x, y = width / 2, height / 2
    return nearest(pixels, cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)


@pytest.mark.parametrize("level", [0, 5, 9, 17, 30])
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions_operations(name, level):
    for pixels in PICTURES:
        height, width = pixels.shape[:2]
        for sign in (1, -1) if name in SIGNED else (1,):
            seen = np.asarray(
                torchvision_operation(name, Image.fromarray(pixels), level, sign)
            ).astype(int)
            share = sign * level / 30
            if name in ("Brightness", "Color", "Contrast", "Sharpness"):
                wanted = enhanced(name, pixels, 1 + 0.9 * share)
                assert np.abs(seen - wanted).max() <= 2  # whole numbers in between, there
                assert np.abs(seen - wanted).mean() < 0.8
                continue
            wanted = {
                "Identity": lambda p: p,
                "ShearX": lambda p, s=share: nearest(p, 1, 0.3 * s, 0, 0, 1, 0),
                "ShearY": lambda p, s=share: nearest(p, 1, 0, 0, 0.3 * s, 1, 0),
                "TranslateX": lambda p, s=share, w=width: nearest(
                    p, 1, 0, -int(150 / 331 * w * s), 0, 1, 0
                ),
                "TranslateY": lambda p, s=share, h=height: nearest(
                    p, 1, 0, 0, 0, 1, -int(150 / 331 * h * s)
                ),
                "Rotate": lambda p, s=share: rotated(p, 30 * s),
                "Posterize": lambda p: p // 2 ** round(level / 7.5) * 2 ** round(level / 7.5),
                "Solarize": lambda p: np.where(p < 255 - 8.5 * level, p, 255 - p),
                "AutoContrast": lambda p: np.floor(per_channel(tf_autocontrast, p) + 1e-9),
                "Equalize": lambda p: per_channel(tf_equalize, p),
            }[name](pixels)
            assert (seen != wanted).any(-1).mean() < 0.01, (name, level, sign)


def test_torchvisions_bins_move_by_parts_of_the_picture():
    wide = np.zeros((10, 331, 3), np.uint8)
    wide[:, 200] = 255
    moved = np.asarray(torchvision_operation("TranslateX", Image.fromarray(wide), 30, 1))
    assert moved[0, :, 0].argmax() in (349 - 331, 0)  # 150 pixels to the right: out of the picture
    moved = np.asarray(torchvision_operation("TranslateX", Image.fromarray(wide), 30, -1))
    assert moved[0, :, 0].argmax() == 50


# --- timm -----------------------------------------------------------------------------------

THEIRS = {
    **{name: name + "Increasing" for name in ("Posterize", "Solarize")},
    **{name: name + "Increasing" for name in ("Color", "Contrast", "Brightness", "Sharpness")},
    **{name: name + "Rel" for name in ("TranslateX", "TranslateY")},
}


def test_timms_set_is_its_increasing_one():
    theirs = timm.data.auto_augment._RAND_INCREASING_TRANSFORMS
    assert sorted(THEIRS.get(name, name) for name in TIMM) == sorted(theirs)


@pytest.mark.parametrize("magnitude", [0, 3.3, 9, 9.99, 10])
@pytest.mark.parametrize("name", TIMM)
def test_timms_operations_are_timms(name, magnitude, monkeypatch):
    if (name, magnitude) == ("Posterize", 10):
        # No bit is left. Pillow before 13 gave black, newer ones refuse, and so timm fails.
        black = np.asarray(timm_operation(name, PICTURE, magnitude, 1, FILL))
        assert not black.any()
        return
    augment = timm.data.auto_augment
    settings = {"img_mean": FILL, "interpolation": Image.Resampling.BICUBIC, "magnitude_std": 0}
    theirs = augment.AugmentOp(THEIRS.get(name, name), 1.0, magnitude, settings)
    for sign in (1, -1) if name in SIGNED else (1,):
        # timm turns the sign where its draw is above a half.
        monkeypatch.setattr(augment.random, "random", lambda sign=sign: 0.25 if sign > 0 else 0.75)
        for pixels in PICTURES:
            image = Image.fromarray(pixels)
            seen = timm_operation(name, image, magnitude, sign, FILL)
            np.testing.assert_array_equal(np.asarray(seen), np.asarray(theirs(image)))


# --- the drawing ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["big_vision", "torchvision", "timm"])
def test_operations_are_drawn_alike_often_and_by_the_generator_alone(kind, monkeypatch):
    counts, signs = collections.Counter(), []
    module = "vitrail.data.rand_augment"

    def count(name, image, level, sign, *rest):
        counts[name] += 1
        if name in (tf_operations.SIGNED if kind == "big_vision" else SIGNED):
            signs.append(sign)
        return image

    monkeypatch.setattr(f"{module}.tf_operations.apply", count)
    monkeypatch.setattr(f"{module}.torchvision_operation", count)
    monkeypatch.setattr(f"{module}.timm_operation", count)
    for i in range(3000):
        rand_augment(PIXELS, kind, sample_generator(0, 0, i), layers=2, magnitude=9)
    names = {"big_vision": tf_operations.OPERATIONS, "torchvision": TORCHVISION, "timm": TIMM}[kind]
    layers = 3000 if kind == "timm" else 6000  # timm applies half of them
    assert set(counts) == set(names)
    assert counts.total() == pytest.approx(layers, rel=0.05)
    for name in names:
        assert counts[name] == pytest.approx(layers / len(names), rel=0.25)
    assert np.mean(signs) == pytest.approx(0, abs=0.08)


def test_timms_magnitude_is_normal_around_the_one_asked_for(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "vitrail.data.rand_augment.timm_operation",
        lambda name, image, magnitude, *rest: drawn.append(magnitude) or image,
    )
    for std in (0.5, 3.0, 1000):
        drawn.clear()
        for i in range(2000):
            rand_augment(PIXELS, "timm", sample_generator(0, 0, i), magnitude=9, magnitude_std=std)
        drawn_now = np.array(drawn)
        assert drawn_now.min() >= 0
        assert drawn_now.max() <= 10
        if std == 0.5:
            assert drawn_now.mean() == pytest.approx(9, abs=0.05)
            assert drawn_now.std() == pytest.approx(0.5, abs=0.05)
        elif std == 3.0:
            assert (drawn_now == 10).mean() == pytest.approx(0.37, abs=0.05)  # P(z > 1/3)
        else:
            assert np.histogram(drawn_now, 3, (0, 9))[0].min() > len(drawn) / 4


@pytest.mark.parametrize("kind", ["big_vision", "torchvision", "timm"])
def test_a_picture_comes_out_the_same_for_the_same_place(kind):
    views = [
        rand_augment(PIXELS, kind, sample_generator(0, 0, i), magnitude=9, mean=(0.4, 0.5, 0.6))
        for i in (*range(20), *range(20))
    ]
    for one, again in zip(views[:20], views[20:], strict=True):
        np.testing.assert_array_equal(one, again)
    assert len({view.tobytes() for view in views}) > 10


def test_the_colour_that_comes_in_is_the_datas_mean_for_timm():
    white = Image.new("RGB", (40, 30), "white")
    moved = np.asarray(timm_operation("TranslateX", white, 10, 1, FILL))
    assert (moved[:, -10:] == FILL).all()
    assert (moved[:, 0] == 255).all()
