"""PVT and PVT v2 against the authors' logits, timm and transformers, and what a user counts on."""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import randomise
from tests.models.authors import cases, drawn, images_of, logits_of
from tests.models.oracles import attention_share, difference
from tests.reference.torchvision_stub import timm
from vitrail import Error, Recorded, Tape
from vitrail.models.base import height_width
from vitrail.models.cost import cost
from vitrail.models.parts import drop_paths, set_drop_path_draws
from vitrail.models.zoo import create_model, from_config, list_models, resolve
from vitrail.weights.load import load_weights

TOLERANCE = 1e-11
SMALL = {
    "depths": (2, 1, 2, 1),
    "widths": (16, 32, 40, 64),
    "heads": (1, 2, 5, 8),
    "mlp_ratios": (3, 2, 2, 2),
    "num_classes": 7,
    "image_size": 64,
}
VARIANTS = {
    "pvt": ("pvt", {}),
    "pvt, not square": ("pvt", {"image_size": (64, 100)}),
    "pvt, dropout": ("pvt", {"dropout": 0.1, "qkv_bias": False}),
    "pvt, no head": ("pvt", {"num_classes": 0, "activation": "relu"}),
    "v2": ("pvt_v2", {}),
    "v2, not square": ("pvt_v2", {"image_size": (61, 90), "in_channels": 1}),
    "v2, dropout": ("pvt_v2", {"dropout": 0.1, "activation": "quick_gelu"}),
    "v2, linear": ("pvt_v2", {"linear": True}),
    "v2, linear, no head": ("pvt_v2", {"linear": True, "num_classes": 0, "drop_path": 0.2}),
}
FAMILIES = ["pvt", "v2", "v2, linear"]


def small(name: str, seed: int = 0, **fields):
    """A small model in float64 with every tensor random."""
    family, variant = VARIANTS[name]
    model = from_config(family, {**SMALL, **variant, **fields}).double()
    # Linear attention sees means over pooled cells, which are nearly alike.
    randomise(model, seed, attention=400.0 if getattr(model.config, "linear", False) else 4.0)
    return model


def images_for(model, size=None, batch=2, seed=1) -> Tensor:
    height, width = height_width(size or model.image_size)
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, model.config.in_channels, height, width)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def on_meta(name, **fields):
    with torch.device("meta"):
        return create_model(name, **fields)


# ---------------------------------------------------------------------------------------------
# Counts: parameters as computed for the papers' tables, billions of multiply-adds as reported
# (PVT by the authors' README, PVT v2 by timm, whose counter takes norms, pooling and more besides
# the products: up to 0.75 % above the products alone, which stand beside them).

