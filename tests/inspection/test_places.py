"""Where tokens lie, against the models' own convolutions and against every model's own tape."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.contract.reduced import build, pictures, shared, small_models
from vitrail.inspection.attention import mean_distance
from vitrail.inspection.look import hear
from vitrail.inspection.places import Places, layers_of, pooled_windows, windows
from vitrail.models.bit_resnet import BiTResNet
from vitrail.models.tape import Tape
from vitrail.models.zoo import create_model

SMALL = small_models()
every_small = pytest.mark.parametrize("name", sorted(SMALL))


def has_attention(name: str) -> bool:
    return bool(layers_of(shared(name)))


@every_small
@pytest.mark.parametrize("width", [1, 2])
def test_layers_are_those_of_the_tape_and_rows_sum_to_one(name, width):
    model = shared(name)
    images = pictures(model, batch=1, width=width)
    tape = Tape(only="*.attention")
    with torch.no_grad():
        model(images, tape=tape)
    layers = layers_of(model, (images.shape[-2], images.shape[-1]))
    recorded = [key for key in tape if key != "pool.attention"]
    assert [layer.name for layer in layers] == recorded
    for layer in layers:
        attention = tape[layer.name]
        assert attention.shape[1:] == (layer.heads, layer.queries.tokens, layer.keys.tokens)
        torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
        assert (np.diff(layer.keys.y) >= 0).all()
        for place in (layer.queries, layer.keys):
            assert place.x[0] > -1
            assert place.x[-1] < images.shape[-1] + 1
    assert bool(layers) == (not isinstance(model, BiTResNet) and type(model).__name__ != "ResNet")


@every_small
def test_logits_are_the_same_with_inspection_and_without(name):
    model = shared(name)
    images = pictures(model, batch=1)
    with torch.no_grad():
        plain = model(images)
        heard = hear(model, images, layers_of(model), maps=True)
        single = build(name).float()
        plain_single = single(images.float())
        heard_single = hear(single, images.float(), layers_of(single))
    torch.testing.assert_close(heard.logits, plain, rtol=1e-10, atol=1e-10)
    scale = float(plain_single.abs().max())
    assert float((heard_single.logits - plain_single).abs().max()) <= 1e-5 * max(1.0, scale)
    assert len(heard.maps) == len(layers_of(model))


def ramp(height: int, width: int) -> torch.Tensor:
    """The centres of all pixels, y and x, float64 [2 h w]."""
    y = torch.arange(height, dtype=torch.float64) + 0.5
    x = torch.arange(width, dtype=torch.float64) + 0.5
    return torch.stack([y[:, None].expand(height, width), x.expand(height, width)])


def averaged(coordinates: torch.Tensor, convolution: torch.nn.Conv2d) -> torch.Tensor:
    """The mean coordinates in each window of a convolution; NaN where it sees the padding."""
    kernel = convolution.kernel_size
    weight = torch.full((1, 1, *kernel), 1 / (kernel[0] * kernel[1]), dtype=torch.float64)
    padding, stride = convolution.padding[0], convolution.stride[0]
    padded = F.pad(coordinates[:, None], (padding,) * 4, value=float("nan"))
    return F.conv2d(padded, weight, stride=stride)[:, 0]


def check_places(places: Places, coordinates: torch.Tensor) -> None:
    assert places.grid == tuple(coordinates.shape[1:])
    inner = coordinates.isfinite().all(0)
    assert inner.any()
    y = torch.from_numpy(places.y)[:, None].expand_as(inner)
    x = torch.from_numpy(places.x).expand_as(inner)
    torch.testing.assert_close(y[inner], coordinates[0][inner], rtol=0, atol=1e-9)
    torch.testing.assert_close(x[inner], coordinates[1][inner], rtol=0, atol=1e-9)


def filled(places: Places) -> torch.Tensor:
    """The coordinates of a grid as [2 rows columns]."""
    y, x = torch.from_numpy(places.y), torch.from_numpy(places.x)
    return torch.stack([y[:, None].expand(places.grid), x.expand(places.grid)])


@pytest.mark.parametrize("size", [(64, 96), (70, 83)])
def test_cvt_places_are_the_centres_of_its_convolutions(size):
    model = create_model("cvt_13_224", kv_strides=[2, [1, 2], 2], depths=[1, 2, 1])
    layers, coordinates = layers_of(model, size), ramp(*size)
    for stage, part in enumerate(model.stages):
        coordinates = averaged(coordinates, part.patch_embed.proj)
        of_stage = [layer for layer in layers if layer.stage == stage]
        for layer, block in zip(of_stage, part.blocks, strict=True):
            check_places(layer.queries, coordinates)
            keys = averaged(filled(layer.queries), block.attn.conv_proj_k.conv)
            check_places(layer.keys, keys)
        coordinates = filled(of_stage[0].queries)


@pytest.mark.parametrize("name", ["pvt_tiny", "pvt_v2_b0", "pvt_v2_b2_li"])
@pytest.mark.parametrize("size", [(64, 96), (100, 67)])
def test_pvt_places_are_the_centres_of_its_convolutions(name, size):
    model = create_model(name)
    layers, coordinates = layers_of(model, size), ramp(*size)
    for stage in range(4):
        if name.startswith("pvt_v2"):
            embed = model.patch_embed if stage == 0 else model.stages[stage].downsample
        else:
            embed = getattr(model, f"patch_embed{stage + 1}")
        coordinates = averaged(coordinates, embed.proj)
        layer = next(layer for layer in layers if layer.stage == stage)
        check_places(layer.queries, coordinates)
        coordinates = filled(layer.queries)
        attention = model.blocks_of(stage)[0].attn
        if attention.linear:
            check_places(layer.keys, F.adaptive_avg_pool2d(coordinates, 7))
        elif attention.reduces:
            check_places(layer.keys, averaged(coordinates, attention.sr))
        else:
            assert layer.keys is layer.queries


def test_t2t_botnet_and_vit_places():
    vit = layers_of(create_model("vit_tiny_patch16_224"), (32, 48))[0].queries
    assert (vit.y.tolist(), vit.x.tolist(), vit.prefix) == ([8, 24], [8, 24, 40], 1)
    t2t = layers_of(create_model("t2t_vit_t_14"), (224, 224))
    assert [layer.queries.grid for layer in t2t[:3]] == [(56, 56), (28, 28), (14, 14)]
    # windows of 7 pixels from -2 on: the first one's middle is pixel 1; then every second token
    assert [layer.queries.x[0] for layer in t2t[:3]] == [1.5, 1.5, 1.5]
    assert [layer.queries.x[1] for layer in t2t[:3]] == [5.5, 9.5, 17.5]
    botnet = layers_of(create_model("botnet50_224"), (224, 224))
    assert [layer.queries.grid for layer in botnet] == [(14, 14), (7, 7), (7, 7)]
    # 7x7, 3x3 and 3x3 convolutions padded by half: pixel 0, 16, 32...; then the mean of two
    assert botnet[0].queries.y[:2].tolist() == [0.5, 16.5]
    assert botnet[1].queries.y[:2].tolist() == [8.5, 40.5]


def test_a_hybrids_tokens_lie_where_its_gradients_do():
    # Random weights: the pixels that a token hears are spread around its place.
    torch.manual_seed(0)
    model = create_model("vit_base_r50_s16_224", depth=1, num_classes=3).eval()
    for part in model.modules():  # a new block is its shortcut
        if isinstance(part, torch.nn.GroupNorm):
            torch.nn.init.constant_(part.weight, 0.3)
    places = layers_of(model)[0].queries
    assert places.grid == (14, 14)
    found = []
    for row, column in [(5, 8), (7, 7), (8, 5)]:
        images = torch.randn(1, 3, 224, 224, requires_grad=True)
        tape = Tape(only="patches")
        model(images, tape=tape)
        tape["patches"][0, row * 14 + column].sum().backward()
        heat = images.grad[0].square().sum(0).double()
        y = float((heat.sum(1) * (torch.arange(224) + 0.5)).sum() / heat.sum())
        x = float((heat.sum(0) * (torch.arange(224) + 0.5)).sum() / heat.sum())
        found += [y - places.y[row], x - places.x[column]]
    assert abs(np.mean(found)) < 3


def test_distance_of_reduced_attention_is_the_double_loop():
    model = shared("pvt_tiny")
    images = pictures(model, batch=1)
    layers, tape = layers_of(model), Tape(only="*.attention")
    with torch.no_grad():
        model(images, tape=tape)
        heard = hear(model, images, layers)
    side = images.shape[-1]
    # stage 1: tokens of 8 pixels; keys of 4 x 4 tokens each, the convolution's kernel and stride
    layer = next(layer for layer in layers if layer.stage == 1)
    index = layers.index(layer)
    n, m, by = side // 8, side // 8 // 4, 4
    attention = tape[layer.name][0]
    assert attention.shape[1:] == (n * n, m * m)
    for head in range(attention.shape[0]):
        total = 0.0
        for i in range(n * n):
            for j in range(m * m):
                y = (i // n + 0.5) * 8 - (j // m + 0.5) * 8 * by
                x = (i % n + 0.5) * 8 - (j % m + 0.5) * 8 * by
                total += float(attention[head, i, j]) * (y * y + x * x) ** 0.5
        assert float(heard.distance[index][0, head]) == pytest.approx(total / n**2, rel=1e-6)


def test_distance_of_strided_attention_is_the_double_loop_class_token_left_out():
    model = shared("cvt_13_224")
    images = pictures(model, batch=1, height=2)
    size = (images.shape[-2], images.shape[-1])
    layers, tape = layers_of(model, size), Tape(only="*.attention")
    with torch.no_grad():
        model(images, tape=tape)
    layer = layers[-1]
    assert layer.queries.prefix == layer.keys.prefix == 1
    attention = tape[layer.name][0]
    (rows, columns), (r, c) = layer.queries.grid, layer.keys.grid
    assert (r, c) == ((rows + 1) // 2, (columns + 1) // 2)
    for head in range(attention.shape[0]):
        total = 0.0
        for i in range(rows * columns):
            weights = attention[head, 1 + i, 1:]
            for j in range(r * c):
                # key j is the middle of a 3x3 window upon token 2j, sixteen pixels each
                y = (i // columns - 2 * (j // c)) * 16
                x = (i % columns - 2 * (j % c)) * 16
                total += float(weights[j] / weights.sum()) * (y * y + x * x) ** 0.5
        found = mean_distance(attention[None], layer.distances, 1)[0, head]
        assert float(found) == pytest.approx(total / (rows * columns), rel=1e-6)


def test_windows_by_hand():
    assert windows(4, 2, 2, 2).tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
    overlapping = windows(5, 3, 3, 2, 1)
    expected = [[0.5, 0.25, 0, 0, 0], [0, 0.25, 0.5, 0.25, 0], [0, 0, 0, 0.25, 0.5]]
    np.testing.assert_allclose(overlapping, expected)
    # every place counts alike in all windows together; only an even side's last one is seen less
    np.testing.assert_allclose(windows(21, 11, 3, 2, 1).sum(0), 0.5)
    np.testing.assert_allclose(windows(20, 10, 3, 2, 1).sum(0), [0.5] * 19 + [0.25])
    # pooling that reaches beyond the map means what is there
    assert windows(3, 2, 2, 2).tolist() == [[0.5, 0.5, 0], [0, 0, 1]]
    with torch.no_grad():
        row = torch.arange(16.0)[None, None]
        pooled = F.adaptive_avg_pool1d(row, 7)[0, 0].numpy()
    np.testing.assert_allclose(pooled_windows(16, 7) @ np.arange(16.0), pooled, rtol=1e-6)
