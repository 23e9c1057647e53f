"""BoTNet's weights: nobody published any, so there are only our own files."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import randomise
from vitrail import WeightsError, load_model, load_weights, save_model
from vitrail.models.botnet import resized
from vitrail.models.zoo import from_config

SMALL = {
    "depths": (1, 1, 2),
    "widths": (16, 32, 64),
    "stem_width": 8,
    "num_classes": 5,
    "image_size": 64,
}


def small(**fields):
    model = from_config("botnet", {**SMALL, **fields})
    randomise(model)
    return model


@pytest.mark.parametrize("fields", [{}, {"attention_stride": 1, "squeeze": 0.25}])
def test_a_folder_comes_back(tmp_path, fields):
    model, images = small(**fields), torch.randn(2, 3, 64, 64)
    save_model(model, tmp_path, list("abcde"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "vitrail:botnet"  # timm's BoTNets are other layouts
    again = load_model(tmp_path)
    assert again.config == model.config
    assert again.labels == list("abcde")
    with torch.no_grad():
        assert torch.equal(again(images), model(images))


@pytest.mark.parametrize("position", ["relative", "absolute"])
def test_tables_of_another_size_are_resized_and_named(tmp_path, position):
    model, other = small(position=position), small(position=position, image_size=(96, 64))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    report = load_weights(other, tmp_path / "weights.safetensors")
    kind = position[:3]
    assert report.family == "vitrail"
    assert report.resized == [f"layer3.{i}.attn.{kind}_height" for i in range(2)]
    rows = {"relative": "15 -> 23", "absolute": "8 -> 12"}[position]
    assert any(f"layer3.0.attn.{kind}_height: {rows} rows, linear" in n for n in report.notes)
    own = other.state_dict()[report.resized[0]]
    expected = resized(model.state_dict()[report.resized[0]], len(own))
    torch.testing.assert_close(own, expected, rtol=0, atol=0)
    # as the model itself does it on the way
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(other(images), model(images), rtol=1e-5, atol=1e-5)


def test_misfits_are_refused_by_name():
    model, tensors = small(), dict(small().state_dict())
    del tensors["layer3.0.attn.rel_width"]
    with pytest.raises(WeightsError, match=r"layer3\.0\.attn\.rel_width"):
        load_weights(model, tensors)
    plain = from_config("resnet", SMALL).state_dict()
    with pytest.raises(WeightsError) as caught:
        load_weights(model, plain)
    assert "layer3.0.attn.qkv.weight" in caught.value.missing
    assert "layer3.0.conv2.weight" in caught.value.unexpected
    with pytest.raises(WeightsError, match="a head of 5 classes and the model one of 9"):
        load_weights(small(num_classes=9), small().state_dict())
    report = load_weights(small(num_classes=9), small().state_dict(), fresh=("head",))
    assert report.fresh == ["fc.weight", "fc.bias"]