COUNTS = {
    "pvt_tiny": (13_229_288, 1.933, 1.9),
    "pvt_small": (24_485_864, 3.816, 3.8),
    "pvt_medium": (44_208_104, 6.659, 6.7),
    "pvt_large": (61_369_320, 9.814, 9.8),
    "pvt_v2_b0": (3_666_760, 0.566, 0.57),
    "pvt_v2_b1": (14_009_000, 2.108, 2.12),
    "pvt_v2_b2": (25_362_856, 4.027, 4.05),
    "pvt_v2_b2_li": (22_553_512, 3.889, 3.91),
    "pvt_v2_b3": (45_238_696, 6.897, 6.92),
    "pvt_v2_b4": (62_556_072, 10.101, 10.14),
    "pvt_v2_b5": (81_956_008, 11.717, 11.76),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_macs_are_the_published_ones(name):
    parameters, products, reported = COUNTS[name]
    model = on_meta(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert cost(model).parameters == parameters
    assert f"{cost(model).macs / 1e9:.3f}" == f"{products:.3f}"
    if "v2" in name:
        assert 0 < 1 - products / reported < 7.5e-3
    else:
        assert f"{products:.1f}" == f"{reported:.1f}"


@pytest.mark.parametrize("name", VARIANTS)
def test_every_layer_has_the_parameters_that_bear_its_name(name):
    model = small(name)
    layers, state = cost(model).layers, dict(model.named_parameters())
    assert len({layer.name for layer in layers}) == len(layers)
    for layer in layers:
        own = {key for key in state if key == layer.name or key.rpartition(".")[0] == layer.name}
        assert layer.parameters == sum(state.pop(key).numel() for key in own), layer.name
    assert not state, "parameters that no layer counts"


@pytest.mark.parametrize("name", VARIANTS)
def test_macs_are_those_that_torch_counts(name):
    model = small(name).to("meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images_for(model, batch=1).to("meta"))
    assert counter.get_total_flops() == 2 * cost(model).macs


@pytest.mark.parametrize("name", VARIANTS)
def test_activations_are_what_autograd_keeps(name):
    model = small(name).float().train()
    set_drop_path_draws(model, torch.ones(4, len(drop_paths(model))))  # nothing is dropped
    images = images_for(model, batch=4).float()
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(images)
    measured = sum(size for size, _ in kept.values()) / 4 / len(images)
    assert cost(model).activations == pytest.approx(measured, rel=1e-3)


# ---------------------------------------------------------------------------------------------
# Names

NAMES = {
    "PVT-Tiny": "pvt_tiny",
    "PVT-Large": "pvt_large",
    "PVTv2-B0": "pvt_v2_b0",
    "PVTv2-B2-Li": "pvt_v2_b2_li",
    "pvt_small_384": "pvt_small_384",
    "pvt_v2_b3_320": "pvt_v2_b3_320",
}


def test_names():
    assert len(list_models("pvt*")) == 11
    for written, name in NAMES.items():
        assert resolve(written)[0] == name
    assert on_meta("pvt_small_384").pos_embed1.shape == (1, 96 * 96, 64)
    with pytest.raises(Error, match="did you mean 'pvt_v2_b2_li'"):
        create_model("pvt_v2_b2_lin")
    crops = {name: on_meta(name, depths=(1, 1, 1, 1)).preprocessing.crop for name in COUNTS}
    assert {crops[name] for name in crops if "v2" in name} == {0.9}
    assert {crops[name] for name in crops if "v2" not in name} == {0.875}


def test_listed_v2_are_timms():
    for name in ("pvt_v2_b0", "pvt_v2_b2_li"):
        with torch.device("meta"):
            theirs = timm.create_model(name, num_classes=1000)
        ours = on_meta(name)
        assert {n: p.shape for n, p in ours.state_dict().items()} == {
            n: p.shape for n, p in theirs.state_dict().items()
        }, name
        assert ours.preprocessing.mean == theirs.pretrained_cfg["mean"]
        assert ours.preprocessing.crop == theirs.pretrained_cfg["crop_pct"]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"heads": (1, 2, 3, 8)}, "3 heads do not divide a width of 320"),
        ({"depths": (1, 2)}, "widths has 4 stages and depths has 2"),
        ({"widths": (64, 128, 320, 0)}, "widths are whole numbers from 1"),
        ({"reductions": (8, 4, 2, 2)}, "the last stage has a class token"),
        ({"image_size": 30}, "image size 30x30 is too small: use at least 32x32"),
        ({"activation": "gleu"}, "activation cannot be 'gleu'; did you mean 'gelu'"),
        ({"drop_path": 1.0}, "drop_path is a share"),
        ({"linear": True}, "no field 'linear'"),
    ],
)
def test_a_wrong_field_is_said_in_a_sentence(fields, sentence):
    with pytest.raises(Error, match=sentence):
        create_model("pvt_tiny", **fields)


def test_the_smallest_pictures():
    for name, side in [("pvt", 32), ("v2", 29), ("v2, linear", 5)]:
        model = small(name)
        assert model(images_for(model, side)).isfinite().all()
        if side > 5:
            with pytest.raises(Error, match=f"too small: use at least {side}x{side}"):
                model(images_for(model, (64, side - 1)))


# ---------------------------------------------------------------------------------------------
# The same logits


def authors_weights(case) -> dict[str, Tensor]:
    endings = ("attn.q.weight", "attn.kv.weight", *(f"pos_embed{i}" for i in range(1, 5)))
    shapes = case["tensors"].items()
    return {
        n: drawn(n, tuple(shape), case["seed"], dict.fromkeys(endings, 4.0)) for n, shape in shapes
    }


AUTHORS = [(family, name) for family in ("pvt", "pvt_v2") for name in cases(family)]


@pytest.mark.parametrize(("family", "name"), AUTHORS)
def test_logits_are_the_authors(family, name):
    case = cases(family)[name]
    model = from_config(family, case["config"]).double()
    report = load_weights(model, authors_weights(case))
    assert report.family == "pvt"
    assert set(report.matched) == set(model.state_dict())
    with torch.no_grad():
        assert difference(model(images_of(case)), logits_of(case)) < TOLERANCE
    assert 0.1 < attention_share(model, images_of(case)) < 0.97


def timm_twin(model):
    c = model.config
    twin = timm.models.pvt_v2.PyramidVisionTransformerV2(
        in_chans=c.in_channels,
        num_classes=c.num_classes,
        depths=c.depths,
        embed_dims=c.widths,
        num_heads=c.heads,
        sr_ratios=c.reductions,
        mlp_ratios=c.mlp_ratios,
        qkv_bias=c.qkv_bias,
        linear=c.linear,
    )
    twin = twin.to(next(model.parameters()).dtype).eval()
    assert set(twin.state_dict()) == set(model.state_dict())
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("size", [64, (50, 77), (37, 96)])
@pytest.mark.parametrize("fields", [{}, {"linear": True}, {"qkv_bias": False}])
def test_logits_are_timms_with_every_tensor_random(fields, size):
    ours = small("v2", **fields)
    theirs, images = timm_twin(ours), images_for(ours, size)
    with torch.no_grad():
        assert difference(ours(images), theirs(images)) < TOLERANCE
        pyramids = zip(
            ours.feature_maps(images),
            theirs.forward_intermediates(images, intermediates_only=True),
            strict=True,
        )
        assert all(difference(mine, other) < TOLERANCE for mine, other in pyramids)
    assert 0.1 < attention_share(ours, images) < 0.9


def transformers_twin(model):
    from transformers import PvtConfig, PvtForImageClassification

    from vitrail.weights.pvt import transformers_rules
    from vitrail.weights.rules import to_theirs

    c = model.config
    config = PvtConfig(
        image_size=c.image_size,
        num_channels=c.in_channels,
        depths=c.depths,
        sequence_reduction_ratios=c.reductions,
        hidden_sizes=c.widths,
        num_attention_heads=c.heads,
        mlp_ratios=c.mlp_ratios,
        layer_norm_eps=c.norm_eps,
        qkv_bias=c.qkv_bias,
        num_labels=c.num_classes,
    )
    twin = PvtForImageClassification(config).to(next(model.parameters()).dtype).eval()
    twin.load_state_dict(to_theirs(transformers_rules(c), model.state_dict()))
    return twin


@pytest.mark.parametrize(
    "fields",
    [
        {"embed_norm_eps": 1e-6},
        {"norm_eps": 1e-4, "embed_norm_eps": 1e-4, "qkv_bias": False, "in_channels": 1},
        {"embed_norm_eps": 1e-6, "depths": (1, 1, 1, 3), "image_size": 96},
    ],
)
def test_logits_are_transformers_with_every_tensor_random(fields):
    ours = small("pvt", **fields)
    theirs, images = transformers_twin(ours), images_for(ours)
    with torch.no_grad():
        assert difference(ours(images), theirs(images).logits) < TOLERANCE
    assert 0.1 < attention_share(ours, images) < 0.9


def test_logits_are_the_same_with_first_weights_in_float32():
    v2 = from_config("pvt_v2", SMALL)
    v1 = from_config("pvt", {**SMALL, "embed_norm_eps": 1e-6})
    images = images_for(v2).float()
    with torch.no_grad():
        torch.testing.assert_close(v2(images), timm_twin(v2)(images), rtol=0, atol=1e-5)
        torch.testing.assert_close(v1(images), transformers_twin(v1)(images)[0], rtol=0, atol=1e-5)


# ---------------------------------------------------------------------------------------------
# Each mutation is a mistake that a port could make; each must be far outside the tolerance.


def swapped_pairs(state):
    for name in state:
        if ".kv." in name:
            state[name] = torch.cat(state[name].chunk(2)[::-1])


def zeroed(ending):
    def mutate(state):
        hit = [name for name in state if name.endswith(ending)]
        assert hit
        for name in hit:
            state[name] = torch.zeros_like(state[name])

    return mutate


def turned(ending):
    def mutate(state):
        hit = [name for name in state if name.endswith(ending)]
        assert hit
        for name in hit:
            state[name] = state[name].transpose(2, 3).contiguous()

    return mutate


def rolled(name):
    def mutate(state):
        state[name] = state[name].roll(1, dims=1)

    return mutate


def nothing(state):
    pass


