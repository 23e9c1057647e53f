"""A temperature in a model folder belongs to the weights that it was fitted on."""

import json

import pytest
import torch

import vitrail
from vitrail.weights.folder import save_model, update_details
from vitrail.weights.temperature import read_temperature, write_temperature


@pytest.fixture
def folder(tmp_path):
    model = vitrail.create_model("vit_mu_patch8_32", num_classes=3)
    save_model(model, tmp_path / "m", labels=["a", "b", "c"])
    return tmp_path / "m"


def other(seed=1):
    torch.manual_seed(seed)
    model = vitrail.create_model("vit_mu_patch8_32", num_classes=3)
    torch.nn.init.normal_(model.head.weight)
    return model.set_labels(["a", "b", "c"])


def test_it_is_kept_with_what_it_was_fitted_on(folder):
    assert read_temperature(folder) == 1
    before = json.loads((folder / "config.json").read_text())
    assert write_temperature(folder, "final", 1.5, {"on": "val", "n": 40}) == "final"
    assert read_temperature(folder) == 1.5
    after = json.loads((folder / "config.json").read_text())
    section = after["vitrail"]
    assert section["temperature"] == {"final": 1.5}
    assert section["calibration"]["final"] == {
        "temperature": 1.5,
        "sha256": section["sha256"],
        "on": "val",
        "n": 40,
    }
    del section["temperature"], section["calibration"]
    assert after == before  # nothing else has changed
    assert vitrail.Classifier(folder).temperature == 1.5
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_the_best_weights_have_their_own(folder):
    assert write_temperature(folder, "best", 1.5, {}) == "final"  # there are no others
    assert read_temperature(folder, "best") == 1.5
    save_model(other(), folder, weights_file="best.safetensors")
    assert read_temperature(folder, "best") == 1
    assert write_temperature(folder, "best", 0.7, {}) == "best"
    assert (read_temperature(folder), read_temperature(folder, "best")) == (1.5, 0.7)
    assert vitrail.Classifier(folder, which="best").temperature == 0.7
    assert read_temperature(folder / "best.safetensors") == 0.7
    assert read_temperature(folder / "model.safetensors") == 1.5


def test_new_weights_do_not_inherit_it(folder):
    write_temperature(folder, "final", 1.5, {})
    save_model(other(), folder, weights_file="best.safetensors")
    write_temperature(folder, "best", 0.7, {})
    save_model(other(2), folder, weights_file="best.safetensors")
    assert read_temperature(folder, "best") == 1
    assert read_temperature(folder) == 1.5
    save_model(other(3), folder)
    assert read_temperature(folder) == 1


def test_a_weights_file_that_was_replaced_is_told(folder):
    write_temperature(folder, "final", 1.5, {})
    (folder / "model.safetensors").write_bytes(b"something else")
    assert read_temperature(folder / "model.safetensors") == 1


def test_a_number_alone_is_taken_as_it_is(folder):
    update_details(folder, temperature={"final": 2.5})
    assert read_temperature(folder) == 2.5
    for nonsense in (0, -1, "warm", True):
        update_details(folder, temperature={"final": nonsense})
        with pytest.raises(vitrail.Error, match="number above 0"):
            read_temperature(folder)


def test_only_a_model_folder_can_hold_one(folder, tmp_path):
    with pytest.raises(vitrail.Error, match="stored in a model folder"):
        write_temperature(folder / "model.safetensors", "final", 1.5, {})
    (tmp_path / "timm").mkdir()
    (tmp_path / "timm" / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    with pytest.raises(vitrail.Error, match="another library's folder"):
        write_temperature(tmp_path / "timm", "final", 1.5, {})
    assert read_temperature(tmp_path / "timm") == 1
    assert read_temperature(tmp_path / "nothing.safetensors") == 1
