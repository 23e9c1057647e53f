"""timm's and torchvision's state dicts of the ResNets, and our folders opened by timm."""

import json

import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import randomise
from tests.models.resnets import SMALL, pictures, random_model, small, timm_twin
from tests.reference.torchvision_stub import timm
from tests.weights.conftest import close
from vitrail import WeightsError, load_model, load_weights, save_model
from vitrail.models.zoo import resolve
from vitrail.weights.folder import TIMM

KINDS = ("resnet", "bit", "hybrid", "stem")


@pytest.mark.parametrize("kind", KINDS)
def test_timms_state_dicts(kind):
    ours = small(kind)
    theirs = timm_twin(ours.config)
    randomise(theirs)
    report = load_weights(ours, theirs.state_dict())
    assert report.family == "timm"
    assert report.resized == report.fresh == report.dropped == []
    with torch.no_grad():
        assert close(ours(pictures()), theirs(pictures()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_timm_file_has_timms_numerics(tmp_path, kind):
    theirs = random_model(kind)
    wrong = {
        "resnet": {"norm_eps": 1e-3, "activation": "silu"},
        "bit": {"standardize_eps": 1e-5, "standardize_eps_on": "deviation"},
        "hybrid": {"group_norm_eps": 1e-6, "standardize_eps": 1e-5, "norm_eps": 1e-5},
        "stem": {"group_norm_eps": 1e-6, "activation": "gelu_tanh"},
    }[kind]
    torch.save(theirs.state_dict(), tmp_path / "x.pth")
    ours = small(kind, **wrong)
    report = load_weights(ours, tmp_path / "x.pth")
    assert set(report.numerics) == set(wrong)
    assert ours.config == theirs.config
    assert torch.equal(ours(pictures()), theirs(pictures()))
    ours = small(kind, **wrong)
    assert load_weights(ours, tmp_path / "x.pth", numerics="keep").numerics == {}
    assert not close(ours(pictures()), theirs(pictures()), 1e-7)


def test_old_torchvision_files_lack_the_counters(tmp_path):
    """And nothing else may be lacking."""
    theirs, ours = random_model("resnet"), small("resnet")
    state = {n: t for n, t in theirs.state_dict().items() if "num_batches" not in n}
    save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / "resnet.safetensors")
    report = load_weights(ours, tmp_path / "resnet.safetensors")
    assert torch.equal(ours(pictures()), theirs(pictures()))
    assert sorted(report.matched) == sorted(state)
    del state["layer2.1.bn2.running_var"]
    with pytest.raises(WeightsError) as caught:
        load_weights(small("resnet"), state)
    assert caught.value.missing == ["layer2.1.bn2.running_var"]


@pytest.mark.parametrize(("kind", "head"), [("resnet", "fc"), ("bit", "head.fc")])
def test_heads(kind, head):
    state = random_model(kind).state_dict()
    names = [f"{head}.weight", f"{head}.bias"]
    ours = small(kind, num_classes=9)
    with pytest.raises(WeightsError, match=r"7 classes.*9.*fresh=\('head',\)"):
        load_weights(ours, state)
    assert load_weights(ours, state, fresh=("head",)).fresh == names
    assert not ours.get_parameter(names[0]).any()
    assert load_weights(small(kind, num_classes=0), state).dropped == names
    headless = {n: t for n, t in state.items() if n not in names}
    with pytest.raises(WeightsError, match=r"has no head.*fresh=\('head',\)"):
        load_weights(small(kind), headless)


def test_a_resnets_file_for_another_model_says_whose_it_is():
    with pytest.raises(WeightsError, match="holds the weights of a ResNet"):
        load_weights(small("bit"), random_model("resnet").state_dict())
    with pytest.raises(WeightsError, match="network of stages"):
        load_weights(small("resnet"), random_model("bit").state_dict())


def test_a_bare_file_and_a_name_are_a_model(tmp_path):
    torch.save(random_model("resnet").state_dict(), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="does not fit"):
        load_model(tmp_path / "x.pth", "resnet50")


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_opened_again(tmp_path, kind):
    model = random_model(kind, image_size=(32, 48)).float()
    labels = list("abcdefg")
    again = load_model(save_model(model, tmp_path, labels))
    assert again.config == model.config
    assert (again.labels, again.preprocessing) == (labels, model.preprocessing)
    images = pictures(32, 48).float()
    assert torch.equal(again(images), model(images))


FOLDERS = {
    "resnet": ("resnet", {"depths": (1, 2, 1, 1), "stem_width": 64}),
    "resnet, silu": ("resnet", {"activation": "silu", "num_classes": 3}),
    "bit": (
        "bit",
        {"depths": (3, 4, 6, 3), "widths": (128, 128, 128, 256), "stem_width": 32},
    ),
    "stem": ("stem", {"patch_size": 8, "image_size": (32, 64)}),
    "stem, no head": ("stem", {"patch_size": 8, "num_classes": 0}),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_timm_opens_our_folder(tmp_path, case):
    kind, fields = FOLDERS[case]
    ours = random_model(kind, **{**SMALL[kind], **fields})
    save_model(ours, tmp_path)
    about = json.loads((tmp_path / "config.json").read_text())
    assert not about["vitrail"]["not_in_timm"]
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).double().eval()
    # create_model builds in float32: put the very same float64 values in
    theirs.load_state_dict(ours.state_dict())
    images = pictures(*ours.preprocessing.size)
    with torch.no_grad():
        assert close(ours(images), theirs(images))
    pictures_of = timm.data.resolve_model_data_config(theirs)
    assert pictures_of["crop_mode"] == "center"
    if ours.num_classes:
        other = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=2).eval()
        assert other(torch.zeros(1, 3, *ours.preprocessing.size)).shape == (1, 2)
    grey = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, in_chans=1).eval()
    assert grey(torch.zeros(1, 1, *ours.preprocessing.size)).shape[0] == 1


