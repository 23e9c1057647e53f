"""Files of DeiT, DeiT-III, MAE, DINO and DINOv2, laid out as their repositories save them."""

import argparse
import dataclasses

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import randomise
from tests.models.authors import cases, drawn, images_of, logits_of
from tests.reference.torchvision_stub import timm
from tests.weights.conftest import close
from vitrail import WeightsError, create_model, load_model, load_weights, save_model
from vitrail.kit.preprocess import IMAGENET_MEAN
from vitrail.models.zoo import from_config
from vitrail.weights import facebook
from vitrail.weights.rules import to_theirs

AUTHORS = cases("facebook")


@pytest.mark.parametrize("name", AUTHORS)
def test_logits_are_the_authors_own(tmp_path, name):
    """Their code's logits for a file with their names, at its size and at another one."""
    case = AUTHORS[name]
    state = {
        key: drawn(key, tuple(shape), case["seed"], {"attn.qkv.weight": 2.5})
        for key, shape in case["tensors"].items()
    }
    model = from_config("vit", case["config"]).double()
    report = load_weights(model, saved(tmp_path, {"model": state}, f"{case['family']}_x.pth"))
    assert report.family in (case["family"], "deit")  # DINO's backbone, under another wrapper
    if name == "dino":
        report = load_weights(model, saved(tmp_path, state, "dino_vitbase16_pretrain.pth"))
        assert report.family == "dino"
    for expected in (case, case.get("other")):
        if expected is not None:
            images = images_of({"seed": case["seed"], "images": expected["images"]})
            with torch.no_grad():
                assert close(model(images), logits_of(expected))
    wrong = dataclasses.replace(model.config, norm_eps=1e-5)
    model = from_config("vit", dataclasses.asdict(wrong)).double()
    load_weights(model, state, numerics="keep")
    with torch.no_grad():
        assert not close(model(images_of(case)), logits_of(case), 1e-7)


def state_of(tiny, **fields):
    """The state dict of a random model, and the model."""
    model = tiny(**fields)
    randomise(model)
    return dict(model.state_dict()), model


def renamed(state, *pairs):
    out = {}
    for name, tensor in state.items():
        for ours, theirs in pairs:
            name = name.replace(ours, theirs)
        out[name] = tensor
    return out


