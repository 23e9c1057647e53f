"""T2T-ViT's files, laid out from the authors' description, with their wrappers."""

import pytest
import torch

from tests.models.authors import cases, drawn, fill, images_of, logits_of
from tests.weights.conftest import close
from vitrail import WeightsError, create_model, load_model, load_weights, save_model
from vitrail.models.t2t import sinusoids
from vitrail.models.zoo import from_config

CASES = cases("t2t")
SHARP = {".attn.qkv.weight": 2.5, "kqv.weight": 0.3, "kqv.bias": 0.3, ".w": 5.7}


def shapes(tokens="performer", depth=2, d=24, mlp=72, rows=17, classes=5, qkv_bias=False):
    """Names and shapes of a file, from the description of the authors' modules."""
    named = {"cls_token": (1, 1, d), "pos_embed": (1, rows, d)}

    def linear(name, out, into, bias=True):
        named[f"{name}.weight"] = (out, into)
        if bias:
            named[f"{name}.bias"] = (out,)

    def norm(name, width):
        named[f"{name}.weight"] = named[f"{name}.bias"] = (width,)

    for part, width in (("attention1", 147), ("attention2", 576)):
        name = f"tokens_to_token.{part}"
        norm(f"{name}.norm1", width)
        norm(f"{name}.norm2", 64)
        if tokens == "performer":
            named[f"{name}.w"] = (32, 64)
            linear(f"{name}.kqv", 192, width)
            linear(f"{name}.proj", 64, 64)
            linear(f"{name}.mlp.0", 64, 64)
            linear(f"{name}.mlp.2", 64, 64)
        else:
            linear(f"{name}.attn.qkv", 192, width, bias=False)
            linear(f"{name}.attn.proj", 64, 64)
            linear(f"{name}.mlp.fc1", 64, 64)
            linear(f"{name}.mlp.fc2", 64, 64)
    linear("tokens_to_token.project", d, 576)
    for i in range(depth):
        norm(f"blocks.{i}.norm1", d)
        linear(f"blocks.{i}.attn.qkv", 3 * d, d, bias=qkv_bias)
        linear(f"blocks.{i}.attn.proj", d, d)
        norm(f"blocks.{i}.norm2", d)
        linear(f"blocks.{i}.mlp.fc1", mlp, d)
        linear(f"blocks.{i}.mlp.fc2", d, mlp)
    norm("norm", d)
    linear("head", classes, d)
    return named


def authors_file(case):
    tokens = case["config"].get("tokens", "performer")
    named = shapes(tokens, qkv_bias=case["config"].get("qkv_bias", False))
    return {name: drawn(name, shape, case["seed"], SHARP) for name, shape in named.items()}


def model_of(case, **fields):
    return from_config("t2t", {**case["config"], **fields}).double()


@torch.no_grad()
@pytest.mark.parametrize("name", ["performer, as released", "transformer, as released"])
def test_a_released_file_gives_the_authors_logits(tmp_path, name):
    case = CASES[name]
    file = {f"module.{key}": tensor for key, tensor in authors_file(case).items()}
    content = {"state_dict": {"module.x": torch.ones(1)}, "state_dict_ema": file, "epoch": 300}
    torch.save(content, tmp_path / "81.5_T2T_ViT_14.pth.tar")
    model = model_of(case, attention_scale="head")  # as a model is made
    report = load_weights(model, tmp_path / "81.5_T2T_ViT_14.pth.tar")
    assert report.family == "t2t"
    assert report.wrappers == ["state_dict_ema", "module."]
    assert report.numerics == {"attention_scale": ("head", "width")}
    assert sorted(report.matched) == sorted(model.state_dict())
    assert report.resized == report.dropped == report.fresh == []
    assert report.preprocessing.mean == (0.485, 0.456, 0.406)
    assert model.config.attention_scale == "width"
    assert close(model(images_of(case)), logits_of(case))


