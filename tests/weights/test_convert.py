"""`vitrail convert`: what we write is opened by the library that it was written for."""

import json
import os
from typing import Any

import numpy as np
import pytest
import torch

import tests.reference.torchvision_stub  # noqa: F401  (before timm)
from tests.commands import call
from tests.conftest import randomise
from tests.models.resnets import small as small_resnet
from tests.weights.conftest import close
from tests.weights.publisher import Shape, arrays, forward
from vitrail import Error, load_model, load_weights, save_model
from vitrail.kit.preprocess import IMAGENET_MEAN
from vitrail.models.zoo import from_config
from vitrail.weights.convert import convert

VIT = {"patch_size": 4, "depth": 2, "width": 24, "heads": 3, "mlp_width": 48, "image_size": 12}
PYRAMID = {"depths": (1, 1, 1, 1), "widths": (16, 16, 24, 24), "heads": (1, 2, 2, 3)}
CVT = {"depths": (1, 2, 3), "widths": (16, 24, 48), "heads": (1, 2, 3), "activation": "gelu"}
DINO = {"layer_scale": 1.0, "pool": "token_mean"}
# What transformers opens: our family and fields.
FOR_TRANSFORMERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("vit", VIT),
    "ViT of a Google file": ("vit", {**VIT, "activation": "gelu_tanh", "image_size": (12, 20)}),
    "ViT with other numerics": ("vit", {**VIT, "activation": "quick_gelu", "norm_eps": 1e-3}),
    "ViT without qkv bias": ("vit", {**VIT, "qkv_bias": False}),
    "ViT with a fixed table": ("vit", {**VIT, "position": "sincos2d"}),
    "ViT without a row for its token": ("vit", {**VIT, "position_on_prefix": False}),
    "DeiT": ("vit", {**VIT, "distilled": True}),
    "DINOv2": ("vit", {**VIT, **DINO}),
    "DINOv2, a head on the token": ("vit", {**VIT, **DINO, "pool": "token"}),
    "DINOv2, gated": (
        "vit",
        {**VIT, **DINO, "mlp_width": 64, "gated_mlp": True, "activation": "silu"},
    ),
    "DINOv2 with registers": (
        "vit",
        {**VIT, **DINO, "registers": 3, "position_on_prefix": False},
    ),
    "CvT": ("cvt", {**CVT, "image_size": 32}),
    "CvT, strides and ratios of its own": (
        "cvt",
        {**CVT, "image_size": 32, "kv_strides": (1, 2, 2), "mlp_ratios": (2.0, 3.0, 4.0)},
    ),
    "PVT": ("pvt", {**PYRAMID, "image_size": 64, "embed_norm_eps": 1e-6}),
    "PVT v2": ("pvt_v2", {**PYRAMID, "image_size": 64, "embed_norm_eps": 1e-6}),
    "PVT v2, linear": (
        "pvt_v2",
        {**PYRAMID, "image_size": 64, "embed_norm_eps": 1e-6, "linear": True},
    ),
    "BiT": ("bit", {"depths": (1, 2), "widths": (128, 256), "stem_width": 32}),
    "ResNet": ("resnet", {"depths": (1, 2), "widths": (32, 64), "stem_width": 16}),
}


def random_model(family, fields):
    model = from_config(family, {"num_classes": 5, **fields})
    randomise(model)
    return model