MUTATIONS = {
    "k and v swapped": ("pvt", {}, swapped_pairs),
    "one eps for all norms": ("pvt", {"embed_norm_eps": 1e-6}, nothing),
    "torch's eps in the blocks": ("pvt", {"norm_eps": 1e-5}, nothing),
    "tanh GELU": ("pvt", {"activation": "gelu_tanh"}, nothing),
    "quick GELU": ("pvt", {"activation": "quick_gelu"}, nothing),
    "scale by the full width": ("pvt", {"attention_scale": "width"}, nothing),
    "positions of the first stage shifted": ("pvt", {}, rolled("pos_embed1")),
    "positions of the last stage shifted": ("pvt", {}, rolled("pos_embed4")),
    "class token not read": ("pvt", {}, zeroed("cls_token")),
    "reduction turned": ("pvt", {}, turned("attn.sr.weight")),
    "v2: k and v swapped": ("v2", {}, swapped_pairs),
    "v2: one eps for all norms": ("v2", {"embed_norm_eps": 1e-6}, nothing),
    "v2: tanh GELU": ("v2", {"activation": "gelu_tanh"}, nothing),
    "v2: scale by the full width": ("v2", {"attention_scale": "width"}, nothing),
    "v2: depthwise convolution turned": ("v2", {}, turned("dwconv.weight")),
    "v2: no bias of the depthwise convolution": ("v2", {}, zeroed("dwconv.bias")),
    "v2: a stage's norm without its bias": ("v2", {}, zeroed("stages.1.norm.bias")),
    "linear: tanh GELU": ("v2, linear", {"activation": "gelu_tanh"}, nothing),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_model_is_found_a_hundred_times_over(name):
    variant, wrong, mutate = MUTATIONS[name]
    model = small(variant)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    mutate(state)
    config = {**dataclasses.asdict(model.config), **wrong}
    mutated = from_config(VARIANTS[variant][0], config).double()
    mutated.load_state_dict(state)
    images = images_for(model)
    with torch.no_grad():
        assert difference(mutated(images), model(images)) > 100 * TOLERANCE


@pytest.mark.parametrize(
    "part",
    ["patch_embed.proj", "stages.1.downsample.proj", "stages.0.blocks.0.mlp.dwconv"],
)
def test_another_padding_is_found(part):
    model = small("v2")
    images = images_for(model)
    with torch.no_grad():
        right = model(images)
        layer = model.get_submodule(part)
        layer.padding_mode = "circular"
        layer._reversed_padding_repeated_twice = [layer.padding[0]] * 4
        assert difference(model(images), right) > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("stages.0.blocks.0.mlp", {"relu": torch.nn.Identity()}),
        ("stages.2.blocks.1.attn", {"linear": False}),
    ],
)
def test_a_missing_step_of_the_linear_form_is_found(part, change):
    model = small("v2, linear")
    images = images_for(model)
    with torch.no_grad():
        right = model(images)
        for name, value in change.items():
            setattr(model.get_submodule(part), name, value)
        assert difference(model(images), right) > 100 * TOLERANCE


# ---------------------------------------------------------------------------------------------
# What a user may count on


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tape(name):
    model, tape = small(name), Tape()
    images = images_for(model)
    prefix = int(name == "pvt")
    with torch.no_grad():
        plain = model(images)
        torch.testing.assert_close(model(images, tape=tape), plain, rtol=1e-12, atol=1e-12)
    keys = [49, 49, 49, 49] if name == "v2, linear" else [4, 4, 4, 4 + prefix]
    expected = {"patches": (2, 256, 16)}
    for stage, depth in enumerate(SMALL["depths"]):
        n, width = (256, 64, 16, 4 + prefix)[stage], SMALL["widths"][stage]
        for block in range(depth):
            where = f"stages.{stage}.blocks.{block}"
            expected[f"{where}.attention"] = (2, SMALL["heads"][stage], n, keys[stage])
            expected[f"{where}.mlp.hidden"] = (2, n, width * SMALL["mlp_ratios"][stage])
            expected[f"{where}.out"] = (2, n, width)
    if prefix:
        expected["normed"] = (2, 5, 64)
    expected |= {"pooled": (2, 64), "logits": (2, 7)}
    assert [(key, tuple(tensor.shape)) for key, tensor in tape.items()] == list(expected.items())
    named = {layer.name: layer.shape for layer in cost(model).layers}
    for key, tensor in tape.items():
        if key in named:
            assert named[key] == tuple(tensor.shape[1:]), key
    sums = tape["stages.1.blocks.0.attention"].sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_patches_have_no_position_yet():
    model, tape = small("pvt"), Tape(only="patches")
    images = images_for(model)
    with torch.no_grad():
        model(images, tape=tape)
        bare = model.patch_embed1(images)
    torch.testing.assert_close(tape["patches"], bare, rtol=0, atol=0)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [64, (80, 45)])
