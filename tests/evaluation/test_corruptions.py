"""The corruptions against the libraries that made ImageNet-C, and the published numbers."""

import colorsys
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from vitrail.evaluation import corruptions, filters
from vitrail.evaluation.corruptions import MAKERS, corrupt
from vitrail.evaluation.severities import CORRUPTIONS, TABLES, table_for
from vitrail.kit.errors import Error

cv2 = pytest.importorskip("cv2")

PUBLISHED = json.loads(
    (Path(__file__).parents[1] / "data_reference" / "hendrycks.json").read_text()
)


def picture(side=32, seed=0, width=None):
    """Smooth blobs of colour with some texture, uint8 [side width 3]."""
    numbers = np.random.default_rng(seed)
    small = numbers.integers(0, 256, (5, 5, 3), dtype=np.uint8)
    large = Image.fromarray(small).resize((width or side, side), Image.Resampling.BICUBIC)
    noise = numbers.integers(-12, 13, (side, width or side, 3))
    return (np.array(large).astype(int) + noise).clip(0, 255).astype(np.uint8)


def numbers(seed=0):
    return np.random.Generator(np.random.Philox(seed))


# -- the published parameters --------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severities_are_the_published_ones(table, name):
    ours, theirs = TABLES[table][name], PUBLISHED[table][name]
    assert len(ours) == len(theirs) == 5
    for own, published in zip(ours, theirs, strict=True):
        assert np.ravel(own) == pytest.approx(np.ravel(published), abs=1e-12)


def test_every_size_has_the_table_that_is_nearest():
    assert [table_for(side) for side in (28, 32, 64, 96, 160, 224, 384)] == [
        "CIFAR-10-C",
        "CIFAR-10-C",
        "Tiny ImageNet-C",
        "Tiny ImageNet-C",
        "ImageNet-C",
        "ImageNet-C",
        "ImageNet-C",
    ]


def test_there_are_the_papers_fifteen():
    assert len(CORRUPTIONS) == 15
    assert set(MAKERS) == set(CORRUPTIONS)


# -- the filters ---------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.05, 0.7, 2.44, 170.8])
@pytest.mark.parametrize("shape", [(30, 41), (30, 41, 3)])
def test_the_gaussian_is_scipys(sigma, shape):
    image = np.random.default_rng(0).random(shape)
    sigmas = (sigma, sigma, 0)[: len(shape)]
    theirs = ndimage.gaussian_filter(image, sigmas, mode="nearest", truncate=4)
    assert np.abs(filters.gaussian(image, sigma) - theirs).max() < 1e-12
    theirs = ndimage.gaussian_filter(image, sigmas, mode="reflect", truncate=3)
    assert np.abs(filters.gaussian(image, sigma, "symmetric", 3) - theirs).max() < 1e-12


@pytest.mark.parametrize("factor", [1.0, 1.01, 1.13, 1.3, 2.25, 4.5])
def test_the_zoom_is_scipys(factor):
    side = 41
    image = np.random.default_rng(0).random((side, side, 3))
    cut = int(np.ceil(side / factor))
    top = (side - cut) // 2
    part = image[top : top + cut, top : top + cut]
    large = ndimage.zoom(part, (factor, factor, 1), order=1)
    trim = (large.shape[0] - side) // 2
    theirs = large[trim : trim + side, trim : trim + side]
    assert np.abs(filters.zoomed(image, factor) - theirs).max() < 1e-12


@pytest.mark.parametrize(
    ("radius", "blur"),
    [*TABLES["ImageNet-C"]["defocus_blur"], *TABLES["CIFAR-10-C"]["defocus_blur"]],
)
def test_the_disk_and_its_blur_are_opencvs(radius, blur):
    reach, taps = (8, 3) if radius <= 8 else (radius, 5)
    x, y = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))
    flat = (x**2 + y**2 <= radius**2).astype(np.float32)
    kernel = cv2.GaussianBlur(flat / flat.sum(), ksize=(taps, taps), sigmaX=blur)
    assert np.abs(filters.disk(radius, blur) - kernel).max() < 1e-7
    image = np.random.default_rng(0).random((40, 50, 3))
    theirs = np.stack([cv2.filter2D(image[:, :, c], -1, kernel) for c in range(3)], 2)
    assert np.abs(filters.convolved(image, filters.disk(radius, blur)) - theirs).max() < 1e-6


