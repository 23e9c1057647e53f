"""BiT's and the hybrids' `.npz`: laid out by the publisher, read by us, computed by both."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import randomise
from tests.weights.conftest import close
from tests.weights.publisher import Shape
from tests.weights.publisher_resnets import (
    bit_arrays,
    bit_forward,
    hybrid_arrays,
    hybrid_forward,
)
from vitrail import WeightsError, load_model, load_weights
from vitrail.models.zoo import from_config
from vitrail.weights.google_resnets import write_npz

REFERENCE = Path(__file__).parents[1] / "data_reference" / "google_resnets.json"
SHAPE = Shape(patch=1, grid=4)
BIT = {"depths": (1, 2), "widths": (128, 256), "stem_width": 32, "num_classes": 5}
VIT = {"depth": 2, "width": 24, "heads": 3, "mlp_width": 40, "num_classes": 5}
HYBRID = {**VIT, "depths": (1, 2), "widths": (128, 256), "stem_width": 32, "image_size": 32}


def bit(**fields):
    return from_config("bit", {**BIT, "image_size": 32, **fields}).double()


def hybrid(**fields):
    return from_config("hybrid", {**HYBRID, **fields}).double()


def pictures(height=32, width=None):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, height, width or height, generator=generator, dtype=torch.float64)


def jax(images):
    return images.permute(0, 2, 3, 1).numpy()


def write(tmp_path, file, prefix=""):
    path = tmp_path / "weights.npz"
    np.savez(path, **{prefix + name: array for name, array in file.items()})
    return path


@pytest.mark.parametrize("size", [(32, 32), (33, 50)])
def test_bit_computes_what_bit_pytorch_computes(tmp_path, size):
    file, model, x = bit_arrays(), bit(), pictures(*size)
    report = load_weights(model, write(tmp_path, file))
    assert close(model(x), bit_forward(file, jax(x)))
    assert report.family == "google"
    assert report.numerics == {"standardize_eps": (1e-8, 1e-10)}
    assert set(report.matched) == set(model.state_dict())
    assert (report.preprocessing.fit, report.preprocessing.mean) == ("squash", (0.5, 0.5, 0.5))


@pytest.mark.parametrize("size", [(32, 32), (48, 31)])
def test_hybrids_compute_what_vit_jax_computes(tmp_path, size):
    rows, columns = -(-size[0] // 8), -(-size[1] // 8)
    file, model, x = hybrid_arrays(shape=SHAPE), hybrid(image_size=size), pictures(*size)
    report = load_weights(model, write(tmp_path, file))
    same = (rows, columns) == (4, 4)
    assert close(model(x), hybrid_forward(file, jax(x), SHAPE), 1e-9 if same else 1e-6)
    assert report.numerics == {
        "activation": ("gelu", "gelu_tanh"),
        "position_resize": ("bicubic_antialias", "bilinear_corners"),
        "standardize_eps": (1e-8, 1e-5),
        "standardize_eps_on": ("variance", "deviation"),
        "group_norm_eps": (1e-5, 1e-6),
    }
    assert report.resized == ([] if same else ["pos_embed"])
    assert {*report.matched, *report.resized} == set(model.state_dict())


def test_a_stem_alone_before_patches_of_several_positions(tmp_path):
    shape = Shape(patch=2, grid=3)
    file = hybrid_arrays((), 32, shape)
    fields = {"depths": (), "widths": (), "patch_size": 2, "image_size": 24}
    model = hybrid(**fields)
    report = load_weights(model, write(tmp_path, file, "opt/target/"))
    x = pictures(24)
    assert close(model(x), hybrid_forward(file, jax(x), shape))
    assert report.wrappers == ["opt/target/"]


@pytest.mark.parametrize("name", ["bit_pytorch", "vit_jax"])
def test_the_authors_own_code_gives_these_logits(tmp_path, name):
    """Their code ran once on these very arrays: see ``made`` in the file."""
    reference = json.loads(REFERENCE.read_text())[name]
    if name == "bit_pytorch":
        widths = (256, 512, 1024, 2048)
        file = bit_arrays((1, 1, 1, 1), widths, stem=64)
        model = bit(depths=(1, 1, 1, 1), widths=widths, stem_width=64)
    else:
        file, model = hybrid_arrays(shape=SHAPE), hybrid()
    load_weights(model, write(tmp_path, file))
    x = torch.tensor(np.random.default_rng(7).standard_normal((2, 32, 32, 3))).permute(0, 3, 1, 2)
    assert close(model(x), np.array(reference["logits"]))


def twin(model):
    """timm's model for one of ours, in float64."""
    from tests.models.resnets import timm_twin

    return timm_twin(model.config)


@pytest.mark.parametrize("family", ["bit", "hybrid"])
def test_keep_gives_timms_logits_for_googles_files(tmp_path, family):
    file = bit_arrays() if family == "bit" else hybrid_arrays(shape=SHAPE)
    model = bit() if family == "bit" else hybrid()
    path = write(tmp_path, file)
    theirs = twin(model)
    theirs.load_pretrained(str(path))
    report = load_weights(model, path, numerics="keep")
    assert report.numerics == {}
    with torch.no_grad():
        assert close(model(pictures()), theirs(pictures()))
        load_weights(model, path)
        # tiny filters: another eps is another model
        assert not close(model(pictures()), theirs(pictures()), 1e-5)


