"""The same files through timm's own readers, and our folders opened by timm."""

import json

import numpy as np
import pytest
import torch

from tests.conftest import randomise
from tests.reference.torchvision_stub import timm
from tests.weights.conftest import SIZES, close
from tests.weights.publisher import Shape, arrays
from vitrail import load_weights, save_model
from vitrail.kit.preprocess import Preprocessing

ARGUMENTS = {
    "patch_size": 4,
    "depth": 2,
    "embed_dim": 24,
    "num_heads": 3,
    "mlp_ratio": 40.5 / 24,
    "num_classes": 5,
    "img_size": 12,
}


def timm_model(**arguments):
    return timm.create_model("vit_tiny_patch16_224", **{**ARGUMENTS, **arguments}).double().eval()


@pytest.mark.parametrize("size", [(12, 12), (20, 20), (8, 16)])
@pytest.mark.parametrize("case", ["token", "map", "scanned"])
def test_keep_gives_timms_logits_for_googles_files(tmp_path, tiny, images, case, size):
    layout, pool = {
        "token": ("original", "tok"),
        "map": ("big_vision", "map"),
        "scanned": ("scanned", "gap"),
    }[case]
    fields, arguments = {
        "token": ({}, {}),
        "map": ({"pool": "map"}, {"global_pool": "map", "class_token": False}),
        "scanned": (
            {"pool": "mean"},
            {"global_pool": "avg", "class_token": False, "fc_norm": False},
        ),
    }[case]
    path = tmp_path / "weights.npz"
    np.savez(path, **arrays(Shape(pool=pool), layout))
    theirs = timm_model(img_size=size, **arguments)
    theirs.load_pretrained(str(path))
    ours = tiny(image_size=size, **fields)
    report = load_weights(ours, path, numerics="keep")
    assert close(ours(images(*size)), theirs(images(*size)))
    if size != (12, 12):
        assert any("bilinear" in note for note in report.notes)
        load_weights(ours, path)
        assert not close(ours(images(*size)), theirs(images(*size)), 1e-5)


VARIANTS = {
    "plain": ({}, {}),
    "fc_norm": (
        {"global_pool": "avg"},
        {"pool": "mean", "norm_after_pool": True, "class_token": True},
    ),
    "attention pooling": (
        {"global_pool": "map", "class_token": False, "act_layer": "gelu_tanh"},
        {"pool": "map", "activation": "gelu_tanh"},
    ),
    "registers": (
        {"reg_tokens": 2, "no_embed_class": True, "init_values": 0.1},
        {"registers": 2, "position_on_prefix": False, "layer_scale": 0.1},
    ),
    "registers with positions": ({"reg_tokens": 2}, {"registers": 2}),
    "no head": ({"num_classes": 0}, {"num_classes": 0}),
    "no qkv bias": ({"qkv_bias": False}, {"qkv_bias": False}),
}