def test_motion_runs_along_its_angle_to_one_side():
    dot = np.zeros((41, 41))
    dot[20, 20] = 1
    for angle, (row, column) in {0: (0, -1), 90: (-1, 0), -90: (1, 0), 180: (0, 1)}.items():
        smeared = filters.motion_blurred(dot, 5, 3, angle)
        places = np.argwhere(smeared > 0) - 20
        assert len(places) == 11
        assert smeared.sum() == pytest.approx(1)
        for down, across in places:
            # A pixel takes from further along the line: the dot is smeared the other way.
            assert (down, across) == (
                row * max(abs(down), abs(across)),
                column * abs(across + down),
            )
    weights = filters.motion_blurred(dot, 5, 3, 180)[20, 20:31]
    expected = np.exp(-(np.arange(11) ** 2) / 18)
    assert weights == pytest.approx(expected / expected.sum())


def test_the_plasma_is_a_cloud_on_a_torus():
    cloud = filters.plasma(64, 2, numbers())
    assert cloud.shape == (64, 64)
    assert (cloud.min(), cloud.max()) == (0, 1)
    rough = filters.plasma(64, 1.4, numbers())

    def steps(field):  # between neighbours, those over the edge too
        return np.abs(field - np.roll(field, 1, 0)).mean()

    assert steps(cloud) < steps(rough)
    edge = np.abs(cloud[0] - cloud[-1]).mean()
    assert edge < 3 * np.abs(np.diff(cloud, axis=0)).mean()


# -- the corruptions -----------------------------------------------------------------------------


def test_noises_have_their_size():
    grey = np.full((100, 100, 3), 128, np.uint8)
    level = 128 / 255
    noisy = corruptions.gaussian_noise(grey, 0.1, numbers())
    assert np.std(noisy - level) == pytest.approx(0.1, rel=0.03)
    shots = corruptions.shot_noise(grey, 100, numbers())
    assert np.std(shots) == pytest.approx(np.sqrt(level / 100), rel=0.03)
    assert shots.mean() == pytest.approx(level, abs=0.002)
    impulses = corruptions.impulse_noise(grey, 0.1, numbers())
    assert (impulses == 1).mean() == pytest.approx(0.05, abs=0.004)
    assert (impulses == 0).mean() == pytest.approx(0.05, abs=0.004)


@pytest.mark.parametrize("shape", TABLES["ImageNet-C"]["glass_blur"])
def test_glass_is_the_authors_loop(shape):
    """With the swap of two views of an array, which copies."""
    sigma, reach, rounds = shape
    image = picture(24)
    made = corruptions.glass_blur(image, shape, numbers())
    draws = numbers()
    x = np.uint8(filters.gaussian(image / 255, sigma) * 255)
    for _ in range(rounds):
        side = len(range(24 - reach, reach, -1))
        moves = iter(draws.integers(-reach, reach, (side * side, 2)))
        for h in range(24 - reach, reach, -1):
            for w in range(24 - reach, reach, -1):
                dx, dy = next(moves)
                x[h, w], x[h + dy, w + dx] = x[h + dy, w + dx], x[h, w]
    theirs = filters.gaussian(x / 255, sigma)
    assert np.abs(made - theirs).max() < 1e-12


def test_zoom_blur_is_the_mean_of_the_picture_and_its_enlargements():
    image = picture(33)
    factors = np.arange(1, 1.06, 0.01)
    total = image / 255 + sum(filters.zoomed(image / 255, f) for f in factors)
    made = corruptions.zoom_blur(image, (1.06, 0.01), numbers())
    assert made == pytest.approx(total / (len(factors) + 1))


