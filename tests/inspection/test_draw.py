from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from tests.conftest import randomise
from vitrail.inspection.attention import rollout
from vitrail.inspection.draw import attention_maps, overlay
from vitrail.kit.errors import Error
from vitrail.models.base import ImageClassifier
from vitrail.models.tape import Tape
from vitrail.models.vit import VisionTransformer, ViTConfig

SMALL = {"patch_size": 4, "depth": 3, "width": 16, "heads": 2, "mlp_width": 32, "num_classes": 5}


def model_with(**config) -> VisionTransformer:
    model = VisionTransformer(ViTConfig(**{**SMALL, "image_size": (12, 8), **config}))
    randomise(model)
    return model.eval()


def images(b=2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (b, 12, 8, 3), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("config", "prefix"),
    [
        ({"pool": "token"}, 1),
        ({"pool": "token", "registers": 4}, 5),
        ({"pool": "mean"}, 0),
        ({"pool": "mean", "class_token": True, "registers": 2}, 3),
        ({"pool": "map"}, 0),
    ],
)
def test_maps_are_read_where_the_head_reads(config, prefix):
    model = model_with(**config)
    tape = Tape()
    with torch.no_grad():
        model(model.preprocessing.normalize(images()), tape=tape)
    rolled = rollout([tape[f"blocks.{i}.attention"] for i in range(3)])
    if model.config.pool == "token":
        read = torch.eye(rolled.shape[1])[:1]
    elif model.config.pool == "mean":
        read = torch.zeros(1, rolled.shape[1])
        read[0, prefix:] = 1 / 6
    else:
        read = tape["pool.attention"].mean(1)
    expected = (read @ rolled)[:, 0, prefix:].reshape(2, 3, 2)
    found = attention_maps(model, images())
    assert found.shape == (2, 3, 2)
    torch.testing.assert_close(found, expected)
    assert found.std() > 1e-3  # not flat, or nothing would have been tested


def test_the_model_is_left_as_it_was():
    model = model_with(pool="token", dropout=0.5).train()
    first, second = attention_maps(model, images()), attention_maps(model, images())
    assert model.training
    assert torch.equal(first, second)  # dropout was off


def test_a_network_without_attention_says_so():
    class Convolutions(ImageClassifier):
        def __init__(self):
            super().__init__(SimpleNamespace(num_classes=2, image_size=8, in_channels=3))
            self.head = nn.Linear(3, 2)

        def features(self, images, tape=None):
            return images.mean((2, 3))

    with pytest.raises(Error, match="Convolutions has no attention from place to place"):
        attention_maps(Convolutions(), torch.zeros(1, 8, 8, 3, dtype=torch.uint8))


def test_the_hottest_patch_is_the_brightest_place():
    heat = torch.zeros(3, 2)
    heat[2, 1] = 7.0
    drawn = overlay(np.full((30, 20, 3), 128, np.uint8), heat).astype(int)
    assert drawn.shape == (30, 20, 3)
    brightness = drawn.sum(2)
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert row >= 20
    assert column >= 10
    assert brightness[:10].max() == brightness.min()  # no heat above
    assert drawn[25, 15, 0] > drawn[25, 15, 2]  # yellow
    assert drawn[2, 2, 2] > drawn[2, 2, 1]  # dark blue


def test_an_overlay_keeps_the_picture_in_sight():
    picture = np.zeros((8, 8, 1), np.uint8)
    picture[:, 4:] = 255
    flat = overlay(picture, torch.ones(2, 2), alpha=0.5).astype(int)
    assert flat.shape == (8, 8, 3)
    assert (flat[:, 4:] - flat[:, :4] >= 126).all()
    color = np.array([200, 100, 50], np.uint8) * np.ones((4, 4, 1), np.uint8)
    assert (overlay(color, np.eye(2), alpha=0.0) == color).all()
