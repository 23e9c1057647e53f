"""CvT's files: the authors' `.pth`, from their own description, and transformers' folders."""

import pytest
import torch
from safetensors.torch import save_file

from tests.models.authors import cases, drawn, fill, images_of, logits_of
from tests.weights.conftest import close
from vitrail import Error, WeightsError, create_model, load_model, load_weights, save_model
from vitrail.kit.grid import resize_table
from vitrail.models.zoo import from_config
from vitrail.weights.cvt import TRANSFORMERS
from vitrail.weights.rules import to_ours, to_theirs

CASE = cases("cvt")["as published"]
SHARP = {"proj_q.weight": 4.0, "proj_k.weight": 4.0}


def shapes(depths=(1, 2, 3), widths=(8, 12, 24), classes=5):
    """Names and shapes of a file, from the description of the authors' modules."""
    named, channels = {}, 3
    for s, (depth, d) in enumerate(zip(depths, widths, strict=True)):
        kernel = 3 if s else 7
        named[f"stage{s}.patch_embed.proj.weight"] = (d, channels, kernel, kernel)
        for name in ("proj.bias", "norm.weight", "norm.bias"):
            named[f"stage{s}.patch_embed.{name}"] = (d,)
        if s == len(depths) - 1:
            named[f"stage{s}.cls_token"] = (1, 1, d)
        for j in range(depth):
            block = f"stage{s}.blocks.{j}"
            for one in "qkv":
                named[f"{block}.attn.conv_proj_{one}.conv.weight"] = (d, 1, 3, 3)
                for name in ("weight", "bias", "running_mean", "running_var"):
                    named[f"{block}.attn.conv_proj_{one}.bn.{name}"] = (d,)
                named[f"{block}.attn.conv_proj_{one}.bn.num_batches_tracked"] = ()
            for linear, (out, into) in {
                "attn.proj_q": (d, d),
                "attn.proj_k": (d, d),
                "attn.proj_v": (d, d),
                "attn.proj": (d, d),
                "mlp.fc1": (4 * d, d),
                "mlp.fc2": (d, 4 * d),
            }.items():
                named[f"{block}.{linear}.weight"] = (out, into)
                named[f"{block}.{linear}.bias"] = (out,)
            for norm in ("norm1", "norm2"):
                named[f"{block}.{norm}.weight"] = named[f"{block}.{norm}.bias"] = (d,)
        channels = d
    named |= {"norm.weight": (widths[-1],), "norm.bias": (widths[-1],)}
    return named | {"head.weight": (classes, widths[-1]), "head.bias": (classes,)}


def authors_file():
    file = {}
    for name, shape in shapes().items():
        if name.endswith("num_batches_tracked"):
            file[name] = torch.tensor(1234)
        else:
            file[name] = drawn(name, shape, CASE["seed"], SHARP)
    return file


@pytest.fixture
def make():
    def model(**fields):
        return from_config("cvt", {**CASE["config"], **fields}).double()

    return model


@torch.no_grad()
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_authors_file_gives_the_authors_logits(tmp_path, make, wrapped):
    file = authors_file()
    torch.save({"state_dict": file, "epoch": 3} if wrapped else file, tmp_path / "CvT-13.pth")
    model = make(activation="gelu", attention_scale="head", norm_eps=1e-6)
    report = load_weights(model, tmp_path / "CvT-13.pth")
    assert report.family == "cvt"
    assert report.matched == list(model.state_dict())
    assert report.dropped == report.resized == report.fresh == []
    assert report.wrappers == (["state_dict"] if wrapped else [])
    assert report.numerics == {
        "activation": ("gelu", "quick_gelu"),
        "norm_eps": (1e-6, 1e-5),
        "attention_scale": ("head", "width"),
    }
    assert report.preprocessing.mean == (0.485, 0.456, 0.406)
    assert report.preprocessing.std == (0.229, 0.224, 0.225)
    assert model.config.activation == "quick_gelu"
    assert close(model(images_of(CASE)), logits_of(CASE))


@torch.no_grad()
def test_numerics_may_be_kept(tmp_path, make):
    torch.save(authors_file(), tmp_path / "x.pth")
    model = make(activation="gelu")
    assert load_weights(model, tmp_path / "x.pth", numerics="keep").numerics == {}
    assert not close(model(images_of(CASE)), logits_of(CASE), 1e-5)
    # a mapping may be a state dict of ours, and does not change the model's numerics either
    assert load_weights(model, authors_file()).numerics == {}


def test_the_full_size_has_the_names_and_shapes_of_the_file():
    with torch.device("meta"):
        state = create_model("cvt_21_384").state_dict()
    expected = shapes((1, 4, 16), (64, 192, 384), 1000)
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == expected


