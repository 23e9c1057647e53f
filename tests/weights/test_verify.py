"""`vitrail verify`: a model folder against what was saved, and what was computed then."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands import call
from tests.conftest import randomise
from vitrail import Error, load_model, save_model
from vitrail.kit.files import sha256_of
from vitrail.models.zoo import from_config
from vitrail.weights.golden import golden_gap, golden_values
from vitrail.weights.verify import verify_model

SIZES = {"patch_size": 4, "depth": 2, "width": 24, "heads": 3, "mlp_width": 48}


@pytest.fixture
def folder(tmp_path):
    model = from_config("vit", {**SIZES, "image_size": 12, "num_classes": 5})
    randomise(model)
    save_model(model, tmp_path / "model")
    return tmp_path / "model"


def edit(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config["vitrail"])
    (folder / "config.json").write_text(json.dumps(config))


def replace_weights(folder, change, name="model.safetensors", digest="sha256"):
    """Other tensors, and their hash in the config: only what is computed can give them away."""
    tensors = load_file(folder / name)
    change(tensors)
    save_file(tensors, folder / name)
    edit(folder, lambda about: about.update({digest: sha256_of(folder / name)}))


def failed(folder):
    return {check.name: check for check in verify_model(folder).failures}


def test_a_folder_as_it_was_saved(folder):
    out, err = call("verify", folder)
    assert err == ""
    assert "golden" in out
    assert "FAILED" not in out
    out, _ = call("verify", folder, "--json")
    verdict = json.loads(out)
    assert verdict["passed"] is True
    assert {check["name"]: check["passed"] for check in verdict["checks"]} == {
        "config": True,
        "sha256": True,
        "shapes": True,
        "finite": True,
        "golden": True,
    }
    about = json.loads((folder / "config.json").read_text())["vitrail"]
    assert len(json.dumps(about["golden"])) < 4000


@pytest.mark.parametrize("at", [0.1, 0.5, 0.999])
def test_a_flipped_bit(folder, at):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 1
    path.write_bytes(content)
    out, err = call("verify", folder, status=3)
    assert "FAILED" in out
    assert "model.safetensors: sha256" in err
    out, _ = call("verify", folder, "--json", status=3)
    assert json.loads(out)["passed"] is False


def test_a_file_cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    _, err = call("verify", folder, status=3)
    assert "model.safetensors" in err
    assert set(failed(folder)) == {"sha256", "shapes"}


def test_weights_of_other_shapes_and_names(folder):
    def reshape(tensors):
        tensors["norm.weight"] = torch.ones(23)
        del tensors["norm.bias"]
        tensors["more"] = torch.ones(1)

    replace_weights(folder, reshape)
    told = failed(folder)["shapes"].detail
    assert all(word in told for word in ("norm.bias is missing", "more has no place", "[23]"))


def test_values_that_are_not_finite(folder):
    replace_weights(folder, lambda tensors: tensors["norm.bias"].fill_(float("nan")))
    assert set(failed(folder)) == {"finite", "golden"}
    assert "norm.bias" in failed(folder)["finite"].detail


def test_other_weights_of_the_same_shapes(folder):
    replace_weights(folder, lambda tensors: tensors["head.bias"].add_(0.01))
    assert set(failed(folder)) == {"golden"}


@pytest.mark.parametrize(
    "change",
    [{"activation": "gelu_tanh"}, {"norm_eps": 1e-2}, {"attention_scale": "width"}],
)
def test_a_config_edited_by_hand(folder, change):
    edit(folder, lambda about: about["config"].update(change))
    assert set(failed(folder)) == {"golden"}


def test_a_config_of_no_model(folder):
    edit(folder, lambda about: about["config"].update(heads=5))
    _, err = call("verify", folder, status=3)
    assert "config.json" in err


def test_the_best_weights_are_checked_too(folder):
    model = load_model(folder)
    with torch.no_grad():
        model.head.bias += 1
    save_model(model, folder, weights_file="best.safetensors")
    assert verify_model(folder).passed
    assert len([c for c in verify_model(folder).checks if c.name == "golden" and c.passed]) == 2
    save_model(load_model(folder), folder)  # what is known of the best stays
    assert len([c for c in verify_model(folder).checks if c.name == "golden" and c.passed]) == 2
    replace_weights(folder, lambda t: t["head.bias"].add_(0.01), "best.safetensors", "best_sha256")
    assert [c.file for c in verify_model(folder).failures] == ["best.safetensors"]


def test_what_cannot_be_read_is_the_users_error(tmp_path, folder):
    call("verify", tmp_path / "nothing", status=2)
    (tmp_path / "empty").mkdir()
    call("verify", tmp_path / "empty", status=2)
    other = shutil.copytree(folder, tmp_path / "other")
    (other / "model.safetensors").unlink()
    call("verify", other, status=2)
    (other / "config.json").write_text("{")
    call("verify", other, status=2)
    (other / "config.json").write_text('{"architecture": "vit_tiny_patch16_224"}')
    call("verify", other, status=2)
    (tmp_path / "file").write_text("x")
    call("verify", tmp_path / "file", status=2)


def test_a_folder_from_before_golden_values(folder):
    edit(folder, lambda about: about.pop("golden"))
    verdict = verify_model(folder)
    assert verdict.passed
    assert [check.passed for check in verdict.checks if check.name == "golden"] == [None]
    edit(folder, lambda about: about.update(golden={"logits": "x"}))
    assert set(failed(folder)) == {"golden"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_values_see_through_a_zero_head_and_leave_the_model_alone(dtype):
    model = from_config("vit", {**SIZES, "image_size": 12, "num_classes": 5}).to(dtype).train()
    state = torch.get_rng_state()
    golden = golden_values(model)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert golden["logits"] == [0] * 10
    assert max(map(abs, golden["features"])) > 0.1
    assert golden_gap(model, golden) < 1e-6
    with torch.no_grad():
        model.blocks[0].mlp.fc1.bias += 0.1
    assert golden_gap(model, golden) > 1e-4


def test_a_model_that_broke_in_training_is_saved_and_told(tmp_path):
    model = from_config("vit", {**SIZES, "image_size": 12, "num_classes": 5})
    torch.nn.init.constant_(model.norm.bias, float("nan"))
    save_model(model, tmp_path / "x")
    json.loads((tmp_path / "x" / "config.json").read_text())
    assert set(failed(tmp_path / "x")) == {"finite"}
    with pytest.raises(Error, match="spoilt"):
        load_model(tmp_path / "x")