@pytest.mark.parametrize("size", [(12, 12), (8, 16)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_timms_state_dicts(tmp_path, tiny, images, variant, size):
    arguments, fields = VARIANTS[variant]
    theirs = timm_model(img_size=size, **arguments)
    randomise(theirs)
    ours = tiny(image_size=size, **fields)
    report = load_weights(ours, theirs.state_dict())
    assert report.family == "timm"
    assert report.resized == report.fresh == report.dropped == []
    assert close(ours(images(*size)), theirs(images(*size)))


@pytest.mark.parametrize("variant", ["plain", "registers"])
def test_table_without_rows_for_the_prefix(tiny, images, variant):
    """A no_embed_class file into a model that has rows, and the other way, exactly."""
    arguments, fields = VARIANTS[variant]
    other = variant == "plain"
    theirs = timm_model(**{**arguments, "no_embed_class": other})
    randomise(theirs)
    ours = tiny(**{**fields, "position_on_prefix": other})
    load_weights(ours, theirs.state_dict())
    assert close(ours(images()), theirs(images()))


def test_timms_folder_brings_statistics_labels_size_and_numerics(tmp_path, tiny, images):
    theirs = timm_model(img_size=(8, 32), act_layer="quick_gelu")
    randomise(theirs)
    labels = list("abcde")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "model_args": {"img_size": [8, 32], "act_layer": "quick_gelu"},
        "pretrained_cfg": {
            "mean": [0.1, 0.2, 0.3],
            "std": [0.4, 0.5, 0.6],
            "crop_pct": 0.7,
            "interpolation": "bilinear",
            "label_names": labels,
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    ours = tiny(image_size=(8, 32))
    report = load_weights(ours, tmp_path)
    assert report.resized == []  # 2x8 patches are not 4x4
    assert report.numerics == {"activation": ("gelu", "quick_gelu")}
    assert ours.labels == labels
    assert report.preprocessing == Preprocessing(
        size=(8, 32), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop=0.7, interpolation="bilinear"
    )
    assert close(ours(images(8, 32)), theirs(images(8, 32)))


FOLDERS = {
    "plain": {},
    "mean": {"pool": "mean"},
    "mean with class token": {"pool": "mean", "class_token": True},
    "norm after mean": {"pool": "mean", "norm_after_pool": True},
    "norm after token": {"norm_after_pool": True},
    "attention pooling": {"pool": "map"},
    "attention pooling over registers": {"pool": "map", "registers": 2},
    "every token": {"pool": "none"},
    "registers": {"registers": 3},
    "registers outside of the table": {"registers": 3, "position_on_prefix": False},
    "layer scale": {"layer_scale": 1e-4},
    "tanh gelu": {"activation": "gelu_tanh"},
    "quick gelu": {"activation": "quick_gelu"},
    "relu": {"activation": "relu"},
    "fixed table": {"pool": "mean", "position": "sincos2d"},
    "fixed table on the class token": {"position": "sincos2d_mae"},
    "no table": {"position": "none"},
    "no qkv bias": {"qkv_bias": False},
    "another size": {"image_size": 20},
    "not square": {"image_size": (8, 32)},
    "another patch": {"patch_size": 3},
    "ten classes": {"num_classes": 10},
    "no head": {"num_classes": 0},
    "one channel": {"in_channels": 1},
    "odd hidden width": {"width": 36, "heads": 3, "mlp_width": 101},
}


@pytest.mark.parametrize("case", FOLDERS)
def test_timm_opens_our_folder(tmp_path, tiny, images, case):
    ours = tiny(**FOLDERS[case])
    randomise(ours)
    save_model(ours, tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).double().eval()
    state = json.loads((tmp_path / "config.json").read_text())
    # create_model builds in float32: put the very same float64 values in
    theirs.load_state_dict(ours.state_dict())
    size = FOLDERS[case].get("image_size", 12)
    height, width = (size, size) if isinstance(size, int) else size
    x = images(height, width, FOLDERS[case].get("in_channels", 3))
    assert close(ours(x), theirs(x))
    assert state["num_classes"] == ours.num_classes
    assert "img_size" in state["model_args"]
    assert not state["vitrail"]["not_in_timm"]


def test_timm_reads_the_weights_and_the_pictures_of_our_folder(tmp_path, tiny):
    ours = tiny(dtype=torch.float32, image_size=(8, 32))
    randomise(ours)
    labels = ["ant", "bee", "cat", "dog", "elk"]
    ours.preprocessing = Preprocessing(
        size=(8, 32), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), crop=0.8, fit="squash"
    )
    save_model(ours, tmp_path, labels)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())
    about = timm.data.resolve_model_data_config(theirs)
    assert about["input_size"] == (3, 8, 32)
    assert tuple(about["mean"]) == (0.1, 0.2, 0.3)
    assert about["crop_pct"] == 0.8
    assert about["crop_mode"] == "squash"
    assert theirs.pretrained_cfg["label_names"] == labels
    other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=7)
    assert other.head.weight.shape[0] == 7


@pytest.mark.parametrize(
    "fields", [{"pre_logits": True}, {"norm_eps": 1e-5}, {"attention_scale": "width"}]
)
def test_what_timm_cannot_express_is_named(tmp_path, tiny, fields):
    save_model(tiny(**fields), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"].startswith("vitrail:")
    assert next(iter(fields)) in config["vitrail"]["not_in_timm"][0]
    with pytest.raises(Exception, match="vitrail"):
        timm.create_model(f"local-dir:{tmp_path}", pretrained=True)


@pytest.mark.parametrize("name", ["vit_small_patch16_384", "vit_giant_patch14_224"])
def test_architectures_are_timms_own(tiny, name):
    """timm's name stands alone where it says everything: no argument but the size."""
    from vitrail.models.vit import ViTConfig
    from vitrail.models.zoo import resolve
    from vitrail.weights.timm import ARCHITECTURES, architecture

    config = ViTConfig(**resolve(name)[1].config)
    assert architecture(config) == (name, {"img_size": config.image_size}, [])
    known = timm.list_models("vit_*")
    for (size, patch), sides in ARCHITECTURES.items():
        assert all(f"vit_{size}_patch{patch}_{side}" in known for side in sides)


def test_sizes_here_and_there_agree():
    assert int(ARGUMENTS["embed_dim"] * ARGUMENTS["mlp_ratio"]) == SIZES["mlp_width"]
