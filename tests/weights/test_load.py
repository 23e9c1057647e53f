"""What goes into a model and what is said of it, whatever the family."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import randomise
from tests.weights.conftest import SIZES, close
from tests.weights.publisher import Shape, arrays
from vitrail import Error, WeightsError, create_model, load_weights
from vitrail.kit.grid import resize_table
from vitrail.kit.preprocess import Preprocessing


@pytest.fixture
def trained(tiny):
    model = tiny()
    randomise(model)
    return model


def before(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def unchanged(model, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


WRAPPED = {
    "state_dict": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": s, "optimizer": {"state": {0: torch.ones(2)}}},
    "teacher": lambda s: {"student": {"x": torch.ones(1)}, "teacher": s},
    "state_dict_ema": lambda s: {"state_dict": {"x": torch.ones(1)}, "state_dict_ema": s},
    "module.": lambda s: {f"module.{n}": t for n, t in s.items()},
    "_orig_mod.": lambda s: {f"_orig_mod.{n}": t for n, t in s.items()},
    "backbone.": lambda s: {n if "head" in n else f"backbone.{n}": t for n, t in s.items()},
    "teacher.": lambda s: (
        {f"teacher.{n}": t for n, t in s.items()} | {f"student.{n}": t + 1 for n, t in s.items()}
    ),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("kind", ["file", "mapping"])
def test_wrappers_are_taken_off_and_named(tmp_path, tiny, trained, wrapper, kind):
    source = WRAPPED[wrapper](dict(trained.state_dict()))
    if kind == "file":
        torch.save(source, tmp_path / "weights.pth")
        source = tmp_path / "weights.pth"
    model = tiny()
    report = load_weights(model, source)
    assert report.wrappers == [wrapper]
    assert unchanged(model, trained.state_dict())
    assert wrapper in str(report)


def test_wrappers_in_wrappers(tmp_path, tiny, trained):
    names = {f"module._orig_mod.backbone.{n}": t for n, t in trained.state_dict().items()}
    torch.save({"teacher": {"state_dict": names}, "epoch": 1}, tmp_path / "x.pth")
    model = tiny()
    report = load_weights(model, tmp_path / "x.pth")
    assert report.wrappers == ["teacher", "state_dict", "module.", "_orig_mod.", "backbone."]
    assert any("epoch" in note for note in report.notes)
    assert unchanged(model, trained.state_dict())


def test_a_timm_trainers_checkpoint_with_its_arguments(tmp_path, tiny, trained):
    import argparse

    content = {"state_dict": trained.state_dict(), "args": argparse.Namespace(lr=1.0), "epoch": 2}
    torch.save(content, tmp_path / "last.pth.tar")
    load_weights(model := tiny(), tmp_path / "last.pth.tar")
    assert unchanged(model, trained.state_dict())


def test_missing_tensors_raise_and_change_nothing(tiny, trained):
    state = dict(trained.state_dict())
    del state["blocks.1.norm2.bias"], state["cls_token"]
    model = tiny()
    untouched = before(model)
    with pytest.raises(WeightsError, match=r"blocks\.1\.norm2\.bias") as caught:
        load_weights(model, state)
    assert sorted(caught.value.missing) == ["blocks.1.norm2.bias", "cls_token"]
    assert unchanged(model, untouched)
    report = load_weights(model, state, fresh=("blocks.1.norm2", "cls_token"))
    assert report.fresh == ["cls_token", "blocks.1.norm2.weight", "blocks.1.norm2.bias"]
    assert report.dropped == ["blocks.1.norm2.weight"]
    assert torch.equal(model.blocks[0].norm1.weight, trained.blocks[0].norm1.weight)
    assert torch.equal(model.cls_token, untouched["cls_token"])


def test_a_token_lost_from_a_table_that_has_its_row(tiny, trained):
    state = dict(trained.state_dict())
    del state["cls_token"]
    for on_prefix in (True, False):
        with pytest.raises(WeightsError) as caught:
            load_weights(tiny(position_on_prefix=on_prefix), state)
        assert caught.value.missing == ["cls_token"]


def test_unknown_fresh_names(tiny, trained):
    with pytest.raises(Error, match=r"fresh names 'haed'.*did you mean 'head'"):
        load_weights(tiny(), trained.state_dict(), fresh=("haed",))


def test_a_head_of_another_size(tiny, trained):
    model = tiny(num_classes=7)
    model.set_labels(list("abcdefg"))
    randomise(model, seed=1)
    untouched = before(model)
    with pytest.raises(WeightsError, match=r"5 classes.*7.*fresh=\('head',\)") as caught:
        load_weights(model, trained.state_dict())
    assert [entry.split(":")[0] for entry in caught.value.mismatched] == [
        "head.weight",
        "head.bias",
    ]
    assert unchanged(model, untouched)
    report = load_weights(model, trained.state_dict(), fresh=("head",))
    assert report.fresh == report.dropped == ["head.weight", "head.bias"]
    assert not model.head.weight.any()
    assert not model.head.bias.any()
    assert torch.equal(model.blocks[1].mlp.fc1.weight, trained.blocks[1].mlp.fc1.weight)


def test_a_file_without_a_head(tiny, trained):
    state = {n: t for n, t in trained.state_dict().items() if not n.startswith("head")}
    with pytest.raises(WeightsError, match=r"has no head.*fresh=\('head',\)"):
        load_weights(tiny(), state)
    assert load_weights(tiny(num_classes=0), state).fresh == []
    report = load_weights(tiny(num_classes=0), trained.state_dict())
    assert report.dropped == ["head.weight", "head.bias"]


@pytest.mark.parametrize("size", [24, (8, 20)])
def test_tables_are_resized_and_reported(tiny, trained, size):
    model = tiny(image_size=size)
    report = load_weights(model, trained.state_dict())
    grid = model.config.grid
    assert report.resized == ["pos_embed"]
    assert "pos_embed" not in report.matched
    assert f"pos_embed: 3x3 -> {grid[0]}x{grid[1]}, bicubic_antialias" in report.notes
    expected = resize_table(trained.pos_embed, (3, 3), grid, "bicubic_antialias", 1)
    assert torch.equal(model.pos_embed, expected)


def test_the_resized_model_is_the_small_one_at_that_size(tiny, trained, images):
    """Resizing on loading and resizing at run time are the same."""
    model = tiny(image_size=20)
    load_weights(model, trained.state_dict())
    assert close(model(images(20)), trained(images(20)))


@pytest.mark.parametrize("kind", ["mapping", "file"])
def test_tables_that_are_not_square(tmp_path, tiny, kind):
    """2x8 patches have as many rows as 4x4: ours are known for what they are."""
    from vitrail import save_model

    model, again = tiny(image_size=(8, 32)), tiny(image_size=(8, 32))
    randomise(model)
    source = model.state_dict()
    if kind == "file":
        source = save_model(model, tmp_path) / "model.safetensors"
    report = load_weights(again, source)
    assert report.resized == []
    assert torch.equal(again.pos_embed, model.pos_embed)
    wider = tiny(image_size=(16, 32))
    if kind == "file":
        assert "pos_embed: 2x8 -> 4x8, bicubic_antialias" in load_weights(wider, source).notes


def test_published_tables_are_square(tmp_path, tiny):
    """16 rows in a published file are 4x4 patches, for a model of 2x8 too."""
    np.savez(tmp_path / "x.npz", **arrays(Shape(grid=4)))
    report = load_weights(tiny(image_size=(8, 32)), tmp_path / "x.npz")
    assert "pos_embed: 4x4 -> 2x8, bilinear_corners" in report.notes


def test_fixed_tables_are_computed_again(tiny, images):
    small = tiny(pool="mean", position="sincos2d")
    large = tiny(pool="mean", position="sincos2d", image_size=20)
    table = large.pos_embed.clone()
    randomise(small)
    small.pos_embed.copy_(tiny(pool="mean", position="sincos2d").pos_embed)
    report = load_weights(large, small.state_dict())
    assert report.resized == ["pos_embed"]
    assert torch.equal(large.pos_embed, table)
    assert close(large(images(20)), small(images(20)))
    other = tiny(pool="mean", position="sincos2d_mae", image_size=20)
    with pytest.raises(WeightsError, match="sincos2d_mae"):
        load_weights(other, small.state_dict())


def test_a_table_for_a_model_without_positions_has_no_place(tiny, trained):
    with pytest.raises(WeightsError) as caught:
        load_weights(tiny(position="none"), trained.state_dict())
    assert caught.value.unexpected == ["pos_embed"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(tiny, trained, value):
    state = {n: t.clone() for n, t in trained.state_dict().items()}
    state["blocks.1.mlp.fc1.weight"][0, 0] = value
    model = tiny()
    untouched = before(model)
    with pytest.raises(WeightsError, match=r"blocks\.1\.mlp\.fc1\.weight"):
        load_weights(model, state)
    assert unchanged(model, untouched)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("own", [torch.float64, torch.bfloat16])
def test_the_models_dtype_stays(tiny, trained, stored, own):
    state = {n: t.to(stored) for n, t in trained.state_dict().items()}
    model = tiny(dtype=own)
    report = load_weights(model, state)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {own}
    assert torch.equal(model.head.weight, state["head.weight"].to(own))
    named = str(stored).removeprefix("torch.")
    assert any(named in note for note in report.notes) == (stored != own)


def test_whole_numbers_are_no_weights(tiny, trained):
    state = {n: t.round().to(torch.int8) for n, t in trained.state_dict().items()}
    with pytest.raises(WeightsError, match="int8"):
        load_weights(tiny(), state)


def test_deit3_names_and_pre_logits(tiny):
    source = tiny(layer_scale=0.1, pre_logits=True, position_on_prefix=False)
    randomise(source)
    old = {n.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): t
           for n, t in source.state_dict().items()}  # fmt: skip
    assert "blocks.0.gamma_1" in old
    model = tiny(layer_scale=0.5, position_on_prefix=False)
    report = load_weights(model, old)
    assert sorted(report.dropped) == ["pre_logits.fc.bias", "pre_logits.fc.weight"]
    assert torch.equal(model.blocks[0].ls1.gamma, source.blocks[0].ls1.gamma)
    model = tiny(layer_scale=0.5, pre_logits=True, position_on_prefix=False)
    assert load_weights(model, old).dropped == []
    assert unchanged(model, source.state_dict())


def test_a_mapping_keeps_the_models_numerics_and_a_timm_file_has_timms(tmp_path, tiny, images):
    model, again = tiny(activation="gelu_tanh"), tiny(activation="gelu_tanh")
    randomise(model)
    assert load_weights(again, model.state_dict()).numerics == {}
    assert torch.equal(again(images()), model(images()))
    torch.save(model.state_dict(), tmp_path / "x.pth")
    assert load_weights(again, tmp_path / "x.pth").numerics == {"activation": ("gelu_tanh", "gelu")}
    assert again.config == dataclasses.replace(model.config, activation="gelu")
    assert not torch.equal(again(images()), model(images()))


def test_google_then_timm_has_timms_logits(tmp_path, tiny, trained, images):
    np.savez(tmp_path / "x.npz", **arrays(Shape()))
    torch.save(trained.state_dict(), tmp_path / "x.pth")
    model = tiny()
    load_weights(model, tmp_path / "x.npz")
    load_weights(model, tmp_path / "x.pth")
    assert torch.equal(model(images()), trained(images()))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("conv_root/kernel", "hybrid"),
        ("opt/target/conv_root/kernel", "hybrid"),
        ("resnet/root_block/standardized_conv2d/kernel", "BiT"),
        ("vit.embeddings.cls_token", "transformers"),
        ("conv_proj.weight", "torchvision"),
        ("layer1.0.conv1.weight", "ResNet"),
        ("dist_token", "distilled DeiT"),
        ("visual.conv1.weight", "CLIP"),
        ("stage0.patch_embed.proj.weight", "CvT"),
        ("tokens_to_token.attention1.kqv.weight", "T2T"),
        ("patch_embed1.proj.weight", "PVT"),
        ("something.else", "something.else"),
    ],
)
def test_other_families_are_refused_by_name(tiny, name, says):
    with pytest.raises(WeightsError, match=says) as caught:
        load_weights(tiny(), {name: torch.ones(3)})
    assert "\n" not in str(caught.value)


def test_several_misfits_in_one_sentence(tiny, trained):
    with pytest.raises(WeightsError) as caught:
        load_weights(tiny(width=30, mlp_width=40, depth=3, num_classes=2), trained.state_dict())
    error = caught.value
    assert "\n" not in str(error)
    assert len(str(error)) < 600
    sizes = "the file has 2 blocks of width 24, patches of 4, the model 3 blocks of width 30"
    assert sizes in str(error)
    assert "patch_embed.proj.weight" in "".join(error.mismatched)
    assert "[24, 3, 4, 4] in the file, [30, 3, 4, 4] in the model" in "".join(error.mismatched)
    assert len([name for name in error.missing if name.startswith("blocks.2.")]) == 12


def test_the_report_reads_well(tmp_path, tiny):
    np.savez(tmp_path / "B_16.npz", **arrays(Shape(pre_logits=True, classes=9)))
    report = load_weights(tiny(image_size=16), tmp_path / "B_16.npz", fresh=("head",))
    lines = str(report).splitlines()
    assert lines[0] == "B_16.npz (google): 29 tensors matched, 1 resized, 4 dropped, 2 fresh"
    text = str(report)
    for part in ("pos_embed: 3x3 -> 4x4", "gelu -> gelu_tanh", "pre_logits/kernel", "mean 0.5 0.5"):
        assert part in text
    assert max(map(len, lines)) < 200


def test_create_model_with_weights(tmp_path, trained, images):
    save_file(dict(trained.state_dict()), tmp_path / "x.safetensors")
    fields = {k: v for k, v in SIZES.items() if k not in ("num_classes", "image_size")}
    with pytest.raises(WeightsError, match="num_classes=5"):
        create_model("Ti/16", image_size=12, weights=tmp_path / "x.safetensors", **fields)
    model = create_model("Ti/16", 5, 12, weights=str(tmp_path / "x.safetensors"), **fields)
    assert not model.training
    assert close(model(images().float()), trained(images()), 1e-4)


def test_statistics_of_another_size_keep_the_crop_of_the_size(tmp_path, tiny):
    from vitrail import save_model

    source = tiny()
    source.preprocessing = Preprocessing(size=(12, 12), mean=(0.1,) * 3, crop=0.8)
    save_model(source, tmp_path)
    same, other = tiny(), tiny(image_size=24)
    assert load_weights(same, tmp_path).preprocessing == source.preprocessing
    changed = load_weights(other, tmp_path).preprocessing
    assert changed == source.preprocessing.replace(size=(24, 24), crop=1.0)
    assert other.preprocessing == changed


@pytest.mark.parametrize(
    "about",
    [
        {"mean": "bright"},
        {"interpolation": "psychic"},
        {"crop_pct": 7},
    ],
)
def test_a_bad_config_beside_the_weights_changes_nothing(tmp_path, tiny, trained, about):
    torch.save(trained.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": about}))
    model = tiny()
    untouched = before(model)
    with pytest.raises(Error):
        load_weights(model, tmp_path)
    assert unchanged(model, untouched)


def test_numerics_of_another_kind(tiny, trained):
    with pytest.raises(Error, match="'file' or 'keep'"):
        load_weights(tiny(), trained.state_dict(), numerics="timm")
