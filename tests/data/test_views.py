"""Files decoded smaller show what files decoded in full show, and the same wherever they go."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import vitrail
from tests.data.pictures import encoded, smooth
from vitrail.data import views
from vitrail.data.crops import resized
from vitrail.data.decode import decode
from vitrail.data.draws import sample_generator
from vitrail.data.loader import eval_batches, train_batches
from vitrail.data.sources import open_source
from vitrail.data.transforms import Augment
from vitrail.kit.errors import Error
from vitrail.kit.preprocess import FITS, Preprocessing


def photograph(width: int, height: int, seed: int = 0) -> Image.Image:
    """Coarse shapes, finer ones, and edges that a wrong scale or shift would move."""
    random = np.random.default_rng(seed)
    coarse = smooth(width, height, seed)
    fine = Image.fromarray(random.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
    picture = Image.blend(coarse, fine.resize(coarse.size, Image.Resampling.BICUBIC), 0.3)
    picture.paste((250, 240, 20), (width // 3, height // 4, width // 2, height // 2))
    return picture


@pytest.fixture
def sizes_asked_for(monkeypatch) -> list:
    """What the decoder was asked for, call by call."""
    asked = []

    def watched(data, min_size=None, max_pixels=0):
        asked.append(min_size)
        return decode(data, min_size, max_pixels or 64_000_000)

    monkeypatch.setattr(views, "decode", watched)
    return asked


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("orientation", [1, 6])
def test_evaluation_of_a_large_file_is_that_of_its_full_picture(fit, orientation, sizes_asked_for):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(photograph(2003, 1500), "JPEG", quality=90, exif=exif)
    preprocessing = Preprocessing(size=(128, 96), crop=0.9, fit=fit)
    full = preprocessing.geometry(decode(data)).astype(int)
    seen = views.evaluation_view(data, preprocessing).astype(int)
    gap = np.abs(seen - full).mean()
    moved = np.abs(np.roll(full, 1, 1) - full).mean()
    assert gap < 1.5, "of 255"
    assert gap < moved / 3
    (size,) = sizes_asked_for
    assert size is not None
    assert min(decode(data, size).shape[:2]) < 800


def test_files_that_are_not_much_larger_are_decoded_in_full(sizes_asked_for):
    preprocessing = Preprocessing(size=(224, 224), crop=0.875)
    for size in ((500, 375), (511, 600)):
        data = encoded(photograph(*size), "JPEG", quality=90)
        seen = views.evaluation_view(data, preprocessing)
        np.testing.assert_array_equal(seen, preprocessing.geometry(decode(data)))
    assert sizes_asked_for == [None, None]
    data = encoded(photograph(600, 600), "JPEG", quality=90)  # a half would be too little
    np.testing.assert_array_equal(
        views.evaluation_view(data, preprocessing), preprocessing.geometry(decode(data))
    )


@pytest.mark.parametrize("kind", ["PNG", "WebP", "GIF", "BMP", "TIFF", "PPM"])
def test_other_formats_go_the_same_way(kind):
    picture = photograph(300, 200)
    data = encoded(picture, kind)
    preprocessing = Preprocessing(size=(32, 32))
    np.testing.assert_array_equal(
        views.evaluation_view(data, preprocessing), preprocessing.geometry(decode(data))
    )
    augment = Augment(crop="inception_tf", flip=0.5)
    np.testing.assert_array_equal(
        views.training_view(data, augment, preprocessing, sample_generator(0, 0, 1)),
        augment(decode(data), preprocessing, sample_generator(0, 0, 1)),
    )


@pytest.mark.parametrize("crop", ["inception", "inception_tf", "simple", "pad", "none"])
def test_a_training_view_of_a_large_file_is_that_of_its_full_picture(crop, sizes_asked_for):
    data = encoded(photograph(2400, 1800), "JPEG", quality=90)
    preprocessing = Preprocessing(size=(96, 96), crop=0.875)
    augment = Augment(crop=crop, pad=8, flip=0.5, area=(0.2, 1.0))
    for i in range(6):
        seen, full = (
            views.training_view(picture, augment, preprocessing, sample_generator(0, 0, i))
            for picture in (data, decode(data))
        )
        assert np.abs(seen.astype(int) - full).mean() < 1.5
    assert all(sizes_asked_for)


def test_without_averaging_files_are_decoded_in_full(sizes_asked_for):
    data = encoded(photograph(1600, 1200), "JPEG")
    augment = Augment(crop="inception_tf", antialias=False, interpolation="bilinear")
    views.training_view(data, augment, Preprocessing(size=64), sample_generator(0, 0, 0))
    assert sizes_asked_for == [None]


def test_damaged_files_are_errors_on_both_ways():
    jpeg = encoded(smooth(), "JPEG")
    frame = jpeg.index(b"\xff\xc0") + 5
    augment, preprocessing = Augment(crop="inception"), Preprocessing(size=16)
    damaged = {
        "empty": b"",
        "cut": jpeg[: len(jpeg) // 2],
        "no height": jpeg[:frame] + b"\0\0" + jpeg[frame + 2 :],
        "no size": jpeg[:20] + b"\xff\xd9",
        "huge": jpeg[:frame] + b"\xff\xdc\xff\xdc" + jpeg[frame + 4 :],
    }
    for data in damaged.values():
        with pytest.raises(Error):
            views.evaluation_view(data, preprocessing)
        with pytest.raises(Error):
            views.training_view(data, augment, preprocessing, sample_generator(0, 0, 0))


def test_the_classifier_sees_what_evaluation_sees(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        data = encoded(photograph(900, 700, ord(name)), "JPEG")
        (tmp_path / "data" / name / "x.jpg").write_bytes(data)
    model = vitrail.create_model("vit_mu_patch7_28", num_classes=2)
    vitrail.save_model(model, tmp_path / "model", labels=["a", "b"])
    classify = vitrail.Classifier(tmp_path / "model")
    source = open_source(tmp_path / "data")
    (batch,) = eval_batches(source, model.preprocessing, 2)
    with torch.inference_mode():
        wanted = model(model.preprocessing.normalize(batch.images)).numpy()
    files = [tmp_path / "data" / name / "x.jpg" for name in "ab"]
    np.testing.assert_allclose(classify.logits(files), wanted, atol=1e-6)
    whole = [file.read_bytes() for file in files]
    np.testing.assert_array_equal(classify.logits(whole), classify.logits(files))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_the_resize_is_torchs_public_one(interpolation):
    """It calls what stands behind `F.interpolate`, for its memory layout: the bytes are equal."""
    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    for size in ((40, 50), (200, 120), (90, 30)):
        wanted = F.interpolate(pixels, size, mode=interpolation, antialias=True)
        seen = resized(image, size, interpolation)
        np.testing.assert_array_equal(seen, wanted[0].permute(1, 2, 0).numpy())
        assert seen.flags.c_contiguous
    frozen = image.copy()
    frozen.setflags(write=False)
    np.testing.assert_array_equal(
        resized(frozen[10:, ::2], (20, 20), interpolation),
        resized(image[10:, ::2], (20, 20), interpolation),
    )


@pytest.mark.parametrize("rand_augment", ["big_vision", "torchvision", "timm"])
def test_the_next_fifty_batches_are_equal_pixel_for_pixel_after_a_resume(tmp_path, rand_augment):
    """Everything that draws is on; resumed at an odd place, with other workers."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        for i in range(5):
            data = encoded(smooth(60 + i, 50, seed=ord(name) + i), "JPEG")
            (tmp_path / name / f"{i}.jpg").write_bytes(data)
    augment = Augment(
        crop="inception_tf" if rand_augment == "big_vision" else "inception",
        flip=0.5,
        rand_augment=rand_augment,
        rand_magnitude=9,
        rand_magnitude_std=0.5 if rand_augment == "timm" else 0,
        three_augment=True,
        jitter=0.3,
        erase=0.5,
        erase_fill="noise",
    )
    source, preprocessing = open_source(tmp_path), Preprocessing(size=(24, 24))

    def fifty(start: int, workers: int):
        stream = train_batches(
            source, preprocessing, augment, 3, seed=5, start_sample=start, workers=workers
        )
        return list(itertools.islice(stream, 50 + (0 if start else 13)))

    whole, resumed = fifty(0, 0)[13:], fifty(39, 2)
    for one, again in zip(whole, resumed, strict=True):
        assert one.keys == again.keys
        assert torch.equal(one.images, again.images)
    assert len({batch.images.numpy().tobytes() for batch in whole}) == 50