@torch.no_grad()
def test_ones_own_training_with_their_code(tmp_path):
    case = CASES["performer, trained from scratch"]
    torch.save(authors_file(case), tmp_path / "x.pth")
    model = model_of(case)
    assert load_weights(model, tmp_path / "x.pth", numerics="keep").numerics == {}
    assert close(model(images_of(case)), logits_of(case))
    report = load_weights(model, tmp_path / "x.pth")
    assert any("attention_scale='width'" in note for note in report.notes)
    assert not close(model(images_of(case)), logits_of(case), 1e-3)


def test_a_mapping_says_nothing_about_the_scale():
    case = CASES["performer, as released"]
    model = model_of(case, attention_scale="head")
    assert load_weights(model, authors_file(case)).numerics == {}
    assert model.config.attention_scale == "head"


@pytest.mark.parametrize("name", ["t2t_vit_14", "t2t_vit_t_14"])
def test_the_full_size_has_the_names_and_shapes_of_the_file(name):
    with torch.device("meta"):
        state = create_model(name).state_dict()
    tokens = "transformer" if "_t_" in name else "performer"
    expected = shapes(tokens, 14, 384, 1152, 197, 1000)
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_table_is_computed_at_another_size(tmp_path, dtype):
    case = CASES["performer, as released"]
    file = authors_file(case) | {"pos_embed": sinusoids(17, 24).to(dtype)}
    torch.save(file, tmp_path / "x.pth")
    model = model_of(case, image_size=(64, 96))
    report = load_weights(model, tmp_path / "x.pth")
    assert report.resized == ["pos_embed"]
    assert any("pos_embed: 17 rows -> 25 rows, computed" in note for note in report.notes)
    assert torch.equal(model.pos_embed, sinusoids(25, 24).double())
    assert not any("formula" in note for note in report.notes)
    # another table than the formula's cannot be fitted: it is told, not replaced in silence
    file["pos_embed"] = torch.randn(1, 17, 24)
    torch.save(file, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match=r"pos_embed: \[1, 17, 24\] in the file"):
        load_weights(model, tmp_path / "x.pth")
    same_size = load_weights(model_of(case), tmp_path / "x.pth")
    assert any("not that of the formula" in note for note in same_size.notes)
    assert load_weights(model, tmp_path / "x.pth", fresh="pos_embed").fresh == ["pos_embed"]
    assert torch.equal(model.pos_embed, sinusoids(25, 24).double())


def test_what_does_not_fit_is_named_and_nothing_changes(tmp_path):
    case = CASES["performer, as released"]
    model = model_of(case)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def refused(change):
        file = authors_file(case)
        change(file)
        torch.save(file, tmp_path / "x.pth")
        with pytest.raises(WeightsError) as caught:
            load_weights(model, tmp_path / "x.pth")
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
        return caught.value

    features = "tokens_to_token.attention1.w"
    assert refused(lambda file: file.pop(features)).missing == [features]
    bias = {"blocks.0.attn.qkv.bias": torch.zeros(72)}
    assert refused(lambda file: file.update(bias)).unexpected == ["blocks.0.attn.qkv.bias"]
    narrow = {features: torch.zeros(16, 64)}
    assert refused(lambda file: file.update(narrow)).mismatched == [
        f"{features}: [16, 64] in the file, [32, 64] in the model"
    ]
    with pytest.raises(WeightsError, match="T2T-ViT"):
        load_weights(create_model("vit_tiny_patch16", depth=1), authors_file(case))
    with pytest.raises(WeightsError, match=r"attn\.qkv"):
        load_weights(model_of(case, tokens="transformer"), authors_file(case))
    with pytest.raises(WeightsError, match=r"5 classes.*fresh=\('head',\)"):
        load_weights(model_of(case, num_classes=7), authors_file(case))


@torch.no_grad()
def test_a_model_folder(tmp_path):
    case = CASES["transformer, as released"]
    model = model_of(case).float()
    fill(model, 5)
    save_model(model, tmp_path / "folder", labels=list("abcde"))
    again = load_model(tmp_path / "folder")
    images = images_of(case).float()
    assert again.config == model.config
    assert again.labels == list("abcde")
    assert torch.equal(again(images), model(images))