def test_brightness_is_more_of_v():
    image = picture(8)
    image[0, 0] = 0
    made = corruptions.brightness(image, 0.3, numbers())
    for pixel, own in zip(made.reshape(-1, 3), image.reshape(-1, 3) / 255, strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*own)
        assert pixel == pytest.approx(colorsys.hsv_to_rgb(hue, saturation, min(1, value + 0.3)))


def test_contrast_keeps_the_means():
    image = picture(16)
    made = corruptions.contrast(image, 0.4, numbers())
    assert made.mean((0, 1)) == pytest.approx(image.mean((0, 1)) / 255)
    assert made.std() < 0.41 * (image / 255).std() + 0.2


def test_fog_mixes_a_cloud_and_keeps_white_white():
    image = picture(30, width=20)
    image[0, 0] = 255
    made = corruptions.fog(image, (1.5, 2), numbers())
    cloud = filters.plasma(32, 2, numbers())[:30, :20, None]
    assert made == pytest.approx((image / 255 + 1.5 * cloud) / 2.5)


def test_snow_is_the_authors_formula():
    image = picture(32)
    mean, deviation, zoom, least, radius, sigma, own = shape = TABLES["CIFAR-10-C"]["snow"][4]
    made = corruptions.snow(image, shape, numbers())
    draws = numbers()
    layer = filters.zoomed(draws.normal(mean, deviation, (32, 32)), zoom)
    layer[layer < least] = 0
    layer = (np.clip(layer, 0, 1) * 255).astype(np.uint8)
    angle = draws.uniform(-135, -45)
    layer = np.round(filters.motion_blurred(layer, radius, sigma, angle)) / 255
    x = (image / 255).astype(np.float32)
    grey = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY).reshape(32, 32, 1)
    x = own * x + (1 - own) * np.maximum(x, grey * 1.5 + 0.5)
    theirs = np.clip(x + layer[..., None] + np.rot90(layer, 2)[..., None], 0, 1)
    assert np.abs(made - theirs).max() < 0.005  # halves may be rounded either way


@pytest.mark.parametrize(("side", "share"), [(32, 0.2), (64, 0.3), (224, 1.0)])
def test_photographs_of_ice_are_used_at_the_authors_size(side, share):
    photograph = picture(640, width=800)
    (made,) = corruptions.ice_photographs([photograph], side)
    assert made.shape == (round(640 * share), round(800 * share), 3)
    image = picture(side)
    iced = corrupt(image, "frost", 5, "a", photographs=[made])
    drawn = corrupt(image, "frost", 5, "a")
    assert not np.array_equal(iced, drawn)
    with pytest.raises(Error, match="too small for pictures of"):
        corruptions.ice_photographs([picture(round(side / share) - 4)], side)


