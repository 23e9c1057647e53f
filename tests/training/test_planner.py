"""The planner: what fits, what it takes, and what a process really takes."""

import json

import pytest

from tests.commands import call
from vitrail import Error
from vitrail.models.cost import cost
from vitrail.models.cost.memory import Step, memory
from vitrail.models.zoo import config_of
from vitrail.training.planner import (
    Device,
    config_for,
    fitting,
    measure,
    plan,
    predicted,
    scale,
    this_machine,
)
from vitrail.training.trial import in_a_process

GIB = 2**30
KEYS = {"peak_bytes", "micro_batch", "accumulation", "seconds_per_step", "exaflops"}


def a_device(gib, peak=1e13):
    return Device("a card", round(gib * GIB), peak, 0.5)


def test_the_micro_batch_is_the_largest_divisor_that_fits():
    config = config_of("vit_small_patch16_224")
    step, takes, fits = fitting(config, Step(), 96, a_device(4))
    assert fits
    assert step.batch_size * step.accumulation == 96
    assert takes.peak <= 4 * GIB
    larger = min(n for n in range(step.batch_size + 1, 97) if 96 % n == 0)
    again = Step(batch_size=larger, accumulation=96 // larger)
    assert memory(config, again).peak > 4 * GIB


def test_a_process_on_the_cpu_is_larger_than_its_tensors():
    here = Device("this CPU", 4 * GIB, 1e11, 0.5, cpu=True)
    made = plan("vit_small_patch16_224", batch_size=16, device=here)
    assert made.peak == made.takes.peak + made.takes.held > made.takes.peak
    assert made.to_json()["peak_bytes"] == made.peak
    there = plan("vit_small_patch16_224", batch_size=16, device=a_device(4))
    assert there.peak == there.takes.peak


def test_checkpointing_is_proposed_where_it_helps_and_what_never_fits_is_said():
    made = plan("vit_base_patch16_224", batch_size=64, device=a_device(4))
    assert made.fits
    assert made.checkpointed is not None
    assert made.checkpointed > made.step.batch_size
    hopeless = plan("H/14", batch_size=8, device=a_device(2))
    assert not hopeless.fits
    assert (hopeless.step.batch_size, hopeless.step.accumulation) == (1, 8)
    assert hopeless.checkpointed is None
    easy = plan("vit_tiny_patch16_224", batch_size=8, device=a_device(30))
    assert easy.step.accumulation == 1
    assert easy.checkpointed is None


def test_time_and_compute_follow_from_the_multiply_adds():
    macs = cost(config_of("L/16")).macs
    made = plan("L/16", batch_size=64, device=a_device(80), images=14 * 303e6)
    assert made.seconds == pytest.approx(6 * macs * 64 / 0.5e13)
    assert made.exaflops == pytest.approx(1567, rel=1e-3)
    assert made.to_json()["tpuv3_core_days"] == pytest.approx(680, rel=1e-3)
    again = plan(
        "L/16",
        batch_size=64,
        device=a_device(80),
        images=14 * 303e6,
        step=Step(checkpointing=True),
    )
    assert again.seconds == pytest.approx(made.seconds * 4 / 3)
    assert again.exaflops == made.exaflops  # what is computed twice counts once


def test_cards_and_this_machine():
    card = this_machine("h100", "bf16")
    assert (card.peak, card.name) == (989e12, "h100")
    assert this_machine("h100", "bf16", gib=12).budget < 12 * GIB < card.budget
    here = this_machine("cpu", "fp32")
    assert here.peak > 1e8
    assert here.budget > 0
    assert this_machine("cpu", "fp32", gib=3).budget == 3 * GIB
    with pytest.raises(Error, match="has no bf16: use fp32 or fp16"):
        this_machine("v100", "bf16")
    with pytest.raises(Error, match="did you mean 'rtx4090'"):
        this_machine("rtx4091", "bf16")


def test_many_gpus_by_formula():
    made = plan("L/16", batch_size=4096, step=Step(precision="bf16"), device=a_device(80))
    one, eight, many = scale(made, [1, 8, 1024], "h100")
    assert one.ddp == one.fsdp
    assert one.ddp_traffic == one.fsdp_traffic == 0
    assert eight.ddp_traffic == pytest.approx(2 * 7 / 8 * 4 * made.parameters)
    size = 2 * 4 * made.parameters
    assert eight.ddp_seconds == pytest.approx(size * 7 / 8 / 450e9)
    within, between = 7 / 8 / 450e9, 127 / 128 / 8 / 25e9
    assert many.ddp_seconds == pytest.approx(size * (within + between))
    assert many.images_per_gpu == 4
    assert many.compute == pytest.approx(made.seconds / 1024)
    assert many.fsdp.states == pytest.approx(many.ddp.states / 1024, rel=1e-6)
    assert many.fsdp.peak < many.ddp.peak
    assert many.checkpoint == 4 * 4 * made.parameters  # weights, averages, two states
    with pytest.raises(Error, match="cannot be shared out over 3 GPUs"):
        scale(made, [3], "h100")
    with pytest.raises(Error, match="--gpus needs a card"):
        scale(made, [8], "cpu")


def test_the_command_answers_in_json_and_in_words():
    words = ("plan", "B/16", "--device", "rtx4090", "--precision", "bf16", "--batch-size", 1024)
    out, _ = call(*words, "--images", 1_281_167, "--epochs", 300, "--json")
    found = json.loads(out)
    assert set(found) >= KEYS
    assert found["micro_batch"] * found["accumulation"] == 1024
    assert found["peak_bytes"] <= found["budget_bytes"]
    assert found["exaflops"] == pytest.approx(
        6 * cost(config_of("B/16")).macs * 1_281_167 * 300 / 1e18
    )
    assert found["steps"] == 375_342
    out, _ = call(*words)
    assert "which fits" in out
    assert "4 passes of 256" in out
    out, _ = call("plan", "B/16", "Ti/16", "--image-size", 96, 128, "--device", "l4", "--json")
    assert [(one["model"], one["image_size"][0]) for one in json.loads(out)] == [
        ("vit_base_patch16_224", 96),
        ("vit_base_patch16_224", 128),
        ("vit_tiny_patch16_224", 96),
        ("vit_tiny_patch16_224", 128),
    ]
    out, _ = call(*words, "--gpus", 1, 64, "--json")
    assert [row["gpus"] for row in json.loads(out)["scale"]] == [1, 64]
    assert "1,024" in call("plan", "B/16", "--device", "h100", "--gpus", 1024, *words[-2:])[0]


@pytest.mark.parametrize(
    "wrong",
    [
        (),
        ("B/17",),
        ("B/16", "--device", "h10"),
        ("B/16", "--device", "v100", "--precision", "bf16"),
        ("B/16", "--batch-size", 0),
        ("B/16", "--image-size", 225),
        ("B/16", "--memory", 0),
        ("B/16", "--utilisation", 2),
        ("B/16", "--device", "h100", "--measure"),
        ("B/16", "--device", "h100", "--gpus", 3),
    ],
)
def test_a_mistake_is_one_sentence(wrong):
    call("plan", *wrong, status=2)


@pytest.mark.parametrize(("name", "size", "batch"), [("vit_tiny_patch16_224", 224, 8)])
def test_the_memory_of_a_real_process(name, size, batch):
    step = Step(batch_size=batch, ema=False)
    took = in_a_process(name, step, size, steps=2)
    if took.bytes is None:
        pytest.skip("this system does not say how large a process is")
    _, process = predicted(config_for(name, size), step, on_gpu=False)
    assert process == pytest.approx(took.bytes, rel=0.25)


def test_the_memory_of_a_real_process_under_checkpointing_without_mallocs_part():
    step = Step(batch_size=8, ema=False, checkpointing=True, optimizer="sgd")
    at_once = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    took = in_a_process("vit_tiny_patch16_224", step, steps=2, environment=at_once)
    if took.bytes is None:
        pytest.skip("this system does not say how large a process is")
    tensors, _ = predicted(config_for("vit_tiny_patch16_224", None), step, on_gpu=False)
    assert tensors == pytest.approx(took.bytes, rel=0.25)


def test_measuring_runs_real_steps():
    device = Device("this CPU", 2 * GIB, 1e10, 0.5)
    found = measure(
        "vit_mu_patch7_28", None, Step(batch_size=8, ema=False), device, "cpu"
    ).to_json()
    assert found["images_per_second"] > 0
    assert found["inference_images_per_second"] > 0
    if found["peak_bytes"] is not None:
        assert found["largest_batch"] is None or found["largest_batch"] > 100
    with pytest.raises(Error, match="a trial of vit_tiny"):
        in_a_process("vit_tiny_patch16_224", Step(batch_size=2), steps="many")