@pytest.fixture
def theirs():
    from transformers import CvtConfig, CvtForImageClassification

    config = CvtConfig(embed_dim=[8, 12, 24], num_heads=[1, 3, 4], depth=[1, 2, 3], num_labels=5)
    model = CvtForImageClassification(config).double().eval()
    fill(model, 7)
    return model


@torch.no_grad()
def test_a_folder_of_transformers_gives_its_logits(tmp_path, make, theirs):
    theirs.save_pretrained(tmp_path)
    model, images = make(), images_of(CASE)
    report = load_weights(model, tmp_path)
    assert report.family == "transformers"
    assert report.numerics == {"activation": ("quick_gelu", "gelu")}
    assert report.matched == list(model.state_dict())
    assert close(model(images), theirs(images).logits)


@torch.no_grad()
def test_a_bare_model_of_transformers(tmp_path, make, theirs):
    save_file(theirs.cvt.state_dict(), tmp_path / "bare.safetensors")
    model = make(num_classes=0)
    with pytest.raises(WeightsError, match=r"norm\.weight"):
        load_weights(model, tmp_path / "bare.safetensors")
    report = load_weights(model, tmp_path / "bare.safetensors", fresh=("norm",))
    assert report.fresh == ["norm.weight", "norm.bias"]
    images = images_of(CASE)
    assert close(model.feature_maps(images)[-1], theirs.cvt(images).last_hidden_state)


def test_rules_there_and_back(make, theirs):
    model = make()
    fill(model, 3)
    there = to_theirs(TRANSFORMERS, model.state_dict())
    assert {name: t.shape for name, t in there.items()} == {
        name: t.shape for name, t in theirs.state_dict().items()
    }
    back = to_ours(TRANSFORMERS, there)
    assert [] == back.unknown == back.lacking == back.misshapen
    assert all(torch.equal(back.tensors[n], t) for n, t in model.state_dict().items())


def test_what_does_not_fit_is_named_and_nothing_changes(tmp_path, make):
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def refused(change):
        file = authors_file()
        change(file)
        torch.save(file, tmp_path / "x.pth")
        with pytest.raises(WeightsError) as caught:
            load_weights(model, tmp_path / "x.pth")
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
        return caught.value

    mean = "stage1.blocks.1.attn.conv_proj_k.bn.running_mean"
    assert refused(lambda file: file.pop(mean)).missing == [mean]
    extra = {"stage2.pos_embed": torch.zeros(1, 17, 24)}
    assert refused(lambda file: file.update(extra)).unexpected == ["stage2.pos_embed"]
    narrow = {"stage2.blocks.0.mlp.fc1.weight": torch.zeros(48, 24)}
    assert "[48, 24] in the file" in refused(lambda file: file.update(narrow)).mismatched[0]
    spoilt = {mean: torch.full((12,), float("nan"))}
    assert refused(lambda file: file.update(spoilt)).mismatched == [mean]
    assert "stage0" in str(refused(lambda file: file.pop("stage0.patch_embed.norm.bias")))


def test_heads_and_other_models(tmp_path, make):
    torch.save(authors_file(), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"5 classes.*fresh=\('head',\)"):
        load_weights(make(num_classes=7), tmp_path / "x.pth")
    model = make(num_classes=7)
    assert load_weights(model, tmp_path / "x.pth", fresh="head").fresh == [
        "head.weight",
        "head.bias",
    ]
    assert not model.head.weight.any()
    assert load_weights(make(num_classes=0), tmp_path / "x.pth").dropped == [
        "head.weight",
        "head.bias",
    ]
    with pytest.raises(WeightsError, match="CvT"):
        load_weights(create_model("vit_tiny_patch16", depth=1), tmp_path / "x.pth")
    with pytest.raises(Error, match="give its name"):
        load_model(tmp_path / "x.pth")


@torch.no_grad()
def test_a_model_folder(tmp_path, make):
    model = make(position="every", kv_strides=(2, 1, (2, 1, 2))).float()
    fill(model, 5)
    save_model(model, tmp_path / "folder", labels=list("abcde"))
    again = load_model(tmp_path / "folder")
    images = images_of(CASE).float()
    assert again.config == model.config
    assert torch.equal(again(images), model(images))
    # at another size the tables are resized, and the report says so
    larger = make(position="every", kv_strides=(2, 1, (2, 1, 2)), image_size=(64, 96))
    report = load_weights(larger, tmp_path / "folder")
    assert report.resized == ["stage0.pos_embed", "stage1.pos_embed", "stage2.pos_embed"]
    assert any("stage2.pos_embed: 4x4 -> 4x6, bilinear_corners" in note for note in report.notes)
    own = model.state_dict()["stage2.pos_embed"]
    resized = resize_table(own, (4, 4), (4, 6), "bilinear_corners", 1)
    torch.testing.assert_close(larger.state_dict()["stage2.pos_embed"].float(), resized)
    with pytest.raises(Error, match="family"):
        load_weights(create_model("vit_tiny_patch16", depth=1), tmp_path / "folder")