def test_frost_takes_photographs_and_draws_ice_without():
    image = picture(32)
    photograph = picture(64, seed=5)
    made = corruptions.frost(image, (0.8, 0.6), numbers(), [photograph])
    tops = [(top, left) for top in range(33) for left in range(33)]
    ice = (made - 0.8 * (image / 255)) / 0.6
    inside = (made > 0) & (made < 1)
    assert any(
        np.abs(ice - photograph[t : t + 32, left : left + 32] / 255)[inside].max() < 1e-9
        for t, left in tops
    )
    drawn = corruptions.drawn_ice(224, 200, numbers())
    assert drawn.shape == (224, 200, 3)
    assert 0.1 < drawn.mean() < 0.7
    assert drawn[..., 2].mean() > drawn[..., 0].mean()


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("severity", range(5))
def test_elastic_is_opencvs_warp_and_scipys_sampling(table, severity):
    side = {"ImageNet-C": 224, "Tiny ImageNet-C": 64, "CIFAR-10-C": 32}[table]
    reach, smooth, jitter = shape = TABLES[table]["elastic_transform"][severity]
    image = picture(side)
    made = corruptions.elastic_transform(image, shape, numbers())
    draws = numbers()
    centre, third = np.float32((side, side)) // 2, side // 3
    corners = np.float32([centre + third, [centre[0] + third, centre[1] - third], centre - third])
    moved = corners + draws.uniform(-jitter, jitter, (3, 2)).astype(np.float32)
    matrix = cv2.getAffineTransform(corners, moved)
    x = image.astype(np.float32) / 255
    x = cv2.warpAffine(x, matrix, (side, side), borderMode=cv2.BORDER_REFLECT_101)
    down, across = (
        ndimage.gaussian_filter(
            draws.uniform(-1, 1, (side, side)), smooth, mode="reflect", truncate=3
        )
        * reach
        for _ in range(2)
    )
    rows, columns = np.mgrid[:side, :side]
    theirs = np.stack(
        [
            ndimage.map_coordinates(
                x[..., c], [rows + down, columns + across], order=1, mode="reflect"
            )
            for c in range(3)
        ],
        2,
    )
    # OpenCV places pixels to 1/32 of a pixel, and the picture has steps of a tenth.
    assert np.abs(made - theirs).mean() < 2e-3
    assert np.abs(made - theirs).max() < 0.03


def test_pixelate_and_jpeg_are_pillows():
    image = picture(224)
    made = corrupt(image, "pixelate", 3)
    small = Image.fromarray(image).resize((89, 89), Image.Resampling.BOX)
    assert np.array_equal(made, np.array(small.resize((224, 224), Image.Resampling.BOX)))
    written = io.BytesIO()
    Image.fromarray(image).save(written, "JPEG", quality=15)
    assert np.array_equal(corrupt(image, "jpeg_compression", 3), np.array(Image.open(written)))


# -- all of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(32, 32), (28, 28), (64, 48), (90, 130)])
def test_every_corruption_takes_every_shape(name, shape):
    image = picture(shape[0], width=shape[1])
    before = image.copy()
    for severity in (1, 5):
        made = corrupt(image, name, severity, "a")
        assert made.dtype == np.uint8
        assert made.shape == image.shape
        assert not np.array_equal(made, image)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_draws_depend_on_the_seed_and_the_key_alone(name):
    image = picture(32)
    first = corrupt(image, name, 5, "a", seed=1)
    np.random.default_rng().random(7)
    corrupt(image, name, 5, "b", seed=1)
    assert np.array_equal(corrupt(image, name, 5, "a", seed=1), first)
    drawless = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate"}
    if name not in drawless | {"jpeg_compression"}:
        assert not np.array_equal(corrupt(image, name, 5, "b", seed=1), first)
        assert not np.array_equal(corrupt(image, name, 5, "a", seed=2), first)


TRADING = {"elastic_transform", "glass_blur", "frost"}  # one thing for another, as they get worse


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in TRADING])
def test_severity_does_damage(name):
    image = picture(128)
    far = [np.abs(corrupt(image, name, s, "a").astype(int) - image).mean() for s in (1, 3, 5)]
    assert far[0] < far[1] < far[2]


@pytest.mark.parametrize(
    ("name", "severity", "sentence"),
    [
        ("gausian_noise", 1, "did you mean 'gaussian_noise'"),
        ("rain", 1, "there are gaussian_noise"),
        ("fog", 0, "1, 2, 3, 4 or 5, not 0"),
        ("fog", 6, "not 6"),
    ],
)
def test_what_there_is_not_is_said(name, severity, sentence):
    with pytest.raises(Error, match=sentence):
        corrupt(picture(), name, severity)


def test_other_pictures_are_refused():
    with pytest.raises(Error, match="uint8"):
        corrupt(picture()[..., 0], "fog", 1)
    with pytest.raises(Error, match="no parameters"):
        corrupt(picture(), "fog", 1, table="ImageNet-D")
