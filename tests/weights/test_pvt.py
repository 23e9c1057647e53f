"""Files of PVT and PVT v2 as their publishers lay them out."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import randomise
from tests.models.authors import cases, drawn, images_of, logits_of
from tests.reference.torchvision_stub import timm
from tests.weights.conftest import close
from vitrail import Error, WeightsError, create_model, load_model, load_weights, save_model
from vitrail.kit.grid import resize_table
from vitrail.kit.preprocess import IMAGENET_MEAN, IMAGENET_STD
from vitrail.models.zoo import from_config
from vitrail.weights.pvt import authors_rules, transformers_rules, transformers_v2_rules
from vitrail.weights.rules import to_ours, to_theirs

SHARP = dict.fromkeys(
    ("attn.q.weight", "attn.kv.weight", *(f"pos_embed{i}" for i in range(1, 5))), 4.0
)
SMALL = {
    "depths": (1, 1, 2, 1),
    "widths": (8, 16, 20, 24),
    "heads": (1, 2, 5, 3),
    "mlp_ratios": (2, 2, 2, 2),
    "num_classes": 5,
    "image_size": 64,
}


def small(family, dtype=torch.float64, **fields):
    return from_config(family, {**SMALL, **fields}).to(dtype)


def authors_file(family, name="as published"):
    """A case of the authors' logits and its tensors under the authors' names."""
    case = cases(family)[name]
    shapes = case["tensors"].items()
    return case, {n: drawn(n, tuple(shape), case["seed"], SHARP) for n, shape in shapes}


def images(height=64, width=64):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, height, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("family", "name"), [("pvt", "PVT-Tiny"), ("pvt_v2", "PVTv2-B0")])
def test_an_authors_file_gives_the_authors_logits(tmp_path, family, name):
    case, tensors = authors_file(family)
    path = tmp_path / "weights.pth"
    torch.save({"model": {f"module.{n}": t for n, t in tensors.items()}, "epoch": 3}, path)
    fields = {key: value for key, value in case["config"].items() if key != "num_classes"}
    model = create_model(name, 5, embed_norm_eps=1e-3, **fields).double()
    report = load_weights(model, path)
    assert report.family == "pvt"
    assert report.wrappers == ["model", "module."]
    assert report.numerics == {"embed_norm_eps": (1e-3, 1e-5)}
    assert (report.preprocessing.mean, report.preprocessing.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert report.preprocessing.crop == 0.875  # 256 pixels to 224, bicubic
    assert model.preprocessing == report.preprocessing
    assert set(report.matched) == set(model.state_dict())
    with torch.no_grad():
        assert close(model(images_of(case)), logits_of(case))
        load_weights(model, path, numerics="keep")
        assert close(model(images_of(case)), logits_of(case))
        model = create_model(name, 5, embed_norm_eps=1e-3, **fields).double()
        assert load_weights(model, path, numerics="keep").numerics == {}
        assert not close(model(images_of(case)), logits_of(case), 1e-7)


# Names and shapes of PvtForImageClassification's files for the config above
# (transformers/models/pvt/modeling_pvt.py): each stage's, then the rest.
def transformers_shapes(prefix="pvt."):
    shapes, widths, kernels = {}, SMALL["widths"], (4, 2, 2, 2)

    def layer(name, *shape):
        shapes[f"{prefix}encoder.{name}.weight"] = shape
        shapes[f"{prefix}encoder.{name}.bias"] = shape[:1]

    for stage, d in enumerate(widths):
        before, reduction = (3, *widths)[stage], (8, 4, 2, 1)[stage]
        embedding = f"patch_embeddings.{stage}"
        layer(f"{embedding}.projection", d, before, kernels[stage], kernels[stage])
        layer(f"{embedding}.layer_norm", d)
        rows = (16 // 2**stage) ** 2 + (stage == 3)
        shapes[f"{prefix}encoder.{embedding}.position_embeddings"] = (1, rows, d)
        for i in range(SMALL["depths"][stage]):
            block = f"block.{stage}.{i}"
            for part in ("query", "key", "value"):
                layer(f"{block}.attention.self.{part}", d, d)
            if reduction > 1:
                name = f"{block}.attention.self.sequence_reduction"
                layer(name, d, d, reduction, reduction)
                layer(f"{block}.attention.self.layer_norm", d)
            layer(f"{block}.attention.output.dense", d, d)
            layer(f"{block}.layer_norm_1", d)
            layer(f"{block}.layer_norm_2", d)
            layer(f"{block}.mlp.dense1", 2 * d, d)
            layer(f"{block}.mlp.dense2", d, 2 * d)
    shapes[f"{prefix}encoder.patch_embeddings.3.cls_token"] = (1, 1, 24)
    layer("layer_norm", 24)
    return {**shapes, "classifier.weight": (5, 24), "classifier.bias": (5,)}


def test_transformers_files(tmp_path):
    from transformers import PvtConfig, PvtForImageClassification

    config = PvtConfig(
        image_size=64,
        depths=SMALL["depths"],
        hidden_sizes=SMALL["widths"],
        num_attention_heads=SMALL["heads"],
        mlp_ratios=SMALL["mlp_ratios"],
        num_labels=5,
    )
    theirs = PvtForImageClassification(config).double().eval()
    shapes = transformers_shapes()
    assert {n: tuple(t.shape) for n, t in theirs.state_dict().items()} == shapes
    tensors = {n: drawn(n, shape, 7, {"query.weight": 4.0}) for n, shape in shapes.items()}
    theirs.load_state_dict(tensors)
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    ours = small("pvt")
    report = load_weights(ours, path)
    assert report.family == "transformers"
    assert report.numerics == {"embed_norm_eps": (1e-5, 1e-6)}
    assert report.preprocessing.fit == "squash"
    assert set(report.matched) == set(ours.state_dict())
    with torch.no_grad():
        assert close(ours(images()), theirs(images()).logits)
    bare = {n.removeprefix("pvt."): t for n, t in tensors.items() if n.startswith("pvt.")}
    headless = small("pvt", num_classes=0)
    assert load_weights(headless, bare).family == "transformers"
    assert torch.equal(headless.cls_token, ours.cls_token)


# The same of PvtV2ForImageClassification (transformers/models/pvt_v2/modeling_pvt_v2.py).
def transformers_v2_shapes(linear=False, prefix="pvt_v2."):
    shapes, widths, kernels = {}, SMALL["widths"], (7, 3, 3, 3)

    def layer(name, *shape):
        shapes[f"{prefix}encoder.layers.{name}.weight"] = shape
        shapes[f"{prefix}encoder.layers.{name}.bias"] = shape[:1]

    for stage, d in enumerate(widths):
        before, reduction = (3, *widths)[stage], 1 if linear else (8, 4, 2, 1)[stage]
        layer(f"{stage}.patch_embedding.proj", d, before, kernels[stage], kernels[stage])
        layer(f"{stage}.patch_embedding.layer_norm", d)
        for i in range(SMALL["depths"][stage]):
            block, hidden = f"{stage}.blocks.{i}", SMALL["mlp_ratios"][stage] * d
            for part in ("query", "key", "value", "proj"):
                layer(f"{block}.attention.{part}", d, d)
            if reduction > 1 or linear:
                layer(f"{block}.attention.spatial_reduction", d, d, reduction, reduction)
                layer(f"{block}.attention.layer_norm", d)
            layer(f"{block}.layer_norm_1", d)
            layer(f"{block}.layer_norm_2", d)
            layer(f"{block}.mlp.dense1", hidden, d)
            layer(f"{block}.mlp.dwconv.dwconv", hidden, 1, 3, 3)
            layer(f"{block}.mlp.dense2", d, hidden)
        layer(f"{stage}.layer_norm", d)
    return {**shapes, "classifier.weight": (5, widths[-1]), "classifier.bias": (5,)}


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (96, 72)])
def test_transformers_files_of_v2(tmp_path, linear, size):
    from transformers import PvtV2Config, PvtV2ForImageClassification

    config = PvtV2Config(
        image_size=64,
        depths=SMALL["depths"],
        hidden_sizes=SMALL["widths"],
        num_attention_heads=SMALL["heads"],
        mlp_ratios=SMALL["mlp_ratios"],
        linear_attention=linear,
        num_labels=5,
    )
    theirs = PvtV2ForImageClassification(config).double().eval()
    shapes = transformers_v2_shapes(linear)
    assert {n: tuple(t.shape) for n, t in theirs.state_dict().items()} == shapes
    tensors = {n: drawn(n, shape, 7, {"query.weight": 4.0}) for n, shape in shapes.items()}
    theirs.load_state_dict(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    ours = small("pvt_v2", linear=linear)
    report = load_weights(ours, tmp_path / "model.safetensors")
    assert report.family == "transformers"
    assert report.numerics == {"embed_norm_eps": (1e-5, 1e-6)}
    assert set(report.matched) == set(ours.state_dict())
    with torch.no_grad():
        assert close(ours(images(*size)), theirs(images(*size)).logits)
        kept = small("pvt_v2", linear=linear, embed_norm_eps=1e-3)
        load_weights(kept, tensors, numerics="keep")
        assert not close(kept(images(*size)), theirs(images(*size)).logits, 1e-7)
        other = {"key": "value", "value": "key"}
        swapped = {
            ".".join(other.get(part, part) for part in name.split(".")): tensor
            for name, tensor in tensors.items()
        }
        wrong = small("pvt_v2", linear=linear)
        load_weights(wrong, swapped)
        assert not close(wrong(images(*size)), theirs(images(*size)).logits, 1e-7)
    bare = {n.removeprefix("pvt_v2."): t for n, t in tensors.items() if n.startswith("pvt_v2.")}
    assert load_weights(small("pvt_v2", num_classes=0, linear=linear), bare).fresh == []


@pytest.mark.parametrize(
    ("family", "rules"),
    [
        ("pvt", transformers_rules),
        ("pvt_v2", authors_rules),
        ("pvt_v2", transformers_v2_rules),
    ],
)
@pytest.mark.parametrize("fields", [{}, {"qkv_bias": False, "num_classes": 0}])
def test_rules_go_both_ways(family, rules, fields):
    model = small(family, **fields)
    randomise(model)
    made = rules(model.config)
    theirs = to_theirs(made, model.state_dict())
    if rules is transformers_rules and not fields:
        assert {n: tuple(t.shape) for n, t in theirs.items()} == transformers_shapes()
    back = to_ours(made, theirs)
    assert not back.unknown + back.lacking + back.misshapen
    assert set(back.tensors) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        assert torch.equal(back.tensors[name], tensor), name


@pytest.mark.parametrize("linear", [False, True])
def test_timms_state_dicts_and_folders(tmp_path, linear):
    ours = small("pvt_v2", torch.float32, linear=linear, reductions=(4, 4, 2, 1))
    randomise(ours)
    labels = list("abcde")
    save_model(ours, tmp_path, labels)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "pvt_v2_b2"
    assert config["model_args"].get("linear", False) == linear
    assert config["vitrail"]["not_in_timm"] == []
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert theirs.pretrained_cfg["label_names"] == labels
    x = images(64, 90)
    with torch.no_grad():
        assert close(load_model(tmp_path).double()(x), ours.double()(x), 1e-12)
        assert close(theirs.double()(x), ours(x))
    other = small("pvt_v2", linear=linear, reductions=(4, 4, 2, 1), embed_norm_eps=1e-3)
    report = load_weights(other, theirs.state_dict())  # a mapping says nothing about numerics
    assert (report.family, report.numerics) == ("timm", {})
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    report = load_weights(other, tmp_path / "timm.safetensors")
    assert report.numerics == {"embed_norm_eps": (1e-3, 1e-5)}
    with torch.no_grad():
        assert close(other(x), theirs(x))


def test_what_timm_cannot_express_is_named(tmp_path):
    save_model(small("pvt_v2", activation="gelu_tanh"), tmp_path / "v2")
    config = json.loads((tmp_path / "v2" / "config.json").read_text())
    assert config["architecture"].startswith("vitrail:pvt_v2_")
    assert config["vitrail"]["not_in_timm"] == ["activation='gelu_tanh'"]
    save_model(small("pvt"), tmp_path / "v1")
    config = json.loads((tmp_path / "v1" / "config.json").read_text())
    assert config["architecture"] == "vitrail:pvt"
    for name in ("pvt_v2_b0", "pvt_v2_b5", "pvt_v2_b2_li"):
        with torch.device("meta"):
            model = create_model(name)
        from vitrail.weights.pvt import architecture

        assert architecture(model.config) == (name, {}, [])


def test_tables_are_resized_as_the_authors_do():
    _, tensors = authors_file("pvt")
    model = small("pvt", depths=(1, 2, 1, 1), mlp_ratios=(3, 2, 2, 2), image_size=(96, 64))
    report = load_weights(model, tensors)
    assert report.resized == [f"pos_embed{i}" for i in range(1, 5)]
    assert any("pos_embed4: 2x2 -> 3x2, bilinear" in note for note in report.notes)
    expected = resize_table(tensors["pos_embed4"], (2, 2), (3, 2), "bilinear", 1)
    torch.testing.assert_close(model.pos_embed4, expected, rtol=0, atol=0)
    # ... so that a picture of that size gives what the authors' code gives by resizing on the way
    same = small("pvt", depths=(1, 2, 1, 1), mlp_ratios=(3, 2, 2, 2))
    load_weights(same, tensors)
    with torch.no_grad():
        assert close(model(images(96, 64)), same(images(96, 64)), 1e-12)


def test_a_square_table_with_as_many_rows_is_not_taken_as_it_lies(tmp_path):
    """A file of 64x64 pixels into a model of 32x128: 256, 64, 16 and 4 places in both."""
    _, tensors = authors_file("pvt")
    torch.save(tensors, tmp_path / "weights.pth")
    fields = {"depths": (1, 2, 1, 1), "mlp_ratios": (3, 2, 2, 2)}
    wide, square = small("pvt", image_size=(32, 128), **fields), small("pvt", **fields)
    report = load_weights(wide, tmp_path / "weights.pth")
    assert any("pos_embed4: 2x2 -> 1x4, bilinear" in note for note in report.notes)
    load_weights(square, tmp_path / "weights.pth")
    x = images(32, 128)
    with torch.no_grad():
        assert close(wide(x), square(x), 1e-12)
        again = small("pvt", image_size=(32, 128), **fields)
        load_weights(again, wide.state_dict())  # a mapping of ours: laid as it is
        assert close(again(x), wide(x), 1e-12)
        save_model(wide, tmp_path / "wide")
        assert close(load_model(tmp_path / "wide").double()(x), wide(x), 1e-5)


def test_misfits_are_refused_by_name():
    for family in ("pvt", "pvt_v2"):
        case, tensors = authors_file(family)
        model = from_config(family, case["config"]).double()
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        ours = {"pvt": "block2.1.attn.kv.bias", "pvt_v2": "stages.1.blocks.1.attn.kv.bias"}[family]
        for change, side, name in [
            (lambda t: t.pop("block2.1.attn.kv.bias"), "missing", ours),
            (lambda t: t.update({"block9.0.x": torch.ones(1)}), "unexpected", "block9.0.x"),
            (lambda t: t.update({"block2.1.attn.kv.bias": torch.ones(3)}), "mismatched", ours),
        ]:
            changed = dict(tensors)
            change(changed)
            with pytest.raises(WeightsError) as caught:
                load_weights(model, changed)
            assert any(entry.startswith(name) for entry in getattr(caught.value, side))
        with pytest.raises(WeightsError, match="a head of 5 classes and the model one of 9"):
            load_weights(from_config(family, {**case["config"], "num_classes": 9}), tensors)
        assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    half = {n: drawn(n, s, 7, {}) for n, s in transformers_shapes().items() if "key" not in n}
    with pytest.raises(WeightsError, match=r"block\.0\.0\.attention\.self\.key\.weight"):
        load_weights(small("pvt"), half)


def test_a_file_of_another_family_says_which():
    _, v1 = authors_file("pvt")
    with pytest.raises(WeightsError, match="the weights of PVT, which do not go into this model"):
        load_weights(create_model("Ti/16", depth=1), v1)
    with pytest.raises(WeightsError, match="transformers' PVT"):
        load_weights(small("pvt_v2"), {n: torch.ones(s) for n, s in transformers_shapes().items()})
    with pytest.raises(Error, match="does not fit the model"):
        load_weights(small("pvt_v2"), v1)
