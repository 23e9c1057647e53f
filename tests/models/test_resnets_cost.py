"""Counts of the ResNets and hybrids against published integers, torch's counter and autograd."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.models.resnets import pictures, random_model, small
from vitrail import Tape
from vitrail.models.catalog import layer_rows
from vitrail.models.cost import cost
from vitrail.models.parts import drop_paths, set_drop_path_draws
from vitrail.models.zoo import create_model

# Parameters with 1,000 classes at 224 pixels, with 21,843, without a head, with 1,000 at 384:
# vit_jax/models_test.py and timm where they have the model, else the closed formula.
PARAMETERS = {
    "resnetv2_50x1_bit": (25_549_352, 68_256_659, 23_500_352),
    "resnetv2_50x2_bit": (97_988_712, 183_382_483),
    "resnetv2_50x3_bit": (217_319_080, 345_399_315, 211_174_080),
    "resnetv2_101x1_bit": (44_541_480, 87_248_787, 42_492_480),
    "resnetv2_101x3_bit": (387_934_888, 516_015_123, 381_789_888),
    "resnetv2_152x1_bit": (60_185_128, 102_892_435, 58_136_128),
    "resnetv2_152x2_bit": (236_335_208, 321_728_979, 232_238_208),
    "resnetv2_152x4_bit": (936_533_224, 1_107_299_923, 928_340_224),
    "resnetv2_200x3_bit": (568_633_000, 696_713_235, 562_488_000),
    "R+Ti/16": (6_337_704, 10_360_403, None, 6_355_944),
    "R26+S/32": (36_431_912, 44_456_467, None, 36_468_392),
    "R26+B/32": (101_383_976, 117_412_243, None, 101_456_936),
    "R50+B/16": (98_659_112, 114_687_379, None, 98_950_952),
    "R50+L/32": (328_994_856, 350_358_931, None, 329_092_136),
    "R50+B/32": (110_945_832, 126_974_099, None, 111_018_792),
    "R50+L/16": (316_483_624, 337_847_699, None, 316_872_744),
    "resnet50": (25_557_032,),
    "resnet101": (44_549_160,),
    "resnet152": (60_192_808,),
}
COLUMNS = ({}, {"num_classes": 21843}, {"num_classes": 0}, {"image_size": 384})

# Billions of multiply-adds at 224 pixels: ours, and what is reported. timm's figures for these
# families come from a counter that adds operations which are no products of matrices (norms,
# activations, poolings and the like), so they are larger by 0.5 to 4 %.
GMACS = {
    "resnet50": (4.089, 4.1),  # He et al.'s 3.8 has the stride on the first 1x1 convolution
    "resnetv2_50x1_bit": (4.089, 4.23),
    "resnetv2_50x3_bit": (36.082, 37.06),
    "resnetv2_101x1_bit": (7.801, 8.04),
    "resnetv2_101x3_bit": (69.492, 71.23),
    "resnetv2_152x2_bit": (45.814, 46.95),
    "resnetv2_152x4_bit": (182.777, 186.9),
    "R26+S/32": (3.464, 3.56),
    "R26+B/32": (6.711, 6.81),
    "R50+B/16": (21.535, 21.66),
    "R50+L/32": (19.413, 19.58),
    "R+Ti/16": (0.434, 0.44),
}

VARIANTS = {
    "resnet": ("resnet", {}),
    "resnet, silu, odd size": ("resnet", {"activation": "silu", "image_size": (75, 50)}),
    "resnet, no head": ("resnet", {"num_classes": 0}),
    "bit": ("bit", {}),
    "bit, odd size, drop path": ("bit", {"image_size": (49, 70), "drop_path": 0.2}),
    "hybrid": ("hybrid", {}),
    "hybrid, odd size, mean": ("hybrid", {"image_size": (49, 70), "pool": "mean"}),
    "stem alone": ("stem", {"registers": 2}),
}


def on_meta(name, **config):
    with torch.device("meta"):
        return create_model(name, **config)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_integers(name):
    for column, expected in zip(COLUMNS, PARAMETERS[name], strict=False):
        if expected is not None:
            model = on_meta(name, **column)
            assert sum(p.numel() for p in model.parameters()) == expected, column
            assert cost(model).parameters == expected, column


@pytest.mark.parametrize("name", GMACS)
def test_macs_beside_the_reported_ones(name):
    ours, reported = GMACS[name]
    counted = cost(on_meta(name)).macs / 1e9
    assert counted == pytest.approx(ours, abs=5e-4)
    assert 0.96 * reported < counted < reported + 0.005


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layer_has_the_parameters_that_bear_its_name(variant):
    kind, fields = VARIANTS[variant]
    model = small(kind, **fields)
    layers, state = cost(model).layers, dict(model.named_parameters())
    assert len({layer.name for layer in layers}) == len(layers)
    for layer in layers:
        own = {key for key in state if layer.name in (key, key.rpartition(".")[0])}
        assert layer.parameters == sum(state.pop(key).numel() for key in own), layer.name
    assert not state, "parameters that no layer counts"


@pytest.mark.parametrize("variant", VARIANTS)
def test_macs_are_those_that_torch_counts(variant):
    kind, fields = VARIANTS[variant]
    model = small(kind, **fields).to("meta")
    images = torch.empty(1, 3, *model.preprocessing.size, device="meta", dtype=torch.float64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images, tape=Tape(only="normed"))  # of all tokens, as papers count
    assert counter.get_total_flops() == 2 * cost(model).macs


def kept_by_autograd(model, batch):
    """Numbers of 4 bytes, nothing being dropped."""
    set_drop_path_draws(model, torch.ones(batch, len(drop_paths(model))))
    images = torch.randn(batch, 3, *model.preprocessing.size)
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(images)
    return sum(size for size, _ in kept.values()) / 4


@pytest.mark.parametrize("variant", VARIANTS)
def test_activations_are_what_autograd_keeps(variant):
    kind, fields = VARIANTS[variant]
    model = random_model(kind, **fields).float().train()
    # What is kept once for the batch, such as standardised filters, is in both.
    measured = (kept_by_autograd(model, 6) - kept_by_autograd(model, 2)) / 4
    assert cost(model).activations == pytest.approx(measured, rel=1e-3)


def test_shapes_are_those_on_the_tape():
    for kind, fields in VARIANTS.values():
        model, tape = small(kind, **fields), Tape()
        model(pictures(*model.preprocessing.size, batch=1), tape=tape)
        named = {layer.name: layer.shape for layer in cost(model).layers}
        for name in tape:
            taped = tuple(tape[name].shape[1:])
            if name == "stem" or name.startswith("stages."):
                assert named[name] == (*taped[1:], taped[0]), (kind, name)
            elif name in ("patches", "pooled"):
                assert named[name] == taped, (kind, name)


def test_the_anatomy_of_a_hybrid_and_of_a_resnet():
    rows = {row["name"]: row["shape"] for row in layer_rows("R50+ViT-B_16")}
    assert rows["images"] == [224, 224, 3]
    assert rows["stem"] == [56, 56, 64]
    assert rows["stages.2.blocks.8.out"] == [14, 14, 1024]
    assert rows["patches"] == [196, 768]
    assert rows["blocks.11.mlp.fc1"] == [197, 3072]
    assert rows["head"] == [1000]
    rows = {row["name"]: row["shape"] for row in layer_rows("resnet50")}
    assert rows["stages.3.blocks.2.out"] == [7, 7, 2048]
    assert rows["layer4.0.conv2"] == [7, 7, 512]