def pictures(model):
    height, width = model.preprocessing.size
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", FOR_TRANSFORMERS)
def test_transformers_opens_it_with_equal_logits(tmp_path, name, monkeypatch):
    transformers = pytest.importorskip("transformers")
    model = random_model(*FOR_TRANSFORMERS[name]).set_labels(list("vwxyz"))
    done = convert(model, "hf", tmp_path / "hf")
    assert done.gap < 1e-5
    assert not done.notes
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    theirs, info = transformers.AutoModelForImageClassification.from_pretrained(
        tmp_path / "hf", dtype=torch.float64, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert theirs.config.id2label == dict(enumerate("vwxyz"))
    with torch.no_grad():
        expected = theirs.eval()(pictures(model)).logits
        assert close(model.double()(pictures(model)), expected)
        back = load_model(tmp_path / "hf")  # which says by itself what it is
        assert back.labels == list("vwxyz")
        assert close(back.double()(pictures(model)), expected)
    assert back.preprocessing.crop == pytest.approx(model.preprocessing.crop, abs=2e-3)
    assert back.preprocessing.replace(crop=1.0) == model.preprocessing.replace(crop=1.0)


@pytest.mark.parametrize("name", ["ViT", "DINOv2", "CvT", "PVT", "PVT v2", "BiT", "ResNet"])
def test_a_model_without_a_head_is_their_bare_model(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    family, fields = FOR_TRANSFORMERS[name]
    fields = {**fields, "num_classes": 0, **({"pool": "token"} if "pool" in fields else {})}
    model = random_model(family, fields)
    convert(model, "hf", tmp_path / "hf")
    # CvT's bare network ends before its last norm
    kind = "AutoModelForImageClassification" if name == "CvT" else "AutoModel"
    theirs, info = getattr(transformers, kind).from_pretrained(
        tmp_path / "hf", dtype=torch.float64, output_loading_info=True
    )
    assert not info["unexpected_keys"]
    assert all("pooler" in key for key in info["missing_keys"])
    back = load_model(tmp_path / "hf")
    with torch.no_grad():
        assert close(back.double()(pictures(model)), model.double()(pictures(model)))
        if family == "vit":
            out = theirs.eval()(pictures(model)).last_hidden_state[:, 0]
            assert close(model(pictures(model)), out)


FOR_TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "ViT": ("vit", VIT),
    "ViT of a Google file": ("vit", {**VIT, "activation": "gelu_tanh"}),
    "mean pooling": ("vit", {**VIT, "pool": "mean", "norm_after_pool": True}),
    "distilled": ("vit", {**VIT, "distilled": True}),
    "CLIP": ("vit", {**VIT, "pre_norm": True, "norm_eps": 1e-5, "activation": "quick_gelu"}),
    "registers": (
        "vit",
        {**VIT, "registers": 2, "position_on_prefix": False, "layer_scale": 0.1},
    ),
    "PVT v2": ("pvt_v2", {**PYRAMID, "image_size": 64}),
    "BiT": ("bit", {"widths": (128, 256, 256, 256), "stem_width": 32}),
    "ResNet": ("resnet", {"depths": (1, 2, 1, 1), "widths": (32, 64, 64, 64)}),
}


@pytest.mark.parametrize("name", FOR_TIMM)
def test_timm_opens_it_with_equal_logits(tmp_path, name):
    timm = pytest.importorskip("timm")
    model = random_model(*FOR_TIMM[name]).set_labels(list("vwxyz"))
    assert convert(model, "timm", tmp_path / "there").gap < 1e-5
    assert "vitrail" not in json.loads((tmp_path / "there" / "config.json").read_text())
    theirs = timm.create_model(f"local-dir:{tmp_path / 'there'}", pretrained=True)
    with torch.no_grad():
        expected = theirs.double().eval()(pictures(model))
        assert close(model.double()(pictures(model)), expected)
    assert theirs.pretrained_cfg["label_names"] == list("vwxyz")


@pytest.mark.parametrize("pool", ["token", "mean", "map"])
@torch.no_grad()
def test_google_reads_it_with_the_same_logits(tmp_path, pool):
    """Judged by a direct float64 computation in JAX's conventions (`publisher.py`)."""
    model = random_model("vit", {**VIT, "pool": pool, "activation": "gelu_tanh"})
    convert(model, "google", tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        theirs = dict(file)
    again = from_config("vit", {**VIT, "pool": pool, "num_classes": 5})
    report = load_weights(again, tmp_path / "x.npz")
    assert report.family == ("big_vision" if pool == "map" else "google")
    assert close(again.double()(pictures(model)), model.double()(pictures(model)))
    if pool == "token":
        shape = Shape(patch=4, width=24, heads=3, depth=2, mlp=48)
        assert set(theirs) == set(arrays(shape))
        channels_last = pictures(model).permute(0, 2, 3, 1).numpy()
        assert close(model(pictures(model)), forward(theirs, channels_last, shape))


@pytest.mark.parametrize("kind", ["bit", "hybrid"])
@torch.no_grad()
def test_google_files_of_resnets(tmp_path, kind):
    eps = {"standardize_eps": 1e-10} if kind == "bit" else {"standardize_eps": 1e-5}
    if kind == "hybrid":
        eps |= {"standardize_eps_on": "deviation", "group_norm_eps": 1e-6}
        eps |= {"activation": "gelu_tanh"}
    model = small_resnet(kind, **eps).float()
    randomise(model)
    assert convert(model, "google", tmp_path / "x.npz").gap < 1e-5
    again = small_resnet(kind)
    assert load_weights(again, tmp_path / "x.npz").family == "google"
    assert close(again(pictures(model)), model.double()(pictures(model)))


def test_numbers_that_a_layout_cannot_say_are_told_with_what_they_change(tmp_path):
    model = random_model("vit", {**VIT, "norm_eps": 1e-12, "activation": "gelu"})
    done = convert(model, "google", tmp_path / "x.npz")
    assert "activation is 'gelu' here and 'gelu_tanh' there" in done.notes[0]
    assert 1e-6 < done.gap < 0.1
    torch.nn.init.zeros_(model.head.weight)  # which hides nothing
    torch.nn.init.zeros_(model.head.bias)
    assert convert(model, "google", tmp_path / "zero.npz").gap > 1e-6
    model = random_model("cvt", {**CVT, "image_size": 32, "activation": "quick_gelu"})
    done = convert(model, "hf", tmp_path / "hf")
    assert "activation is 'quick_gelu' here and 'gelu' there" in done.notes[0]
    model.preprocessing = model.preprocessing.replace(mean=IMAGENET_MEAN)
    model = random_model("vit", {**VIT, "activation": "gelu_tanh"}).set_labels(list("abcde"))
    model.preprocessing = model.preprocessing.replace(mean=IMAGENET_MEAN)
    notes = convert(model, "google", tmp_path / "y.npz").notes
    assert any("how pictures go in" in note for note in notes)
    assert any("names of the classes" in note for note in notes)


NOWHERE = [
    ("google", "vit", {**VIT, "registers": 2}, "reg_token"),
    ("google", "vit", {**VIT, "distilled": True}, "dist_token"),
    ("google", "vit", {**VIT, "attention_scale": "width"}, "attention_scale='width'"),
    ("google", "vit", {**VIT, "position_at": "layers_shared"}, "position_at='layers_shared'"),
    ("google", "cvt", CVT, "'cvt'"),
    ("timm", "cvt", CVT, "'cvt'"),
    ("timm", "vit", {**VIT, "position": "relative"}, "position='relative'"),
    ("timm", "vit", {**VIT, "pool": "token_mean"}, "pool='token_mean'"),
    ("hf", "vit", {**VIT, "pool": "map"}, "pool='map'"),
    ("hf", "vit", {**VIT, "pool": "mean"}, "pool='mean'"),
    ("hf", "vit", {**VIT, "pre_norm": True}, "pre_norm=True"),
    ("hf", "vit", {**VIT, "registers": 2}, "registers=2"),
    ("hf", "vit", {**VIT, **DINO, "mlp_width": 50}, "mlp_width=50"),
    ("hf", "cvt", {**CVT, "embedding": "patch"}, "embedding='patch'"),
    ("hf", "cvt", {**CVT, "attention_scale": "head"}, "attention_scale='head'"),
    ("hf", "cvt", {**CVT, "kv_strides": (2, 2, (1, 2, 2))}, "kv_strides"),
    (
        "hf",
        "hybrid",
        {**VIT, "depths": (1,), "widths": (128,), "patch_size": 1},
        "a ResNet before a ViT",
    ),
    ("hf", "botnet", {"depths": (1, 1, 1, 1)}, "'botnet'"),
]


@pytest.mark.parametrize(("layout", "family", "fields", "named"), NOWHERE)
def test_a_layout_that_does_not_exist_is_one_clear_sentence(
    tmp_path, layout, family, fields, named
):
    model = random_model(family, {"image_size": 32, **fields})
    with pytest.raises(Error) as caught:
        convert(model, layout, tmp_path / "x.npz")
    assert named in str(caught.value)
    assert "nothing was written" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_verb(tmp_path):
    shape = Shape(patch=16, width=32, heads=2, depth=1, mlp=128, grid=2, classes=3)
    np.savez(tmp_path / "mu.npz", **arrays(shape))
    words = ("convert", tmp_path / "mu.npz")
    call(*words, tmp_path / "hf", "--to", "hf", status=2)  # no name
    name = ("--model", "vit_mu_patch16_32")
    out, err = call(*words, tmp_path / "hf", "--to", "hf", *name)
    assert "ViTForImageClassification" in out
    assert "read back, within" in out
    assert "(google)" in out
    assert "tensors matched" in out
    assert err == ""
    _, err = call(*words, tmp_path / "hf", "--to", "hf", *name, status=2)
    assert "--overwrite" in err
    (tmp_path / "hf" / "model.safetensors").write_bytes(b"old")
    (tmp_path / "hf" / "notes.txt").write_text("mine")
    call(*words, tmp_path / "hf", "--to", "hf", *name, "--overwrite")
    assert (tmp_path / "hf" / "notes.txt").read_text() == "mine"
    call("convert", tmp_path / "hf", tmp_path / "back.npz", "--to", "google")
    with np.load(tmp_path / "mu.npz") as one, np.load(tmp_path / "back.npz") as other:
        assert set(one.files) == set(other.files)
        assert all(np.array_equal(one[name], other[name]) for name in one.files)
    call("convert", tmp_path / "hf", tmp_path / "x", "--to", "google", status=2)  # no .npz
    call("convert", tmp_path / "hf", tmp_path / "hf", "--to", "hf", "--overwrite", status=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.npz", "hf", "mu.npz"]


def test_what_is_there_survives_a_refusal_and_a_full_disk(tmp_path, monkeypatch):
    model = random_model("vit", VIT)
    convert(model, "timm", tmp_path / "x")
    before = {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()}
    other = random_model("vit", {**VIT, "position": "relative"})
    with pytest.raises(Error, match="relative"):
        convert(other, "timm", tmp_path / "x", overwrite=True)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vitrail.weights.convert.save_file", full)
    with pytest.raises(Error, match="no space left"):
        convert(model, "timm", tmp_path / "x", overwrite=True)
    with pytest.raises(Error, match="no space left"):
        convert(model, "timm", tmp_path / "new")
    assert {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_training_run_is_not_overwritten(tmp_path):
    model = random_model("vit", VIT)
    save_model(model, tmp_path / "run")
    (tmp_path / "run" / "checkpoints").mkdir()
    with pytest.raises(Error, match="holds a training run"):
        convert(model, "timm", tmp_path / "run", overwrite=True)


def test_files_are_readable_by_others(tmp_path):
    convert(random_model("vit", VIT), "timm", tmp_path / "x")
    mask = os.umask(0)
    os.umask(mask)
    for path in (tmp_path / "x").iterdir():
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask
