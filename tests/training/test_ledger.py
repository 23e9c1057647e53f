"""What a run cost: by formula where all is trained, less where weights are frozen."""

import json
from types import SimpleNamespace

import pytest
import torch

import vitrail
from vitrail.kit.peak import matmul_peak
from vitrail.models.cost import cost
from vitrail.models.zoo import create_model
from vitrail.training.engine import Engine
from vitrail.training.ledger import Ledger, account, passes_of
from vitrail.training.tuning import hold_backbone

FAMILIES = (
    *("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_base_r50_s16_224"),
    *("cvt_13_224", "t2t_vit_7", "pvt_tiny", "pvt_v2_b0", "resnetv2_50x1_bit", "botnet50_224"),
)


def on_meta(name, **fields):
    with torch.device("meta"):
        return create_model(name, **fields)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_everything_costs_three_passes(name):
    assert passes_of(on_meta(name)) == pytest.approx(3, rel=2e-3)


@pytest.mark.parametrize("name", [name for name in FAMILIES if "distilled" not in name])
def test_training_the_head_alone_costs_a_forward_pass_and_the_heads_gradient(name):
    model = on_meta(name).requires_grad_(False)
    model.get_submodule(model.head_name).requires_grad_(True)
    layers = {layer.name: layer.macs for layer in cost(model).layers}
    share = layers[model.head_name] / sum(layers.values())
    assert passes_of(model) == pytest.approx(1 + share, rel=1e-9)


def test_what_lies_before_the_first_trained_weight_costs_one_pass():
    model = on_meta("vit_tiny_patch16_224").requires_grad_(False)
    model.blocks[-1].mlp.fc2.requires_grad_(True)
    layers = {layer.name: layer.macs for layer in cost(model).layers}
    total = sum(layers.values())
    # the gradient of its weights, and that of the head's input
    extra = layers["blocks.11.mlp.fc2"] + layers["head"]
    assert passes_of(model) == pytest.approx(1 + extra / total, rel=1e-9)


def test_narrow_additions_to_frozen_matrices_cost_the_way_through_and_little_more():
    model = on_meta("vit_tiny_patch16_224").requires_grad_(False)
    for block in model.blocks:
        down = torch.nn.Parameter(torch.empty(4, 192, device="meta"))
        block.attn.qkv.register_parameter("lora_down", down)
    # the gradients of inputs, and both gradients in attention
    assert 2 < passes_of(model) < 2.15
    assert passes_of(model) > passes_of(model.requires_grad_(False)) == 1


def test_frozen_weights_cost_what_torch_counts():
    """Forward and backward of the middle of a model, by torch's own counter."""
    from torch.utils.flop_counter import FlopCounterMode

    # Mean pooling reads every token of the last block; a class token leaves most of it undone.
    model = on_meta("vit_tiny_patch16_224", depth=3, pool="mean").requires_grad_(False)
    model.blocks[1].requires_grad_(True)
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta")).sum().backward()
    assert counter.get_total_flops() / 2 == pytest.approx(passes_of(model) * cost(model).macs)


def test_the_papers_units():
    macs = cost(on_meta("L/16")).macs
    ledger = Ledger("TPU", macs, images=14 * 303_000_000, seconds=3600, devices=4)
    found = ledger.to_json()
    assert found["exaflops"] == pytest.approx(1567, rel=1e-3)
    assert found["tpuv3_core_days"] == pytest.approx(680, rel=1e-3)
    assert found["device_hours"] == 4
    assert found["mfu"] is None
    timed = Ledger("GPU", macs, training_rate=100, matmul_peak=1e14, devices=2)
    assert timed.mfu == pytest.approx(100 * 6 * macs / 2e14)


def test_the_median_of_the_steps_is_the_rate_and_an_objective_may_count_for_itself():
    model = create_model("vit_mu_patch7_28")
    records = [{"kind": "step", "images_per_second": rate} for rate in (10, 1000, 1100, 1200, None)]
    learner = SimpleNamespace(model=model, objective=SimpleNamespace(macs=lambda of: 77))
    ledger = account(
        learner,
        Engine("cpu", "fp32"),
        images=5,
        seconds=2.0,
        records=[*records, {"kind": "eval", "images_per_second": 1}],
    )
    assert ledger.training_rate == 1050
    assert ledger.macs_per_image == 77
    assert ledger.matmul_peak == matmul_peak("cpu", "fp32", torch.get_num_threads())
    assert ledger.matmul_peak > 1e8


def test_the_first_phase_and_the_teacher_count_for_what_they_cost():
    model = create_model("vit_mu_patch7_28")
    objective = SimpleNamespace(teacher_macs=1_000)
    learner = SimpleNamespace(model=model, objective=objective)
    ledger = account(learner, Engine("cpu", "fp32"), images=5, seconds=2.0, head_share=0.25)
    assert 0.25 * 1 + 0.75 * 3 < ledger.passes < 0.25 * 1.1 + 0.75 * 3
    assert ledger.flops == round(2 * 5 * (ledger.passes * cost(model).macs + 1_000))
    assert not model.held
    assert all(parameter.requires_grad for parameter in model.parameters())
    hold_backbone(model)  # a run that ended in its first phase
    ledger = account(learner, Engine("cpu", "fp32"), images=5, seconds=2.0, head_share=1.0)
    assert ledger.passes == pytest.approx(passes_of(model))
    assert model.held


def test_a_run_keeps_its_ledger_and_the_report_tells_it(tmp_path):
    run = vitrail.train(
        "demo:fashion", model="vit_mu_patch7_28", out=tmp_path / "run", steps=4, batch_size=8
    )
    kept = json.loads((run.folder / "config.json").read_text())["vitrail"]["ledger"]
    macs = cost(vitrail.load_model(run.folder)).macs
    assert kept["flops"] == 6 * macs * 4 * 8
    assert kept["passes"] == 3
    assert kept["device_hours"] == pytest.approx(kept["seconds"] / 3600)
    assert kept["tpuv3_core_days"] == pytest.approx(kept["exaflops"] * 680 / 1567)
    expected = kept["training_rate"] * 6 * macs / kept["matmul_peak"]
    assert kept["mfu"] == pytest.approx(expected)
    page = (run.folder / "report.html").read_text()
    assert "TPUv3-core-days" in page
    assert "(MFU)" in page


def test_checkpointing_gives_the_same_run_bit_for_bit(tmp_path):
    found = []
    for checkpointing in (False, True):
        run = vitrail.train(
            "demo:fashion",
            model="vit_mu_patch7_28",
            out=tmp_path / str(checkpointing),
            steps=4,
            batch_size=8,
            set={
                "model.depth": 3,
                "model.dropout": 0.2,
                "model.drop_path": 0.5,
                "checkpointing": checkpointing,
            },
        )
        lines = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
        losses = [record["loss"] for record in lines if record["kind"] == "step"]
        found.append((losses, (run.folder / "model.safetensors").read_bytes()))
    assert found[0][0] == found[1][0]
    weights = [vitrail.load_model(tmp_path / str(c)).state_dict() for c in (False, True)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
