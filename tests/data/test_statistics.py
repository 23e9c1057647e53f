import numpy as np
import pytest

from vitrail.data.sources import ArraySource, open_source
from vitrail.data.statistics import pixel_statistics
from vitrail.kit.preprocess import Preprocessing


def test_the_figures_are_those_of_the_pixels():
    images = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 3), dtype=np.uint8)
    images[..., 1] //= 3
    source = ArraySource(images, np.arange(50) % 2)
    mean, deviation = pixel_statistics(source, Preprocessing(size=(8, 8)))
    scaled = images.reshape(-1, 3) / 255
    assert mean == pytest.approx(scaled.mean(0), abs=6e-4)
    assert deviation == pytest.approx(scaled.std(0), abs=6e-4)


def test_the_known_figures_of_fashion_mnist():
    # 0.2860 and 0.3530 over the 60,000 training pictures, as published everywhere
    mean, deviation = pixel_statistics(open_source("demo:fashion"), Preprocessing(size=(28, 28)))
    assert mean == pytest.approx((0.286,) * 3, abs=0.01)
    assert deviation == pytest.approx((0.353,) * 3, abs=0.01)


def test_one_colour_and_one_channel():
    source = ArraySource(np.full((4, 8, 8), 51, np.uint8), [0, 1, 0, 1])
    assert pixel_statistics(source, Preprocessing(size=(8, 8))) == ((0.2,) * 3, (0.05,) * 3)
    grey = Preprocessing(size=(8, 8), mean=(0.5,), std=(0.5,))
    assert pixel_statistics(source, grey) == ((0.2,), (0.05,))
