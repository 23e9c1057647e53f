"""Counts against published integers, torch's own counter, and what autograd really keeps."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitrail import Error, Tape
from vitrail.models.base import height_width
from vitrail.models.cost import cost
from vitrail.models.parts import drop_paths, set_drop_path_draws
from vitrail.models.vit import SIZES, ViTConfig
from vitrail.models.zoo import create_model

# Parameters: 1,000 classes at 224 pixels, no head, 21,843 classes, the same with the tanh layer
# before the head, 1,000 classes at 384. From vit_jax/models_test.py where it has the model, else
# the closed formula that reproduces all of those.
PARAMETERS = {
    "Ti/16": (5_717_416, 5_524_416, 9_740_115, 9_777_171, 5_790_376),
    "S/32": (22_878_952, 22_493_952, 30_903_507, 31_051_347, 22_915_432),
    "S/16": (22_050_664, 21_665_664, 30_075_219, 30_223_059, 22_196_584),
    "S/8": (22_055_272, 21_670_272, 30_079_827, 30_227_667, 22_638_952),
    "M/16": (38_837_736, 38_324_736, 49_530_195, 49_792_851, 39_032_296),
    "B/32": (88_224_232, 87_455_232, 104_252_499, 104_843_091, 88_297_192),
    "B/16": (86_567_656, 85_798_656, 102_595_923, 103_186_515, 86_859_496),
    "B/8": (86_576_872, 85_807_872, 102_605_139, 103_195_731, 87_744_232),
    "L/32": (306_535_400, 305_510_400, 327_899_475, 328_949_075, 306_632_680),
    "L/16": (304_326_632, 303_301_632, 325_690_707, 326_740_307, 304_715_752),
    "L/14": (304_203_752, 303_178_752, 325_567_827, 326_617_427, None),
    "H/14": (632_045_800, 630_764_800, 658_745_683, 660_385_363, None),
    "H/16": (632_199_400, 630_918_400, 658_899_283, 660_538_963, 632_685_800),
    "So400m/14": (413_597_656, 412_444_656, None, None, None),
    "g/14": (1_012_611_432, 1_011_202_432, 1_041_979_219, None, None),
    "G/14": (1_844_440_680, 1_842_775_680, 1_879_144_275, None, None),
    "e/14": (3_807_214_312, 3_805_421_312, None, None, None),
}
COLUMNS = (
    {},
    {"num_classes": 0},
    {"num_classes": 21843},
    {"num_classes": 21843, "pre_logits": True},
    {"image_size": 384},
)
OTHER_COUNTS = [
    ("S/16", {"pool": "mean"}, 22_049_896),
    ("S/32", {"pool": "mean"}, 22_878_184),
    ("B/16", {"pool": "mean"}, 86_566_120),
    ("B/32", {"pool": "mean"}, 88_222_696),
    ("H/14", {"image_size": 518}, 633_470_440),
    ("L/16", {"image_size": 512}, 305_174_504),
    # "Better plain ViT baselines" (arXiv 2205.01580), with a linear head and with a tanh layer
    ("S/16", {"pool": "mean", "position": "sincos2d"}, 21_974_632),
    ("S/16", {"pool": "mean", "position": "sincos2d", "pre_logits": True}, 22_122_472),
    # the test configuration without pooling of vit_jax/models_test.py
    (
        "S/16",
        {
            "depth": 1,
            "width": 10,
            "heads": 2,
            "mlp_width": 10,
            "pool": "none",
            "class_token": False,
        },
        21_370,
    ),
]

# Billions of multiply-adds, at the default size and at (size).
GMACS = {
    "Ti/16": {224: "1.25", 384: "4.68"},
    "S/32": {224: "1.14", 384: "3.44"},
    "S/16": {224: "4.60", 384: "15.49"},
    "S/8": {224: "22.41", 384: "98.1"},
    "M/16": {224: "7.99", 384: "26.10"},
    "B/32": {224: "4.41", 384: "13.04"},
    "B/16": {224: "17.56", 384: "55.48"},
    "B/8": {224: "78.15", 384: "294"},
    "L/32": {224: "15.38", 384: "45.28"},
    "L/16": {224: "61.55", 384: "191.07"},
    "L/14": {224: "81.01", 392: "267.8"},
    "H/14": {224: "167.30", 392: "544.95", 518: "1016.7"},
    "g/14": {224: "267.03", 392: "862"},
    "G/14": {224: "483.75"},
}

VARIANTS = {
    "paper": {},
    "mean": {"pool": "mean"},
    "mean, norm after, registers": {"pool": "mean", "norm_after_pool": True, "registers": 4},
    "map": {"pool": "map", "registers": 2, "activation": "quick_gelu"},
    "unpooled": {"pool": "none", "position": "none", "activation": "relu"},
    "layer scale": {"layer_scale": 0.1, "qkv_bias": False, "activation": "silu"},
    "sincos beside a class token": {"position": "sincos2d_mae"},
    "big_vision's class token": {"position_on_prefix": False, "registers": 1},
    "pre-logits": {"pre_logits": True, "activation": "gelu_tanh"},
    "no head": {"num_classes": 0},
    "not square": {"image_size": (96, 160)},
    "grey": {"in_channels": 1},
    "dropout": {"dropout": 0.1, "drop_path": 0.2},
    "distilled": {"distilled": True},
    "CLIP": {"pre_norm": True, "activation": "quick_gelu"},
    "DINOv2 giant": {"gated_mlp": True, "activation": "silu", "pool": "token_mean"},
    "2-D positions": {"position": "learned2d", "registers": 1},
    "positions at every layer": {"position_at": "layers", "position_on_prefix": False},
    "relative": {"position": "relative", "image_size": 64},
    "relative, shared": {"position": "relative", "position_at": "layers_shared", "pool": "mean"},
}


def on_meta(name, **config):
    with torch.device("meta"):
        return create_model(name, **config)


def small_variant(name):
    fields = {"image_size": 128, "num_classes": 10, **VARIANTS[name]}
    return create_model("vit_tiny_patch16", depth=3, width=48, mlp_width=100, **fields)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_the_published_integers(name):
    for column, expected in zip(COLUMNS, PARAMETERS[name], strict=True):
        if expected is not None:
            model = on_meta(name, **column)
            assert sum(p.numel() for p in model.parameters()) == expected, column
            assert cost(model).parameters == expected, column


@pytest.mark.parametrize(("name", "config", "expected"), OTHER_COUNTS)
def test_parameters_of_other_configurations(name, config, expected):
    model = on_meta(name, **config)
    assert sum(p.numel() for p in model.parameters()) == expected
    assert cost(model).parameters == expected


@pytest.mark.parametrize("name", GMACS)
def test_macs_are_the_published_figures(name):
    model = on_meta(name)
    for size, figure in GMACS[name].items():
        digits = len(figure.partition(".")[2])
        assert f"{cost(model, size).macs / 1e9:.{digits}f}" == figure, size


def test_macs_give_the_papers_compute():
    # ViT paper, Table 6: exaFLOPs of pre-training on 303 million pictures
    for name, epochs, exaflops in [("B/16", 7, 224), ("L/32", 7, 196), ("L/16", 14, 1567)]:
        flops = 6 * cost(on_meta(name)).macs * 303e6 * epochs
        assert flops / 1e18 == pytest.approx(exaflops, rel=3e-3)
    assert 6 * cost(on_meta("H/14")).macs * 303e6 * 14 / 1e18 == pytest.approx(4262, rel=3e-3)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_layer_has_the_parameters_that_bear_its_name(name):
    model = small_variant(name)
    layers = cost(model).layers
    assert len({layer.name for layer in layers}) == len(layers)
    state = dict(model.named_parameters())
    for layer in layers:
        own = {key for key in state if key == layer.name or key.rpartition(".")[0] == layer.name}
        assert layer.parameters == sum(state.pop(key).numel() for key in own), layer.name
    assert not state, "parameters that no layer counts"


@pytest.mark.parametrize("name", VARIANTS)
def test_macs_are_those_that_torch_counts(name):
    # On the meta device attention is counted by torch; the fused CPU kernel is not.
    model = small_variant(name).to("meta").requires_grad_(False)
    images = torch.empty(
        1, model.config.in_channels, *height_width(model.image_size), device="meta"
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images, tape=Tape(only="normed"))  # of all tokens, as papers count
    assert counter.get_total_flops() == 2 * cost(model).macs


@pytest.mark.parametrize("name", VARIANTS)
def test_activations_are_what_autograd_keeps(name):
    model = small_variant(name).train()
    set_drop_path_draws(model, torch.ones(4, len(drop_paths(model))))  # nothing is dropped
    images = torch.randn(4, model.config.in_channels, *height_width(model.image_size))
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        # indices are those of all images together
        if storage.data_ptr() not in own and tensor.dtype != torch.int64:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(images)
    measured = sum(size for size, _ in kept.values()) / 4 / len(images)
    # The largest difference is the query of attention pooling, one for the whole batch.
    assert cost(model).activations == pytest.approx(measured, rel=1e-3)


def test_the_anatomy_of_vit_base():
    layers = cost(on_meta("B/16")).layers
    named = {layer.name: layer for layer in layers}
    shapes = [layer.shape for layer in layers]
    assert shapes[:5] == [(224, 224, 3), (14, 14, 768), (196, 768), (197, 768), (197, 768)]
    block = [layer for layer in layers if layer.name.startswith("blocks.5.")]
    assert [(layer.name.removeprefix("blocks.5."), layer.shape) for layer in block] == [
        ("norm1", (197, 768)),
        ("attn.qkv", (197, 2304)),
        ("attention", (12, 197, 197)),
        ("attn.proj", (197, 768)),
        ("norm2", (197, 768)),
        ("mlp.fc1", (197, 3072)),
        ("mlp.fc2", (197, 768)),
    ]
    assert sum(layer.parameters for layer in block) == 7_087_872
    assert shapes[-3:] == [(197, 768), (768,), (1000,)]
    assert named["head"].macs == 768_000
    assert named["blocks.0.attention"].macs == 2 * 197 * 197 * 768
    assert named["patch_embed.proj"].macs == 196 * 16 * 16 * 3 * 768


def test_shapes_are_those_on_the_tape():
    for name in VARIANTS:
        model = small_variant(name)
        height, width = height_width(model.image_size)
        tape = Tape()
        model(torch.zeros(1, model.config.in_channels, height, width), tape=tape)
        named = {layer.name: layer.shape for layer in cost(model).layers}
        alike = {
            "patches": "patches",
            "blocks.0.attention": "blocks.0.attention",
            "blocks.0.mlp.fc1": "blocks.0.mlp.hidden",
            "blocks.0.mlp.fc2": "blocks.0.out",
            "pool.attention": "pool.attention",
            "pooled": "pooled",
            "head": "logits",
        }
        for ours, taped in alike.items():
            if ours in named and not (taped.endswith("hidden") and model.config.gated_mlp):
                assert named[ours] == tuple(tape[taped].shape[1:]), (name, ours)


def test_another_size_costs_more_but_has_the_same_parameters():
    model = on_meta("B/16")
    assert cost(model, 384).parameters == cost(model).parameters == 86_567_656
    assert cost(model, 384).macs == cost(on_meta("B/16", image_size=384)).macs
    assert cost(model, (160, 320)).layers[1].shape == (10, 20, 768)


def test_a_config_is_enough():
    assert cost(ViTConfig(**SIZES["gigantic"], patch_size=14)).parameters == 1_844_440_680


def test_errors():
    with pytest.raises(Error, match="use 224 or 240"):
        cost(on_meta("B/16"), 225)
    with pytest.raises(Error, match="no cost formula for Stranger"):
        cost(type("Stranger", (), {})())