def test_a_picture_alone_and_in_a_batch_gives_the_same(name, size):
    model = small(name)
    images = images_for(model, size, batch=4)
    with torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(alone, together, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", FAMILIES)
def test_feature_maps(name):
    model = small(name)
    with torch.no_grad():
        maps = model.feature_maps(images_for(model, (64, 128)))
    assert maps.strides == [4, 8, 16, 32]
    assert [tuple(m.shape[1:]) for m in maps] == [
        (16, 16, 32),
        (32, 8, 16),
        (40, 4, 8),
        (64, 2, 4),
    ]


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_has_a_gradient_and_checkpointing_gives_the_same(name):
    model = small(name).train()
    images = images_for(model)
    gradients = []
    for model.checkpointing in (False, True):
        model.zero_grad()
        model(images).logsumexp(1).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for key, gradient in gradients[0].items():
        assert gradient.isfinite().all(), key
        # the bias of the keys moves all logits of a query alike, which softmax does not see
        assert gradient.abs().max() > 0, key
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-9, atol=1e-12)


TWO_STAGES = {
    "depths": (1, 1),
    "widths": (8, 16),
    "heads": (1, 2),
    "mlp_ratios": (2, 2),
    "reductions": (4, 1),
}


@pytest.mark.parametrize("name", ["pvt", "v2, linear"])
def test_compiles_and_exports_whole(name):
    model = small(name, **TWO_STAGES).float()
    images = images_for(model, (64, 40)).float()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    with torch.no_grad():
        expected, plain, taped = model(images), Tape(), Tape()
        torch.testing.assert_close(compiled(images), expected, rtol=1e-5, atol=1e-5)
        if name == "pvt":
            model(images, tape=plain)
            compiled(images, tape=taped)
            assert list(taped) == list(plain)
        batch = {0: torch.export.Dim("batch", min=1, max=64)}
        recorded = Recorded(model, "stages.*.attention")
        program = torch.export.export(recorded, (images,), dynamic_shapes={"images": batch})
        other = images_for(model, (64, 40), batch=5).float()
        logits, maps = program.module()(other)
        torch.testing.assert_close(logits, model(other), rtol=1e-5, atol=1e-5)
        assert len(maps) == 2
    torch.compiler.reset()


def test_depth_and_drop_path():
    v1, v2 = small("pvt", drop_path=0.5), small("v2", drop_path=0.5)
    for model, expected in [
        (
            v1,
            {
                "patch_embed1.proj.weight": 0,
                "pos_embed1": 0,
                "block1.0.attn.q.weight": 1,
                "block1.1.norm1.bias": 2,
                "pos_embed2": 3,
                "block2.0.attn.kv.weight": 3,
                "patch_embed4.norm.weight": 6,
                "cls_token": 6,
                "block4.0.mlp.fc1.bias": 6,
                "norm.weight": 7,
                "head.bias": 7,
            },
        ),
        (
            v2,
            {
                "patch_embed.norm.weight": 0,
                "stages.0.blocks.1.attn.sr.weight": 2,
                "stages.0.norm.bias": 2,
                "stages.2.downsample.proj.weight": 4,
                "stages.2.blocks.1.norm2.weight": 5,
                "stages.2.norm.weight": 5,
                "stages.3.norm.weight": 6,
                "head.weight": 7,
            },
        ),
    ]:
        assert model.layers == 7
        assert {name: model.depth_of(name) for name in expected} == expected
        assert {model.depth_of(name) for name in model.state_dict()} == set(range(8))
        rates = [path.rate for path in drop_paths(model)]
        assert rates == pytest.approx([0.5 * i / 5 for i in range(1, 6) for _ in range(2)])


def test_first_weights_are_the_authors():
    v1 = create_model("pvt_tiny", depths=(1, 1, 1, 1))
    for tensor in (v1.pos_embed1, v1.block1[0].mlp.fc1.weight, v1.head.weight):
        assert tensor.std().item() == pytest.approx(0.02, rel=0.05)
    assert v1.cls_token.abs().max() > 0
    bound = (3 * 16) ** -0.5  # torch's own for a convolution
    assert v1.patch_embed1.proj.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    v2 = create_model("pvt_v2_b0", depths=(1, 1, 1, 1))
    assert v2.patch_embed.proj.weight.std().item() == pytest.approx((2 / 49 / 32) ** 0.5, rel=0.05)
    depthwise = v2.stages[3].blocks[0].mlp.dwconv.weight
    assert depthwise.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)
    for model in (v1, v2):
        for name, tensor in model.named_parameters():
            if name.endswith("bias") and ("norm" in name or "attn.q" in name or "head" in name):
                assert not tensor.any(), name