WRONG = {
    "eps of the weights": {"standardize_eps": 1e-5, "standardize_eps_on": "variance"},
    "eps on the variance, of the JAX size": {"standardize_eps": 1e-8},
    "eps of the norms": {"group_norm_eps": 1e-3},
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("family", ["bit", "hybrid"])
def test_wrong_numerics_are_found(tmp_path, family, wrong):
    file = bit_arrays() if family == "bit" else hybrid_arrays(shape=SHAPE)
    expected = (
        bit_forward(file, jax(pictures()))
        if family == "bit"
        else hybrid_forward(file, jax(pictures()), SHAPE)
    )
    right = {"activation": "gelu_tanh", "position_resize": "bilinear_corners"}
    fields = WRONG[wrong] if family == "bit" else {**right, **WRONG[wrong]}
    model = (bit if family == "bit" else hybrid)(**fields)
    load_weights(model, write(tmp_path, file), numerics="keep")
    assert not close(model(pictures()), expected, 1e-7)


def test_numbered_scopes_and_zero_heads(tmp_path):
    file = bit_arrays()
    file["resnet/head/conv2d/kernel"] *= 0
    numbered = {
        name.replace("/a/standardized_conv2d/", "/a/standardized_conv2d_2/").replace(
            "/b/group_norm/", "/b/group_norm_1/"
        ): array
        for name, array in file.items()
    }
    assert set(numbered) != set(file)
    model = bit()
    report = load_weights(model, write(tmp_path, numbered))
    assert close(model(pictures()), bit_forward(file, jax(pictures())))
    assert any("head is all zeros" in note for note in report.notes)


def test_missing_extra_and_other_shapes_are_named(tmp_path):
    file = bit_arrays()
    del file["resnet/block2/unit02/b/group_norm/beta"]
    with pytest.raises(WeightsError) as caught:
        load_weights(bit(), write(tmp_path, file))
    assert caught.value.missing == ["stages.1.blocks.1.norm2.bias"]
    file = bit_arrays() | {"resnet/block2/unit03/a/group_norm/beta": np.ones(256, np.float32)}
    with pytest.raises(WeightsError) as caught:
        load_weights(bit(), write(tmp_path, file))
    assert caught.value.unexpected == ["resnet/block2/unit03/a/group_norm/beta"]
    with pytest.raises(WeightsError, match=r"stages\.0\.blocks\.0\.conv1\.weight") as caught:
        load_weights(bit(widths=(256, 256)), write(tmp_path, bit_arrays()))
    assert "[32, 32, 1, 1] in the file, [64, 32, 1, 1] in the model" in str(caught.value.mismatched)
    file = hybrid_arrays(shape=SHAPE)
    del file["block1/unit1/gn_proj/scale"]
    file["block2/unit2/gn3/bias"] = np.ones((2, 256), np.float32)
    with pytest.raises(WeightsError) as caught:
        load_weights(hybrid(), write(tmp_path, file))
    root = "patch_embed.backbone.stages"
    assert caught.value.missing == [f"{root}.0.blocks.0.downsample.norm.weight"]
    assert caught.value.mismatched[0].startswith(f"{root}.1.blocks.1.norm3.bias: [2, 256]")


def test_heads_of_another_size(tmp_path):
    path = write(tmp_path, bit_arrays())
    with pytest.raises(WeightsError, match=r"5 classes.*7.*fresh=\('head',\)"):
        load_weights(bit(num_classes=7), path)
    model = bit(num_classes=7)
    randomise(model)
    report = load_weights(model, path, fresh=("head",))
    assert report.fresh == ["head.fc.weight", "head.fc.bias"]
    assert not model.head.fc.weight.any()
    assert load_weights(bit(num_classes=0), path).dropped == [
        "resnet/head/conv2d/kernel",
        "resnet/head/conv2d/bias",
    ]


def test_a_file_for_another_family_says_whose_it_is(tmp_path):
    plain = from_config("vit", {**VIT, "patch_size": 4, "image_size": 12})
    with pytest.raises(WeightsError, match="hybrid of ResNet and ViT"):
        load_weights(plain, write(tmp_path, hybrid_arrays(shape=SHAPE)))
    with pytest.raises(WeightsError, match="BiT"):
        load_weights(plain, write(tmp_path, bit_arrays()))
    with pytest.raises(WeightsError):
        load_weights(hybrid(), write(tmp_path, bit_arrays()))


def test_a_file_and_a_name_are_a_model(tmp_path):
    """The number of classes is the file's."""
    path = write(tmp_path, hybrid_arrays((), 64, Shape(8, 192, 3, 12, 768, 7, classes=6)))
    model = load_model(path, "R+Ti/16")
    assert (model.num_classes, model.config.standardize_eps_on) == (6, "deviation")


@pytest.mark.parametrize("make", [bit, hybrid])
def test_written_and_read_back(tmp_path, make):
    model, again = make(), make()
    randomise(model)
    write_npz(model, tmp_path / "ours.npz")
    load_weights(again, tmp_path / "ours.npz", numerics="keep")
    assert torch.equal(again(pictures()), model(pictures()))
    theirs = bit_arrays() if make is bit else hybrid_arrays(shape=SHAPE)
    with np.load(tmp_path / "ours.npz") as ours:
        assert {n: a.size for n, a in ours.items()} == {n: a.size for n, a in theirs.items()}
