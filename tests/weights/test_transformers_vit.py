"""Files of transformers' ViT, DeiT, DINOv2 and ViT-MAE, written by transformers itself."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import randomise
from tests.weights.conftest import close
from vitrail import WeightsError, create_model, load_model, load_weights
from vitrail.kit.preprocess import HALF, IMAGENET_MEAN
from vitrail.models.zoo import from_config
from vitrail.weights import transformers_vit
from vitrail.weights.rules import to_theirs

transformers = pytest.importorskip("transformers")

SIZES: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "image_size": 12,
    "patch_size": 4,
    "num_labels": 5,
}
OURS = {"patch_size": 4, "depth": 2, "width": 24, "heads": 3, "image_size": 12, "num_classes": 5}
DECODER = {
    "decoder_hidden_size": 16,
    "decoder_intermediate_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
}
DINO = {"layer_scale": 1.0, "pool": "token_mean", "mlp_width": 48}
# transformers' class and arguments, and the fields of our model.
FILES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ViT": ("ViTForImageClassification", {"intermediate_size": 40}, {"mlp_width": 40}),
    "tanh": (
        "ViTForImageClassification",
        {"intermediate_size": 40, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-3},
        {"mlp_width": 40},
    ),
    "no qkv bias": (
        "ViTForImageClassification",
        {"intermediate_size": 40, "qkv_bias": False},
        {"mlp_width": 40, "qkv_bias": False},
    ),
    "DeiT": (
        "DeiTForImageClassificationWithTeacher",
        {"intermediate_size": 40},
        {"mlp_width": 40, "distilled": True},
    ),
    "DINOv2": ("Dinov2ForImageClassification", {"mlp_ratio": 2}, DINO),
    "DINOv2 giant": (
        "Dinov2ForImageClassification",
        {"mlp_ratio": 2, "use_swiglu_ffn": True},
        {**DINO, "mlp_width": 32, "gated_mlp": True, "activation": "silu"},
    ),
    "DINOv2 with registers": (
        "Dinov2WithRegistersForImageClassification",
        {"mlp_ratio": 2, "num_register_tokens": 3},
        {**DINO, "registers": 3, "position_on_prefix": False},
    ),
}
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ViT with its pooler": (
        "ViTModel",
        {"intermediate_size": 40},
        {"mlp_width": 40, "num_classes": 0, "pre_logits": True},
    ),
    "MAE": (
        "ViTMAEModel",
        {"intermediate_size": 40, "mask_ratio": 0.0, **DECODER},
        {"mlp_width": 40, "num_classes": 0},
    ),
}


def theirs_of(files, name):
    kind, arguments, _ = files[name]
    kind = getattr(transformers, kind)
    model = kind(kind.config_class(**SIZES, **arguments)).double().eval()
    randomise(model)
    return model


def ours_of(files, name, **more):
    return from_config("vit", {**OURS, **files[name][2], **more}).double()


@pytest.mark.parametrize("name", FILES)
def test_logits_of_a_folder_are_theirs(tmp_path, images, name):
    theirs = theirs_of(FILES, name)
    theirs.save_pretrained(tmp_path)
    ours = ours_of(FILES, name)
    report = load_weights(ours, tmp_path)
    assert report.family == "transformers"
    assert not report.fresh
    assert ours.config.position_resize == ("bicubic_antialias" if "reg" in name else "bicubic")
    with torch.no_grad():
        assert close(ours(images()), theirs(images()).logits)
        other = images(20, 8)
        arguments = {} if "DINO" in name else {"interpolate_pos_encoding": True}
        # DINOv2's tables are resized in float32
        assert close(
            ours(other), theirs(other, **arguments).logits, 1e-5 if "DINO" in name else 1e-9
        )
        changed = ours_of(FILES, name)
        load_weights(changed, tmp_path, numerics="keep")
        if "DINO" not in name:  # their eps is ours
            assert not close(changed(images()), theirs(images()).logits)


@pytest.mark.parametrize("name", MODELS)
def test_features_of_a_bare_model_are_theirs(tmp_path, images, name):
    theirs = theirs_of(MODELS, name)
    theirs.save_pretrained(tmp_path)
    ours = ours_of(MODELS, name)
    report = load_weights(ours, tmp_path / "model.safetensors")
    assert (report.family, report.wrappers, report.dropped) == ("transformers", [], [])
    with torch.no_grad():
        if name == "MAE":
            order = torch.arange(9.0, dtype=torch.float64)[None].expand(2, -1)
            expected = theirs(images(), noise=order).last_hidden_state[:, 0]
        else:
            expected = theirs(images()).pooler_output
        assert close(ours.features(images()), expected)


def test_maes_decoder_is_dropped_and_named(tmp_path, tiny):
    arguments = {**SIZES, "intermediate_size": 40, **DECODER}
    theirs = transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**arguments))
    theirs.save_pretrained(tmp_path)
    ours = tiny()
    report = load_weights(ours, tmp_path, fresh="head")
    assert report.wrappers == ["vit."]
    assert "decoder.mask_token" in report.dropped
    assert all(name.startswith("decoder.") for name in report.dropped)
    assert report.preprocessing.mean == IMAGENET_MEAN


def test_the_json_files_beside_the_weights(tmp_path):
    theirs = theirs_of(FILES, "tanh")
    theirs.config.id2label = dict(enumerate("abcde"))
    theirs.save_pretrained(tmp_path)
    ours = ours_of(FILES, "tanh")
    report = load_weights(ours, tmp_path)
    assert report.numerics["activation"] == ("gelu", "gelu_tanh")
    assert report.numerics["norm_eps"] == (1e-6, 1e-3)
    assert ours.labels == list("abcde")
    assert (report.preprocessing.mean, report.preprocessing.fit) == (HALF, "squash")
    processor = {
        "do_center_crop": True,
        "size": {"shortest_edge": 256},
        "crop_size": {"height": 224, "width": 224},
        "resample": 3,
        "image_mean": list(IMAGENET_MEAN),
        "image_std": [0.2, 0.2, 0.2],
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    pictures = load_weights(ours, tmp_path).preprocessing
    assert (pictures.fit, pictures.crop, pictures.interpolation) == ("crop", 0.875, "bicubic")
    assert (pictures.mean, pictures.std) == (IMAGENET_MEAN, (0.2, 0.2, 0.2))


@pytest.mark.parametrize("name", FILES)
def test_rules_work_both_ways(tmp_path, name):
    theirs = theirs_of(FILES, name)
    theirs.save_pretrained(tmp_path)
    file = load_file(tmp_path / "model.safetensors")
    ours = ours_of(FILES, name)
    load_weights(ours, file)
    kind = "dinov2" if "DINO" in name else name.lower() if name == "DeiT" else "vit"
    back = to_theirs(transformers_vit.rules(ours.config, kind), ours.state_dict())
    prefix = next(n.split("embeddings")[0] for n in file if "embeddings" in n)
    plain = {n.removeprefix(prefix): t for n, t in file.items() if not n.endswith("mask_token")}
    assert set(back) == set(plain)
    folded = ("embeddings.cls_token", "embeddings.position_embeddings") if "reg" in name else ()
    assert all(torch.equal(back[n], plain[n]) for n in plain if n not in folded)
    again = ours_of(FILES, name)
    load_weights(again, back)
    assert all(torch.equal(t, again.state_dict()[n]) for n, t in ours.state_dict().items())


def test_missing_extra_and_other_shapes_are_named(tmp_path):
    theirs_of(FILES, "ViT").save_pretrained(tmp_path)
    file = load_file(tmp_path / "model.safetensors")
    one = "vit.encoder.layer.1.attention.attention.key.weight"
    with pytest.raises(WeightsError, match=r"attention\.attention\.key\.weight"):
        load_weights(ours_of(FILES, "ViT"), {n: t for n, t in file.items() if n != one})
    with pytest.raises(WeightsError, match=r"vit\.extra") as caught:
        load_weights(ours_of(FILES, "ViT"), {**file, "vit.extra.weight": torch.ones(3)})
    assert caught.value.unexpected == ["vit.extra.weight"]
    name = "vit.encoder.layer.1.intermediate.dense.bias"
    with pytest.raises(WeightsError, match=r"blocks\.1\.mlp\.fc1\.bias"):
        load_weights(ours_of(FILES, "ViT"), {**file, name: torch.ones(3)})


def test_heads_that_see_other_features_are_explained(tmp_path):
    theirs_of(FILES, "DINOv2").save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="pool='token_mean'"):
        load_weights(ours_of(FILES, "DINOv2", pool="token"), tmp_path)
    theirs_of(FILES, "DeiT").save_pretrained(tmp_path / "deit")
    with pytest.raises(WeightsError, match="distill"):
        load_weights(ours_of(FILES, "DeiT", distilled=False), tmp_path / "deit")


def test_load_model_finds_classes_pooling_and_size(tmp_path):
    kind = transformers.Dinov2ForImageClassification
    arguments = {**SIZES, "hidden_size": 384, "num_attention_heads": 6, "patch_size": 14}
    config = kind.config_class(**{**arguments, "num_hidden_layers": 12, "image_size": 28})
    kind(config).save_pretrained(tmp_path)
    model = load_model(tmp_path, "facebook/dinov2-small")
    assert (model.num_classes, model.image_size) == (5, 28)
    assert model.config.pool == "token_mean"
    assert create_model("facebook/dinov2-small", depth=1).config.pool == "token"


@pytest.mark.parametrize("name", ["ViT", "DINOv2 with registers"])
def test_sharded_folders(tmp_path, images, name):
    """As `save_pretrained` splits large models: numbered shards and an index."""
    theirs = theirs_of(FILES, name)
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-0000*-of-*.safetensors"))) > 1
    assert not (tmp_path / "model.safetensors").exists()
    ours = ours_of(FILES, name)
    report = load_weights(ours, tmp_path)
    assert report.family == "transformers"
    assert set(report.matched) == set(ours.state_dict())
    with torch.no_grad():
        assert close(ours(images()), theirs(images()).logits)
        named = load_model(tmp_path).double()
        assert close(named(images()), theirs(images()).logits, 1e-5)
    next(tmp_path.glob("model-00002-of-*.safetensors")).unlink()
    with pytest.raises(ValueError, match="which is not there"):
        load_weights(ours_of(FILES, name), tmp_path)


@pytest.mark.parametrize("name", [*FILES, *MODELS])
def test_a_folder_says_which_model_it_is(tmp_path, images, name):
    files = FILES if name in FILES else MODELS
    theirs = theirs_of(files, name).float()
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    expected = ours_of(files, name).config
    for field in ("depth", "width", "heads", "mlp_width", "pool", "registers", "distilled"):
        assert getattr(model.config, field) == getattr(expected, field), field
    if name in FILES:
        x = images().float()
        with torch.no_grad():
            assert close(model(x), theirs(x).logits, 1e-4)