def saved(tmp_path, content, name="checkpoint.pth"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


HEADS = {
    "head.mlp.0.weight": (8, 24),
    "head.mlp.0.bias": (8,),
    "head.last_layer.weight_g": (16, 1),
    "head.last_layer.weight_v": (16, 8),
}


def deit(tiny):
    state, model = state_of(tiny)
    return {"model": state}, model, {}, ["model"]


def deit_trained(tiny):
    state, model = state_of(tiny, distilled=True)
    rest = {"optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=1.0)}
    return {"model": state, **rest}, model, {"distilled": True}, ["model"]


def deit3(tiny):
    fields = {"layer_scale": 1e-4, "position_on_prefix": False}
    state, model = state_of(tiny, **fields)
    names = (("ls1.gamma", "gamma_1"), ("ls2.gamma", "gamma_2"))
    return {"model": renamed(state, *names)}, model, fields, ["model"]


def mae(tiny):
    state, model = state_of(tiny, num_classes=0)
    decoder = {
        "mask_token": (1, 1, 16),
        "decoder_pos_embed": (1, 10, 16),
        "decoder_embed.weight": (16, 24),
        "decoder_blocks.0.attn.qkv.weight": (48, 16),
        "decoder_norm.bias": (16,),
        "decoder_pred.weight": (48, 16),
    }
    rest = {name: torch.randn(shape) for name, shape in decoder.items()}
    return {"model": {**state, **rest}}, model, {"num_classes": 0}, ["model"]


def mae_tuned(tiny):
    fields = {"pool": "mean", "class_token": True, "norm_after_pool": True}
    state, model = state_of(tiny, **fields)
    return {"model": state}, model, fields, ["model"]


def dino(tiny):
    state, model = state_of(tiny, num_classes=0)
    heads = {name: torch.randn(shape) for name, shape in HEADS.items()}
    teacher = {**{f"backbone.{n}": t for n, t in state.items()}, **heads}
    student = {f"module.{n}": t + 1 for n, t in teacher.items()}
    content = {"student": student, "teacher": teacher, "epoch": 99, "dino_loss": {"center": 1}}
    return content, model, {"num_classes": 0}, ["teacher", "backbone."]


def dinov2(tiny):
    fields = {"layer_scale": 1.0, "num_classes": 0}
    state, model = state_of(tiny, **fields)
    return {**state, "mask_token": torch.randn(1, 24)}, model, fields, []


def dinov2_registers(tiny):
    fields = {"layer_scale": 1.0, "num_classes": 0, "registers": 4}
    state, model = state_of(tiny, **fields)
    table = state["pos_embed"]
    state["pos_embed"] = torch.cat([table[:, :1], table[:, 5:]], dim=1)
    with torch.no_grad():
        model.pos_embed[:, 1:5] = 0
    state = renamed(state, ("reg_token", "register_tokens"))
    return {**state, "mask_token": torch.randn(1, 24)}, model, fields, []


def dinov2_giant(tiny):
    fields = {"gated_mlp": True, "activation": "silu", "layer_scale": 1e-5, "num_classes": 0}
    state, model = state_of(tiny, **fields)
    names = ((".mlp.fc1.", ".mlp.w12."), (".mlp.fc2.", ".mlp.w3."))
    chunked = renamed(state, *names, ("blocks.0.", "blocks.0.0."), ("blocks.1.", "blocks.1.1."))
    heads = {"dino_head.mlp.0.weight": torch.ones(2), "ibot_head.last_layer.bias": torch.ones(2)}
    teacher = {f"backbone.{n}": t for n, t in {**chunked, "mask_token": torch.ones(1, 24)}.items()}
    return {"teacher": {**teacher, **heads}}, model, fields, ["teacher", "backbone."]


FILES = {
    "deit": (deit, "deit", 0),
    "deit, trained": (deit_trained, "deit", 0),
    "deit3": (deit3, "deit", 0),
    "mae": (mae, "mae", 6),
    "mae, fine-tuned": (mae_tuned, "mae", 0),
    "dino": (dino, "dino", 4),
    "dinov2": (dinov2, "dinov2", 1),
    "dinov2 with registers": (dinov2_registers, "dinov2", 1),
    "dinov2 giant": (dinov2_giant, "dinov2", 3),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_as_it_is_saved(tmp_path, tiny, images, name):
    layout, family, dropped = FILES[name]
    content, expected, fields, wrappers = layout(tiny)
    model = tiny(**fields, norm_eps=1e-3, attention_scale="width")
    report = load_weights(model, saved(tmp_path, content))
    assert (report.family, report.wrappers) == (family, wrappers)
    assert len(report.dropped) == dropped
    assert report.fresh == []
    assert report.numerics["norm_eps"] == (1e-3, 1e-6)
    assert report.preprocessing.mean == IMAGENET_MEAN
    assert report.preprocessing.crop == (1.0 if name == "deit3" else 0.875)
    with torch.no_grad():
        assert close(model(images()), expected(images()))


def test_tables_are_resized_as_each_repository_does(tmp_path, tiny):
    """DINO gives F.interpolate a scale that is a little too large; the rest give it a size."""
    for layout, arguments in (
        (deit, {"size": (5, 5)}),
        (dino, {"scale_factor": (5.1 / 3, 5.1 / 3)}),
        (dinov2, {"scale_factor": (5.1 / 3, 5.1 / 3)}),
        (dinov2_registers, {"size": (5, 5), "antialias": True}),
    ):
        content, expected, fields, _ = layout(tiny)
        model = tiny(**fields, image_size=20)
        report = load_weights(model, saved(tmp_path, content))
        assert report.resized == ["pos_embed"]
        prefix = expected.config.prefix
        grid = expected.pos_embed.detach()[0, prefix:].T.reshape(1, 24, 3, 3)
        grid = F.interpolate(grid, mode="bicubic", **arguments)
        table = model.pos_embed.detach()[0, prefix:]
        torch.testing.assert_close(table, grid[0].flatten(1).T, rtol=0, atol=1e-12)


def test_dinos_backbone_alone_is_known_by_its_file(tmp_path, tiny):
    state, _ = state_of(tiny, num_classes=0)
    report = load_weights(
        tiny(num_classes=0), saved(tmp_path, state, "dino_deitsmall16_pretrain.pth")
    )
    assert report.family == "dino"
    report = load_weights(tiny(num_classes=0), saved(tmp_path, state, "some.pth"))
    assert report.family == "timm"
    assert any("normalised" in note for note in report.notes)


def test_mae_before_fine_tuning(tmp_path, tiny):
    content, _, _, _ = mae(tiny)
    path = saved(tmp_path, content)
    with pytest.raises(WeightsError, match="has no head"):
        load_weights(tiny(), path)
    tuned = tiny(pool="mean", class_token=True, norm_after_pool=True)
    with pytest.raises(WeightsError, match="fc_norm"):
        load_weights(tuned, path, fresh="head")
    report = load_weights(tuned, path, fresh=("head", "fc_norm"))
    assert {"norm.weight", "norm.bias", "mask_token", "decoder_pred.weight"} <= {*report.dropped}
    assert not tuned.head.weight.any()


def test_distilled_files_and_heads(tmp_path, tiny):
    content, expected, _, _ = deit_trained(tiny)
    path = saved(tmp_path, content)
    with pytest.raises(WeightsError, match="distilled=True"):
        load_weights(tiny(), path)
    model = tiny(distilled=True, num_classes=9)
    report = load_weights(model, path, fresh="head")
    assert report.fresh == ["head.weight", "head.bias", "head_dist.weight", "head_dist.bias"]
    assert torch.equal(model.dist_token, expected.dist_token)
    plain, _, _, _ = deit(tiny)
    with pytest.raises(WeightsError) as caught:
        load_weights(tiny(distilled=True), saved(tmp_path, plain))
    assert "dist_token" in str(caught.value)


def test_dinov2s_linear_head(tmp_path, tiny, images):
    state, expected = state_of(tiny, layer_scale=1.0, pool="token_mean")
    backbone = {f"backbone.{n}": t for n, t in state.items() if "head" not in n}
    head = {f"linear_{n}": t for n, t in state.items() if "head" in n}
    mask = {"backbone.mask_token": torch.ones(1, 24)}
    model = tiny(layer_scale=1.0, pool="token_mean")
    report = load_weights(model, saved(tmp_path, {**backbone, **head, **mask}))
    assert report.family == "dinov2"
    with torch.no_grad():
        assert close(model(images()), expected(images()))


def test_load_model_finds_what_stands_before_the_head(tmp_path):
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=4, global_pool="avg")
    model = load_model(saved(tmp_path, {"model": theirs.state_dict()}), "vit_tiny_patch16_224")
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs.eval()(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["deit3", "dinov2 giant"])
def test_rules_work_both_ways(tiny, name):
    layout, family, _ = FILES[name]
    content, expected, _, _ = layout(tiny)
    reading = facebook.reading_of(family, dict(expected.state_dict()), expected.config)
    back = to_theirs(reading.rules, expected.state_dict())
    theirs = content.get("model") or {
        n.removeprefix("backbone."): t for n, t in content["teacher"].items()
    }
    if family == "dinov2":
        theirs = {n.replace("0.0.", "0.").replace("1.1.", "1."): t for n, t in theirs.items()}
    assert set(back) == {n for n in theirs if "mask" not in n and "_head" not in n}
    assert all(torch.equal(tensor, theirs[n]) for n, tensor in back.items())


@pytest.mark.parametrize("name", FILES)
def test_missing_extra_and_other_shapes_are_named(tmp_path, tiny, name):
    layout = FILES[name][0]
    _, _, fields, _ = layout(tiny)
    for spoil, match in (
        (lambda s, n: s.pop(n), "norm1"),
        (lambda s, n: s.update({n + "x": s[n]}), "norm1.*biasx"),
        (lambda s, n: s.update({n: s[n][:3]}), r"blocks\.1\.norm1\.bias.*\[3\]"),
    ):
        content = layout(tiny)[0]
        state = content.get("model") or content.get("teacher") or content
        one = next(n for n in state if "1.norm1.bias" in n)
        spoil(state, one)
        with pytest.raises(WeightsError, match=match):
            load_weights(tiny(**fields), saved(tmp_path, content))


FOLDERS = {
    "distilled": {"distilled": True},
    "CLIP": {"pre_norm": True, "norm_eps": 1e-5, "activation": "quick_gelu"},
    "first norm with the usual eps": {"pre_norm": True},
    "SwiGLU": {"gated_mlp": True, "activation": "silu", "layer_scale": 0.1},
    "gated GELU beside registers": {"gated_mlp": True, "registers": 2},
    "SigLIP": {"pool": "map", "activation": "gelu_tanh"},
}


@pytest.mark.parametrize("case", FOLDERS)
def test_timm_opens_our_folder(tmp_path, tiny, images, case):
    _, ours = state_of(tiny, **FOLDERS[case])
    save_model(ours, tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).double().eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert close(ours(images()), theirs(images()))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"position": "learned2d"}, "position='learned2d'"),
        ({"position": "relative"}, "position='relative'"),
        ({"position_at": "layers"}, "position_at='layers'"),
        ({"pool": "token_mean"}, "pool='token_mean'"),
        ({"distilled": True, "registers": 1}, "distilled=True"),
    ],
)
def test_what_timm_cannot_express_is_named(tmp_path, tiny, images, fields, named):
    _, ours = state_of(tiny, **fields)
    save_model(ours, tmp_path)
    again = load_model(tmp_path)
    with torch.no_grad():
        assert close(again.double()(images()), ours(images()), 1e-5)
    about = (tmp_path / "config.json").read_text()
    assert "vitrail:" in about
    assert named in about


@pytest.mark.parametrize("name", ["vit_base_patch16_clip_224", "vit_base_patch16_siglip_224"])
def test_a_timm_file_keeps_the_activation_that_the_name_says(tmp_path, name):
    theirs = timm.create_model(name, num_classes=3, depth=1, embed_dim=48, num_heads=3, img_size=32)
    path = saved(tmp_path, theirs.state_dict())
    dims = {"depth": 1, "width": 48, "heads": 3, "mlp_width": 192}
    model = create_model(name, 3, 32, **dims, activation="quick_gelu")
    report = load_weights(model, path)
    assert report.family == "timm"
    assert model.config.activation == "quick_gelu"
    assert model.config.norm_eps == theirs.norm.eps
    assert any("activation" in note for note in report.notes)