@pytest.mark.parametrize(
    ("name", "architecture", "arguments"),
    [
        ("resnet101", "resnet101", {}),
        ("resnetv2_152x4_bit", "resnetv2_152x4_bit", {}),
        (
            "resnetv2_50x2_bit",
            "resnetv2_50x1_bit",
            {"channels": [512, 1024, 2048, 4096], "stem_chs": 128},
        ),
        ("vit_base_r50_s16_384", "vit_base_r50_s16_384", {"img_size": 384}),
        ("vit_base_r26_s32_224", "vit_base_r26_s32_224", {"img_size": 224}),
        ("vit_large_r50_s32_224", "vit_large_r50_s32_224", {"img_size": 224}),
    ],
)
def test_architectures_are_timms_own(name, architecture, arguments):
    with torch.device("meta"):
        config = load_meta(name).config
    assert TIMM[type(config)](config) == (architecture, arguments, [])
    assert architecture in timm.list_models()


def load_meta(name):
    from vitrail.models.zoo import create_model

    assert resolve(name)[0] == name
    return create_model(name)


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        ("bit", {"depths": (1, 2)}, "depths"),
        ("bit", {"depths": (3, 4, 6, 3), "widths": (128,) * 4, "group_norm_eps": 1e-6}, "group"),
        ("resnet", {"norm_eps": 1e-3}, "norm_eps"),
        ("resnet", {"stem_width": 32}, "stem_width"),
        ("hybrid", {"depths": (3, 4, 6, 3), "widths": (128,) * 4}, "widths"),
        ("stem", {"patch_size": 8, "standardize_eps_on": "deviation"}, "standardize_eps_on"),
    ],
)
def test_what_timm_cannot_express_is_named(tmp_path, kind, fields, named):
    model = small(kind, **{**SMALL[kind], **fields})
    save_model(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"].startswith("vitrail:")
    assert any(entry.startswith(named) for entry in config["vitrail"]["not_in_timm"])
