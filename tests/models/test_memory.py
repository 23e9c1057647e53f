"""The memory formula against what really lives in a step, counted tensor by tensor."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.models.live_memory import Live
from vitrail import Error
from vitrail.models.cost import cost
from vitrail.models.cost.devices import CARDS, GIB, card, training_flops
from vitrail.models.cost.memory import Step, block_of, grouped, memory
from vitrail.models.zoo import config_of, create_model

BATCH = 8
# Tensors without contents: whole models at their own size cost a second each.
CASES = [
    ("vit_tiny_patch16_224", False),
    ("cvt_13_224", True),
    ("resnetv2_50x1_bit", False),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in [
            ("vit_tiny_patch16_224", True),
            ("vit_base_r50_s16_224", False),
            ("vit_base_r50_s16_224", True),
            ("cvt_13_224", False),
            ("resnetv2_50x1_bit", True),
            ("resnet50", False),
            ("botnet50_224", True),
            ("pvt_tiny", False),
            ("pvt_v2_b0", True),
            ("t2t_vit_14", True),
            ("deit3_small_patch16_224", False),
        ]
    ),
]


@contextlib.contextmanager
def bfloat16(wanted):
    """CPU autocast, which also stands for others' when there are no others."""
    with torch.autocast("cpu", torch.bfloat16, enabled=wanted):
        yield


def living(name, step):
    """The most bytes alive at once in two steps, two states a number being kept."""
    with torch.device("meta"):
        model = create_model(name)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = model.to_empty(device="cpu").train()
        model.checkpointing = step.checkpointing
        images = torch.empty(step.batch_size, 3, *model.preprocessing.size)
        labels = torch.empty(step.batch_size, dtype=torch.long)
        states = [torch.empty_like(p) for p in model.parameters() for _ in range(2)]
        live = Live()
        for tensor in [*model.parameters(), *model.buffers(), images, *states]:
            live.note(tensor)
        with live:
            for _ in range(2):
                for _ in range(step.accumulation):
                    with bfloat16(step.precision == "bf16"):
                        loss = F.cross_entropy(model(images).float(), labels)
                    loss.backward()
                    del loss
                for parameter in model.parameters():
                    parameter.grad = None
    return live.peak


@pytest.mark.parametrize(("name", "checkpointing"), CASES)
def test_the_peak_is_what_lives_at_once(name, checkpointing):
    step = Step(batch_size=BATCH, checkpointing=checkpointing, ema=False)
    assert memory(config_of(name), step).peak == pytest.approx(living(name, step), rel=0.06)


@pytest.mark.parametrize("checkpointing", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_peak_under_autocast_and_accumulation(checkpointing):
    step = Step(
        batch_size=BATCH, precision="bf16", checkpointing=checkpointing, ema=False, accumulation=2
    )
    found = memory(config_of("vit_tiny_patch16_224"), step).peak
    assert found == pytest.approx(living("vit_tiny_patch16_224", step), rel=0.05)


def test_the_parts_of_the_sum():
    step = Step(batch_size=4)
    takes = memory(config_of("B/16"), step)
    assert takes.weights == takes.averages == takes.gradients == 4 * 86_567_656
    assert takes.states == 2 * takes.weights
    assert takes.pictures == 4 * 4 * 3 * 224 * 224
    assert takes.activations == 4 * 4 * cost(config_of("B/16")).activations
    base = takes.weights + takes.averages + takes.states + takes.pictures
    assert takes.peak >= base + takes.activations


def test_what_makes_a_step_smaller():
    config = config_of("vit_small_patch16_224")
    whole = memory(config, Step())
    for less in (
        Step(checkpointing=True),
        Step(precision="bf16"),
        Step(optimizer="sgd"),
        Step(ema=False),
        Step(batch_size=32),
        Step(shards=8),
    ):
        assert memory(config, less).peak < whole.peak, less
    # at another size of picture, and in double
    assert memory(config, Step(), 112).activations < whole.activations / 3.5
    assert memory(config, Step(precision="fp64")).activations == 2 * whole.activations
    # of what is shared out, a device has its part
    assert memory(config, Step(shards=8)).states == whole.states // 8


def test_every_block_is_a_group_whatever_its_family_calls_it():
    for name, blocks in {
        "vit_tiny_patch16_224": 12,
        "cvt_13_224": 13,
        "pvt_small": 16,
        "pvt_v2_b2": 16,
        "resnet50": 16,
        "botnet50_224": 16,
        "resnetv2_50x1_bit": 16,
        "vit_base_r50_s16_224": 16 + 12,
        "t2t_vit_14": 2 + 14,
    }.items():
        groups = [g for g in grouped(cost(config_of(name)).layers) if block_of(g[0].name)]
        assert len(groups) == blocks, name
        assert all(len(group) > 3 for group in groups), name


def test_cards():
    assert card("RTX4090").peaks["bf16"] == 165e12
    assert all(one.usable < one.memory for one in CARDS.values())
    assert card("h100").memory == 80 * GIB
    with pytest.raises(Error, match="did you mean 'h100'"):
        card("h10")
    assert training_flops(10, 2) == 120
    assert training_flops(10, 2, checkpointing=True) == 160
