"""A model at another resolution."""

import numpy as np
import pytest
import torch

import vitrail
from tests.conftest import randomise
from vitrail.kit.errors import Error
from vitrail.kit.grid import resize_table
from vitrail.weights.resized import resized


@pytest.mark.parametrize("how", ["bicubic_antialias", "bilinear", "bicubic"])
def test_the_position_table_is_resized_as_the_model_says(how):
    model = vitrail.create_model("vit_mu_patch8_32", num_classes=3, position_resize=how)
    randomise(model)
    model.set_labels(["a", "b", "c"])
    model.preprocessing = model.preprocessing.replace(mean=(0.1, 0.2, 0.3), crop=0.9)
    large = resized(model, 48)
    if "pos_embed" in dict(model.named_parameters()):
        expected = resize_table(model.pos_embed, (4, 4), (6, 6), how, model.pos_embed.shape[1] - 16)
        torch.testing.assert_close(large.pos_embed, expected)
    assert large.image_size == 48
    assert large.preprocessing == model.preprocessing.replace(size=(48, 48))
    assert large.labels == ["a", "b", "c"]
    assert not large.training
    assert large(torch.randn(2, 3, 48, 48)).shape == (2, 3)


def test_the_same_size_gives_the_same_logits():
    model = vitrail.create_model("vit_mu_patch8_32", num_classes=3)
    randomise(model)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(resized(model, 32)(images), model(images))
    assert resized(model.double(), 40).pos_embed.dtype == torch.float64


@pytest.mark.parametrize("name", ["pvt_v2_b0", "t2t_vit_7", "botnet50_224"])
def test_other_families_go_to_other_sizes_too(name):
    model = vitrail.create_model(name, num_classes=2, image_size=64)
    large = resized(model, 96)
    with torch.inference_mode():
        logits = large(torch.zeros(1, 3, 96, 96))
    assert np.isfinite(logits.numpy()).all()


def test_a_size_that_there_cannot_be_is_said():
    model = vitrail.create_model("vit_mu_patch8_32", num_classes=3)
    with pytest.raises(Error, match="use 40 or 48"):
        resized(model, 44)
