"""What is frozen stays as it was, what LoRA adds is merged, and a switch of phases resumes."""

import json
import signal
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.commands import call, records, start
from tests.contract.reduced import build, pictures
from vitrail.kit.errors import Error
from vitrail.models.lora import LoRALinear, add_lora, merge, merged
from vitrail.recipes.run import train
from vitrail.training.choices import Tuning
from vitrail.training.tuning import apply_tuning
from vitrail.weights.folder import load_model

TRANSFORMERS = [
    "vit_tiny_patch16_224",
    "cvt_13_224",
    "pvt_tiny",
    "pvt_v2_b0",
    "t2t_vit_7",
    "vit_tiny_r_s16_p8_224",
]


@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_additions_change_the_model_train_alone_and_merge_exactly(name, mlp):
    model = build(name).float()
    images = pictures(model).float()
    before = model(images)
    layers = add_lora(model, rank=2, alpha=3.0, mlp=mlp)
    assert layers
    assert any(".mlp." in layer for layer in layers) == mlp
    torch.testing.assert_close(model(images), before)  # they begin at zero
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"{layer}.lora_{end}" for layer in layers for end in ("down", "up")}
    model(images).square().sum().backward()
    for layer in layers:
        part = model.get_submodule(layer)
        assert part.weight.grad is None
        nn.init.normal_(part.lora_up, std=0.1)
    apart = model(images)
    assert (apart - before).abs().max() > 1e-3
    with merged(model):
        assert not any(isinstance(part, LoRALinear) for part in model.modules())
        torch.testing.assert_close(model(images), apart, rtol=1e-5, atol=1e-5)
    assert torch.equal(model(images), apart)  # nothing was rounded on the way back
    plain = set(build(name).state_dict())
    merge(model)
    assert set(model.state_dict()) == plain
    torch.testing.assert_close(model(images), apart, rtol=1e-5, atol=1e-5)


def test_a_network_without_attention_is_refused():
    with pytest.raises(Error, match="BiTResNet has none"):
        apply_tuning(build("resnetv2_50x1_bit"), Tuning(part="lora"))


def test_a_held_backbone_is_in_evaluation_mode_and_stays_there():
    model = build("cvt_13_224", drop_path=0.5)
    apply_tuning(model, Tuning(part="head"))
    images = pictures(model, batch=4)
    model.train()
    assert model.training
    assert model.head.training
    assert not any(part.training for part in model.modules() if isinstance(part, nn.BatchNorm2d))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = model(images)
    assert torch.equal(first, model(images))  # no drop path, no batch statistics
    first.sum().backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None} == {
        "head.weight",
        "head.bias",
    }
    model.eval().train()
    model(images)
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    out = tmp_path_factory.mktemp("base") / "run"
    return train("demo:fashion", model="vit_mu_patch7_28", out=out, steps=2, ema=False).folder


WORDS = {"steps": 6, "batch_size": 16, "ema": False}


def test_head_only_changes_nothing_else(tmp_path, base):
    run = train("demo:fashion", weights=base, recipe="head_only", out=tmp_path / "run", **WORDS)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, run.folder))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias"}


def test_lora_leaves_a_plain_folder_that_computes_what_was_trained(tmp_path, base):
    run = train("demo:fashion", weights=base, recipe="lora", out=tmp_path / "run", **WORDS)
    before, after = (load_file(folder / "model.safetensors") for folder in (base, run.folder))
    assert set(before) == set(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.proj.weight",
        "head.weight",
        "head.bias",
    }
    # The last checkpoint still has base and additions apart: put together they are the folder's.
    held = load_file(sorted((run.folder / "checkpoints").glob("*.safetensors"))[-1])
    layer = "model.blocks.0.attn.qkv"
    whole = held[f"{layer}.weight"] + 2 * held[f"{layer}.lora_up"] @ held[f"{layer}.lora_down"]
    torch.testing.assert_close(after["blocks.0.attn.qkv.weight"], whole, rtol=1e-5, atol=1e-6)
    assert load_model(run.folder).labels == load_model(base).labels


def test_head_then_all_frees_the_rest_at_its_step(tmp_path, base):
    run = train(
        "demo:fashion",
        weights=base,
        recipe="head_then_all",
        out=tmp_path / "run",
        save_every=1,
        set={"tuning.head_for": "4 steps"},
        **WORDS,
    )
    rates = [record["lr"] for record in records(run.folder, "step")]
    assert len(rates) == 6
    after = load_file(run.folder / "model.safetensors")
    before = load_file(base / "model.safetensors")
    assert not torch.equal(before["blocks.0.mlp.fc1.weight"], after["blocks.0.mlp.fc1.weight"])
    held = train(
        "demo:fashion",
        weights=base,
        recipe="head_then_all",
        out=tmp_path / "held",
        set={"tuning.head_for": "6 steps"},
        **WORDS,
    )
    same = load_file(held.folder / "model.safetensors")
    assert torch.equal(before["blocks.0.mlp.fc1.weight"], same["blocks.0.mlp.fc1.weight"])
    assert not torch.equal(before["head.weight"], same["head.weight"])


SLOW = [pytest.param(k, marks=pytest.mark.slow) for k in ("lora", "masked_patch", "mae")]


@pytest.mark.parametrize("kind", ["head_then_all", *SLOW])
def test_killed_and_given_again_it_ends_at_the_same_weights(kind, tmp_path, base):
    words = [
        *("train", "demo:fashion", "--recipe", kind, "--steps", "12", "--batch-size", "16"),
        *("--save-every", "2"),
    ]
    if kind in ("masked_patch", "mae"):
        words += ["--model", "vit_mu_patch7_28", "--set", "masked.decoder_width=16"]
        words += ["masked.decoder_heads=2", "masked.decoder_depth=1"]
    else:
        words += ["--weights", str(base), "--set", "tuning.head_for=6 steps"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    call(*words, "--out", whole)
    process = start(*words, "--out", broken)
    deadline = time.monotonic() + 120
    while not list(broken.glob("checkpoints/step-00000004.json")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again, _ = call(*words, "--out", broken, "--json")
    assert json.loads(again)["steps_this_run"] < 12
    ends = [load_file(folder / "model.safetensors") for folder in (whole, broken)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    held = [
        load_file(folder / "checkpoints" / "step-00000012.safetensors")
        for folder in (whole, broken)
    ]
    assert set(held[0]) == set(held[1])
    assert all(torch.equal(held[0][name], held[1][name]) for name in held[0])


def test_several_labels_train_by_yes_and_no(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 28, 28, 3), dtype=np.uint8)
    run = train(
        (images, np.arange(24) % 3),
        model="vit_mu_patch7_28",
        out=tmp_path / "run",
        steps=2,
        batch_size=8,
        set={"target.loss": "sigmoid", "target.class_weights": "balanced"},
    )
    assert np.isfinite(run.metrics["val"]["loss"])
