"""BoTNet: its attention against loops and against timm's, its counts, and what a user counts on."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tests.reference.torchvision_stub  # noqa: F401  (before timm)
from tests.conftest import randomise
from tests.models.oracles import attention_share, difference
from vitrail import Error, Recorded, Tape
from vitrail.models.base import height_width
from vitrail.models.botnet import MapAttention, SqueezeExcite
from vitrail.models.cost import cost
from vitrail.models.zoo import create_model, from_config, list_models, resolve

TOLERANCE = 1e-11
SMALL = {
    "depths": (1, 1, 2),
    "widths": (16, 32, 64),
    "stem_width": 8,
    "num_classes": 7,
    "image_size": 64,
}
T = {"attention_stride": 1, "squeeze": 0.25, "activation": "silu"}
VARIANTS = {
    "BoT50": {},
    "S1": {"attention_stride": 1},
    "T": T,
    "T, no head": {**T, "num_classes": 0, "depths": (1, 2, 1)},
    "absolute": {"position": "absolute"},
    "content only, not square": {"position": "none", "image_size": (50, 90)},
    "odd and not square": {"image_size": (72, 100), "in_channels": 1},
    "convolutions": {"last_stage": "convolution"},
    "gated convolutions": {**T, "last_stage": "convolution"},
}


def small(name: str, seed: int = 0, **fields):
    """A small model in float64 with every tensor random and attention that is not flat."""
    model = from_config("botnet", {**SMALL, **VARIANTS[name], **fields}).double()
    randomise(model, seed)
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
# Counts. BoT50 and S1: computed from the layout. The T-models' published counts (their second
# number, in millions) exceed the published layout's by 0.49 to 0.50 million for every block of
# attention, whatever the model; where that comes from is not known. The third number is what
# another implementation of the layout, in flax, reports: within 0.5 % of ours (a gate as wide as a
# share of the width that enters the block, instead of the one that leaves it, would explain it).
# The published multiply-adds of the T-models are reproduced to 1 %.

COUNTS = {
    "botnet50_224": (20_852_008, 20.8, None),
    "botnet50_s1_224": (20_859_176, 20.8, None),
    "botnet_t3_224": (30_500_696, 33.5, 30.4),
    "botnet_t4_224": (51_739_544, 54.7, 51.6),
    "botnet_t5_256": (69_131_672, 75.1, 69.0),
    "botnet_t6_320": (47_917_400, 53.9, 47.8),
    "botnet_t7_384": (69_180_824, 75.1, 69.0),
}
# Ours and the published, in billions. The 4.27 cited for S1 is no count of its layout: its last
# stage works on 196 places instead of 49, and T3, whose 7.3 agrees, is S1 with three blocks more.
GMACS = {
    "botnet50_224": (4.021, 4.0),
    "botnet50_s1_224": (5.410, None),
    "botnet_t3_224": (7.233, 7.3),
    "botnet_t4_224": (10.948, 10.9),
    "botnet_t5_256": (19.252, 19.3),
    "botnet_t6_320": (23.227, 23.3),
    "botnet_t7_384": (45.632, 45.8),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_macs_beside_the_published(name):
    parameters, published, flax = COUNTS[name]
    model = on_meta(name)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert cost(model).parameters == parameters
    ours, reported = GMACS[name]
    assert f"{cost(model).macs / 1e9:.3f}" == f"{ours:.3f}"
    if reported is not None:
        assert ours == pytest.approx(reported, rel=0.01)
    if flax is None:
        assert parameters / 1e6 == pytest.approx(published, abs=0.06)
    else:
        assert 0.49 < (published - parameters / 1e6) / model.config.depths[-1] < 0.51
        assert parameters / 1e6 == pytest.approx(flax, rel=5e-3)


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
    images = images_for(model, batch=16).float()
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
    # the batch's statistics and the tables by distance are there once, not for every image
    assert cost(model).activations == pytest.approx(measured, rel=3e-3)


# ---------------------------------------------------------------------------------------------
# The attention


def attention(position: str, grid=(3, 5), heads=2, width=8) -> MapAttention:
    layer = MapAttention(width, heads, grid, position).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return layer


def by_loops(layer: MapAttention, x: Tensor) -> Tensor:
    """The same, place by place: logits = q.(k + row table + column table), q scaled before."""
    b, c, rows, columns = x.shape
    heads, inner = layer.heads, c // layer.heads
    weight = layer.qkv.weight[:, :, 0, 0]
    out = torch.zeros_like(x)
    places = [(i, j) for i in range(rows) for j in range(columns)]
    for n in range(b):
        for head in range(heads):
            own = slice(head * inner, (head + 1) * inner)
            query, key, value = (weight[part * c : (part + 1) * c][own] for part in range(3))
            for i, j in places:
                q = (query @ x[n, :, i, j]) * inner**-0.5
                logits = []
                for k, m in places:
                    sum_ = key @ x[n, :, k, m]
                    if layer.position == "relative":
                        sum_ = sum_ + layer.rel_height[k - i + rows - 1]
                        sum_ = sum_ + layer.rel_width[m - j + columns - 1]
                    elif layer.position == "absolute":
                        sum_ = sum_ + layer.abs_height[k] + layer.abs_width[m]
                    logits.append(q @ sum_)
                weights = torch.stack(logits).softmax(0)
                for share, (k, m) in zip(weights, places, strict=True):
                    out[n, own, i, j] += share * (value @ x[n, :, k, m])
    return out


@pytest.mark.parametrize("position", ["relative", "absolute", "none"])
def test_attention_is_that_of_loops_over_places(position):
    layer = attention(position)
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    with torch.no_grad():
        expected, tape = by_loops(layer, x), Tape()
        assert difference(layer(x), expected) < TOLERANCE
        assert difference(layer(x, tape), expected) < TOLERANCE
    assert tape["attention"].shape == (2, 2, 15, 15)


def timm_twin(layer: MapAttention, grid, scale_pos_embed=True) -> nn.Module:
    from timm.layers.bottleneck_attn import BottleneckAttn

    width = layer.qkv.in_channels
    twin = BottleneckAttn(
        width, feat_size=grid, num_heads=layer.heads, scale_pos_embed=scale_pos_embed
    ).double()
    with torch.no_grad():
        twin.qkv.weight.copy_(layer.qkv.weight)
        twin.pos_embed.height_rel.copy_(layer.rel_height)
        twin.pos_embed.width_rel.copy_(layer.rel_width)
    return twin


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (7, 2)])
def test_attention_is_timms_where_timm_scales_the_positions_too(grid):
    layer = attention("relative", grid, heads=2, width=16)
    x = torch.randn(2, 16, *grid, dtype=torch.float64)
    with torch.no_grad():
        assert difference(layer(x), timm_twin(layer, grid)(x)) < TOLERANCE
        # timm's default leaves them unscaled, which is another attention
        assert difference(layer(x), timm_twin(layer, grid, False)(x)) > 1e-2


def swapped_pairs(state):
    q, k, v = state["qkv.weight"].chunk(3)
    state["qkv.weight"] = torch.cat([q, v, k])


def axes_swapped(state):
    state["rel_height"], state["rel_width"] = state["rel_width"], state["rel_height"]


def mirrored(state):
    state["rel_width"] = state["rel_width"].flip(0)


def shifted(state):
    state["rel_height"] = state["rel_height"].roll(1, 0)


@pytest.mark.parametrize("mutate", [swapped_pairs, axes_swapped, mirrored, shifted])
def test_a_wrong_attention_is_found_a_hundred_times_over(mutate):
    layer = attention("relative", (4, 4), width=16)
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        right = timm_twin(layer, (4, 4))(x)
        state = {key: tensor.clone() for key, tensor in layer.state_dict().items()}
        mutate(state)
        layer.load_state_dict(state)
        assert difference(layer(x), right) > 100 * TOLERANCE


@pytest.mark.parametrize(
    "change", [{"activation": "silu"}, {"norm_eps": 1e-6}, {"heads": 2}, {"position": "none"}]
)
def test_another_choice_is_another_model(change):
    base = {} if "position" in change else {"position": "none"}
    model = small("BoT50", **base)
    images = images_for(model)
    other = from_config("botnet", {**SMALL, **base, **change}).double()
    tables = other.load_state_dict(model.state_dict(), strict=False).unexpected_keys
    assert all(".rel_" in name for name in tables)
    with torch.no_grad():
        assert difference(other(images), model(images)) > 100 * TOLERANCE


# ---------------------------------------------------------------------------------------------
# The blocks


def test_a_block_averages_after_attention_and_activates_its_projection():
    """The first block of the last stage, step by step, at an odd size."""
    model = small("odd and not square")
    block, x = model.layer3[0], torch.randn(2, 32, 9, 13, dtype=torch.float64)
    with torch.no_grad():
        inner = block.bn1(block.conv1(x)).relu()
        inner = block.attn(inner)
        pooled = torch.zeros(2, 16, 5, 7, dtype=torch.float64)
        for i in range(5):
            for j in range(7):
                pooled[:, :, i, j] = inner[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3))
        inner = block.bn3(block.conv3(block.bn2(pooled).relu()))
        projection = block.downsample[1](block.downsample[0](x)).relu()
        assert difference(block(x), (inner + projection).relu()) < TOLERANCE
        second = model.layer3[1]
        x = block(x)
        inner = second.attn(second.bn1(second.conv1(x)).relu())
        inner = second.bn3(second.conv3(second.bn2(inner).relu()))
        assert difference(second(x), (inner + x).relu()) < TOLERANCE


def test_blocks_of_convolutions_are_gated_in_the_t_models():
    block = small("T").layer2[0]
    x = torch.randn(2, 16, 8, 8, dtype=torch.float64)
    silu = nn.functional.silu
    with torch.no_grad():
        inner = silu(block.bn2(block.conv2(silu(block.bn1(block.conv1(x))))))
        inner = block.bn3(block.conv3(inner))
        squeezed = inner.mean((2, 3), keepdim=True)
        inner = inner * torch.sigmoid(block.se.fc2(torch.relu(block.se.fc1(squeezed))))
        assert difference(block(x), silu(inner + block.downsample(x))) < TOLERANCE
    assert block.se.fc1.out_channels == 8
    assert on_meta("botnet_t3").layer1[0].se.fc1.out_channels == 16  # a share of 0.0625
    assert not any(".se." in name for name in dict(small("T").layer3.named_parameters()))


# ---------------------------------------------------------------------------------------------
# What a user may count on


@torch.no_grad()
def test_with_convolutions_in_the_last_stage_it_is_a_resnet():
    model = small("convolutions")
    fields = {name: SMALL[name] for name in SMALL}
    resnet = from_config("resnet", fields).double()
    resnet.load_state_dict(model.state_dict())  # the same names and shapes
    assert difference(model(images_for(model)), resnet(images_for(model))) < TOLERANCE
    attends = {name for name in small("BoT50").state_dict() if ".attn." in name}
    assert attends
    assert not attends & set(model.state_dict())


def test_names():
    assert list_models("botnet*") == list(COUNTS)
    for written, name in {
        "botnet50": "botnet50_224",
        "botnet_t7": "botnet_t7_384",
        "BoT50-S1": "botnet50_s1_224",
        "BoTNet-T5": "botnet_t5_256",
        "botnet50_320": "botnet50_320",
    }.items():
        assert resolve(written)[0] == name
    model = on_meta("botnet_t6")
    assert model.image_size == 320
    assert model.layer4[0].attn.rel_height.shape == (39, 128)
    assert on_meta("botnet50").layer4[1].attn.rel_width.shape == (13, 128)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"last_stage": "convolutions"}, "did you mean 'convolution'"),
        ({"position": "relativ"}, "position cannot be 'relativ'; did you mean 'relative'"),
        ({"heads": 3}, "3 heads do not divide a width of 512"),
        ({"attention_stride": 3}, "attention_stride is 1 or 2, not 3"),
        ({"squeeze": 2.0}, "squeeze is a share"),
        ({"depths": (2,), "widths": (64,)}, "a stage of convolutions before"),
        ({"squeze": 0.1}, "no field 'squeze'; did you mean 'squeeze'"),
    ],
)
def test_a_wrong_field_is_said_in_a_sentence(fields, sentence):
    with pytest.raises(Error, match=sentence):
        create_model("botnet50", **fields)


def test_the_tape_and_the_maps():
    for name, n in [("BoT50", 16), ("T", 64)]:
        model, tape = small(name), Tape()
        images = images_for(model)
        with torch.no_grad():
            torch.testing.assert_close(
                model(images, tape=tape), model(images), rtol=1e-11, atol=1e-11
            )
        assert list(tape) == [
            "stem",
            "stages.0.blocks.0.out",
            "stages.1.blocks.0.out",
            "stages.2.blocks.0.attention",
            "stages.2.blocks.0.out",
            "stages.2.blocks.1.attention",
            "stages.2.blocks.1.out",
            "pooled",
            "logits",
        ]
        assert tape["stages.2.blocks.0.attention"].shape == (2, 4, 64, 64)
        assert tape["stages.2.blocks.1.attention"].shape == (2, 4, n, n)
        sums = tape["stages.2.blocks.1.attention"].sum(-1)
        torch.testing.assert_close(sums, torch.ones_like(sums))
        named = {layer.name: layer.shape for layer in cost(model).layers}
        assert named["stages.2.blocks.1.attention"] == (4, n, n)
        maps = model.feature_maps(images)
        assert maps.strides == ([4, 8, 16] if name == "BoT50" else [4, 8, 8])
        assert [64 // m.shape[-1] for m in maps] == maps.strides
        assert 0.02 < attention_share(model, images) < 0.95


@pytest.mark.parametrize("name", ["BoT50", "T", "absolute"])
def test_other_sizes_and_a_picture_alone(name):
    model = small(name)
    for size in (64, 96, (40, 75)):
        images = images_for(model, size, batch=4)
        with torch.no_grad():
            together = model(images)
            alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(alone, together, rtol=1e-9, atol=1e-9)


def test_tables_are_resized_linearly_about_their_centre():
    model = small("BoT50")
    layer = model.layer3[0].attn  # made for 8x8: distances -7..7
    x = torch.randn(1, 16, 12, 5, dtype=torch.float64)
    larger = MapAttention(16, 4, (12, 5), "relative").double()

    def stretched(table: Tensor, rows: int) -> Tensor:
        out = torch.zeros(rows, table.shape[1], dtype=table.dtype)
        for i in range(rows):
            place = (i - (rows - 1) / 2) * len(table) / rows + (len(table) - 1) / 2
            place = min(max(place, 0.0), len(table) - 1.0)
            below = int(place)
            above = min(below + 1, len(table) - 1)
            out[i] = table[below] + (place - below) * (table[above] - table[below])
        return out

    with torch.no_grad():
        larger.qkv.weight.copy_(layer.qkv.weight)
        larger.rel_height.copy_(stretched(layer.rel_height, 23))
        larger.rel_width.copy_(stretched(layer.rel_width, 9))
        assert difference(layer(x), larger(x)) < TOLERANCE
    torch.testing.assert_close(larger.rel_height[11], layer.rel_height[7])


@pytest.mark.parametrize("name", ["BoT50", "T", "absolute"])
def test_every_parameter_has_a_gradient_and_checkpointing_gives_the_same(name):
    model = small(name).train()
    for part in model.modules():
        if isinstance(part, SqueezeExcite):  # its few ReLUs open: a closed one has no gradient
            nn.init.constant_(part.fc1.bias, 3.0)
    images, gradients = images_for(model), []
    for model.checkpointing in (False, True):
        model.zero_grad()
        model(images).logsumexp(1).sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for key, gradient in gradients[0].items():
        assert gradient.isfinite().all(), key
        assert gradient.abs().max() > 0, key
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-8, atol=1e-11)


def test_compiles_and_exports_whole():
    model = small("T", depths=(1, 1), widths=(16, 32), attention_stride=2).float()
    images = images_for(model, (32, 48)).float()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-4)
        batch = {0: torch.export.Dim("batch", min=1, max=64)}
        recorded = Recorded(model, "stages.1.blocks.*.attention")
        program = torch.export.export(recorded, (images,), dynamic_shapes={"images": batch})
        other = images_for(model, (32, 48), batch=5).float()
        logits, maps = program.module()(other)
        torch.testing.assert_close(logits, model(other), rtol=1e-4, atol=1e-4)
        assert len(maps) == 1
    torch.compiler.reset()


def test_first_weights():
    model = create_model("botnet50", depths=(1, 1, 1, 2), num_classes=3)
    layer = model.layer4[0].attn
    assert layer.qkv.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert layer.rel_height.std().item() == pytest.approx(128**-0.5, rel=0.1)
    assert abs(layer.rel_height.mean().item()) < 0.01
    for block in (*model.layer3, *model.layer4):
        assert not block.bn3.weight.any()
    assert model.depth_of("layer4.0.attn.rel_width") == 4
    assert model.depth_of("fc.weight") == model.layers == 6
