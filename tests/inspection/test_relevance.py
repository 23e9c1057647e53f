"""Explanations against what can be worked out: by hand, from weights, or written out in full."""

import numpy as np
import pytest
import torch

from tests.contract.reduced import pictures, shared, small_models
from tests.inspection.planted import Planted
from tests.models.oracles import images_for, random_model, small
from vitrail.inspection.draw import attention_maps
from vitrail.inspection.flow import flow
from vitrail.inspection.places import Layer, Places, layers_of
from vitrail.inspection.relevance import (
    explain,
    gradient_weighted,
    methods_of,
    over_pixels,
    predicted,
    propagate,
)
from vitrail.kit.errors import Error
from vitrail.models.tape import Tape

every_small = pytest.mark.parametrize("name", small_models())
every_attending = pytest.mark.parametrize(
    "name", [name for name in small_models() if not name.startswith("resnet")]
)
without_prefix = pytest.mark.parametrize(
    "name", [name for name in small_models() if name.startswith(("vit_nano", "pvt_v2", "botnet"))]
)
BY_ATTENTION = {"relevance", "rollout", "attention"}


def same(found, expected, relative=1e-9):
    torch.testing.assert_close(found, expected, rtol=relative, atol=relative)


# A class token and two patches, two layers of two heads. What is left of attention x gradient:
# layer 1: token 0 from 1: (max(0, .25 x 4) + max(0, 1 x -3)) / 2 = .5; 1 from 2: (.5 x 1 + 0) / 2
#          = .25; 2 from 0: (1 x .5 + .25 x 2) / 2 = .5.
# layer 2: token 0 from 0, 1, 2: .25, .5, .25.
# Then R = (I + A2)(I + A1). Its first row: (1.25, .5, .25) times
#   1   .5  0
#   0   1   .25
#   .5  0   1
# = (1.25 + .125, .625 + .5, .125 + .25) = (1.375, 1.125, .375).
FIRST = torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 3, 3)
FIRST[0][0, 0, 0, 1], FIRST[1][0, 0, 0, 1] = 0.25, 4.0
FIRST[0][0, 1, 0, 1], FIRST[1][0, 1, 0, 1] = 1.0, -3.0
FIRST[0][0, 0, 1, 2], FIRST[1][0, 0, 1, 2] = 0.5, 1.0
FIRST[0][0, 0, 2, 0], FIRST[1][0, 0, 2, 0] = 1.0, 0.5
FIRST[0][0, 1, 2, 0], FIRST[1][0, 1, 2, 0] = 0.25, 2.0
SECOND = torch.zeros(1, 2, 3, 3), torch.ones(1, 2, 3, 3)
SECOND[0][0, :, 0] = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])


def test_two_layers_worked_by_hand():
    layers = [gradient_weighted(*FIRST), gradient_weighted(*SECOND)]
    assert layers[0][0].tolist() == [[0, 0.5, 0], [0, 0, 0.25], [0.5, 0, 0]]
    assert layers[1][0].tolist() == [[0.25, 0.5, 0.25], [0, 0, 0], [0, 0, 0]]
    relevance = propagate(layers)
    assert relevance[0, 0].tolist() == [1.375, 1.125, 0.375]
    assert relevance[0, 1:].tolist() == [[0, 1, 0.25], [0.5, 0, 1]]
    # Followed from the end as one row it is the same.
    places = Places(np.array([2.0]), np.array([2.0, 6.0]), prefix=1)
    laid = [Layer(f"blocks.{i}.attention", 2, 0, places, places) for i in range(2)]
    row = torch.tensor([[1.0, 0, 0]])
    assert flow(laid, layers, row, residual=None)[0].tolist() == [[1.125, 0.375]]
    # Over the picture of 4 x 8 pixels each patch has its sixteenth.
    heat = over_pixels(torch.tensor([[[1.125, 0.375]]]), places, (4, 8))
    assert heat[0, :, :4].unique().item() == 1.125 / 16
    assert heat[0, :, 4:].unique().item() == 0.375 / 16


@pytest.mark.parametrize(
    "fields",
    [
        {"pool": "token"},
        {"pool": "token", "registers": 2},
        {"pool": "mean"},
        {"pool": "token_mean"},
        {"pool": "map"},
        {"pool": "token", "distilled": True},
    ],
    ids=str,
)
def test_relevance_equals_the_paper_written_out_in_matrices(fields):
    model, images = random_model(small(**fields)), images_for(small())
    targets = torch.tensor([4, 0, 6])
    tape = Tape(only="*attention")
    logits = model(images, tape=tape)
    for tensor in tape.values():
        tensor.retain_grad()
    logits[range(3), targets].sum().backward()
    fused = {name: (t * t.grad).clamp(min=0).mean(1) for name, t in tape.items()}
    relevance = torch.eye(fused["blocks.0.attention"].shape[-1], dtype=torch.float64).expand(
        3, -1, -1
    )
    for i in range(2):
        relevance = relevance + fused[f"blocks.{i}.attention"] @ relevance
    prefix = model.config.prefix
    if model.config.pool == "map":
        read = (fused["pool.attention"] @ relevance)[:, 0]
    elif model.config.distilled:
        read = relevance[:, :2].mean(1)
    elif model.config.pool == "token":
        read = relevance[:, 0]
    else:
        read = relevance[:, prefix:].mean(1)
        if model.config.pool == "token_mean":
            read = (read + relevance[:, 0]) / 2
    expected = (read[:, prefix:] / 64).reshape(3, 4, 4)
    expected = expected.repeat_interleave(8, 1).repeat_interleave(8, 2)
    model.zero_grad()
    found = explain(model, images, "relevance", targets)
    same(found, expected, 1e-6 if model.config.pool == "map" else 1e-12)
    assert found.flatten(1).std(1).min() > 1e-5  # not flat, or nothing would have been tested


@every_small
def test_every_family_is_explained_in_every_way_that_it_has(name):
    model, images = shared(name), pictures(shared(name))
    for method in methods_of(model):
        if method in ("smooth_gradient", "integrated_gradients"):
            continue  # many times `gradient`, tested below
        heat = explain(model, images, method)
        assert heat.shape == (2, *images.shape[-2:])
        assert heat.isfinite().all()
        assert heat.std() > 0
        assert heat.min() >= 0 or method == "gradient_x_input"
    missing = BY_ATTENTION - set(methods_of(model))
    assert missing == (BY_ATTENTION if not layers_of(model) else set())
    if missing:
        with pytest.raises(Error, match=r"has no attention.*it has gradient"):
            explain(model, images, "relevance")


@without_prefix
def test_nothing_is_lost_on_the_way_to_the_picture(name):
    model = shared(name)
    images = pictures(model, height=1.5)
    kept = explain(model, images, "rollout").sum((1, 2))
    # But what windows see beyond the border of the picture.
    beyond = sum(
        1 - min(seen.sum(1).min() for seen in layer.arrived)
        for layer in layers_of(model, (images.shape[-2], images.shape[-1]))
        if layer.arrived is not None
    )
    assert (kept <= 1 + 1e-6).all()
    assert (kept >= 1 - 2 * beyond - 1e-6).all()
    if not name.startswith("pvt"):
        same(kept, torch.ones_like(kept), 1e-6)


@every_attending
def test_what_is_attended_lies_where_it_is_in_the_picture(name):
    # Every layer looks at the key nearest to one pixel: there the heat must be.
    model = shared(name)
    size = (4 * model.config.image_size, 3 * model.config.image_size)
    layers = layers_of(model, size)
    aim = (0.7 * size[0], 0.3 * size[1])
    heads = []
    for layer in layers:
        row = np.abs(layer.keys.y - aim[0]).argmin()
        column = np.abs(layer.keys.x - aim[1]).argmin()
        weights = torch.zeros(1, layer.queries.tokens, layer.keys.tokens, dtype=torch.float64)
        weights[:, :, layer.keys.prefix + row * len(layer.keys.x) + column] = 1
        heads.append(weights)
    read = torch.zeros(1, layers[-1].queries.tokens)
    read[0, -1] = 1
    heat = over_pixels(flow(layers, heads, read, residual=0.0), layers[0].queries, size)[0]
    assert heat.sum().item() == pytest.approx(1)
    y = (heat.sum(1) * (torch.arange(size[0]) + 0.5)).sum().item()
    x = (heat.sum(0) * (torch.arange(size[1]) + 0.5)).sum().item()
    step = max(np.diff(layers[0].keys.y).max(), np.diff(layers[0].keys.x).max())
    assert abs(y - aim[0]) <= step
    assert abs(x - aim[1]) <= step


def test_a_plain_models_rollout_is_the_papers():
    model = random_model(small(registers=2)).float()
    picture = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    expected = attention_maps(model, picture) / 64
    found = explain(model, model.preprocessing.normalize(picture), "rollout")
    same(found[:, ::8, ::8], expected, 1e-6)


def test_raw_attention_is_the_class_tokens_row_in_the_last_layer():
    model, images, tape = random_model(small()), images_for(small()), Tape()
    model(images, tape=tape)
    expected = tape["blocks.1.attention"].mean(1)[:, 0, 1:].reshape(3, 4, 4) / 64
    same(explain(model, images, "attention")[:, 3::8, 5::8], expected.detach())
    pooling, tape = random_model(small(pool="map")), Tape()
    pooling(images, tape=tape)
    expected = tape["pool.attention"].mean(1)[:, 0].reshape(3, 4, 4) / 64
    same(explain(pooling, images, "attention")[:, ::8, ::8], expected.detach().float(), 1e-6)


def weights_and_pictures():
    generator = torch.Generator().manual_seed(3)
    shape = (3, 6, 5)
    weights = torch.randn(shape, generator=generator, dtype=torch.float64)
    return weights, torch.randn(2, *shape, generator=generator, dtype=torch.float64)


def test_gradients_of_a_model_whose_gradient_is_known():
    weights, images = weights_and_pictures()
    first = torch.zeros(2, dtype=torch.int64)
    linear, square = Planted(weights), Planted(weights, power=2)
    for method in ("gradient", "smooth_gradient"):
        expected = weights.abs().amax(0).expand(2, -1, -1)
        same(explain(linear, images, method, first), expected)
    same(explain(square, images, "gradient", first), (2 * images * weights).abs().amax(1))
    same(explain(linear, images, "gradient_x_input", first), (images * weights).sum(1))
    # From the mean colour to the picture: complete, and here pixel by pixel.
    same(explain(square, images, "integrated_gradients", first), (images**2 * weights).sum(1))
    # The other class hangs on nothing.
    assert explain(linear, images, "gradient", 1 - first).abs().max() == 0


def test_noise_is_averaged_away_from_a_curved_model():
    weights, images = weights_and_pictures()
    square, first = Planted(weights, power=2), torch.zeros(2, dtype=torch.int64)
    smooth, exact = (explain(square, images, m, first) for m in ("smooth_gradient", "gradient"))
    assert 0 < (smooth - exact).abs().mean() < 0.2 * exact.mean()


@pytest.mark.parametrize("name", ["resnet50", "botnet50_224"])
def test_grad_cam_where_the_head_reads_the_mean_of_the_map(name):
    # Then the map's gradient is the class's weights over the number of positions.
    model, tape = shared(name), Tape(only="stages.*.out")
    images, targets = pictures(model, height=2), torch.tensor([2, 5])
    with torch.no_grad():
        model(images, tape=tape)
    last = list(tape.values())[-1]
    heat = torch.einsum("bchw,bc->bhw", last, model.fc.weight[targets]).relu() / last[0, 0].numel()
    expected = torch.nn.functional.interpolate(heat[:, None], images.shape[-2:], mode="bilinear")
    same(explain(model, images, "grad_cam", targets), expected[:, 0].detach(), 1e-8)


def test_pictures_do_not_depend_on_their_batch_and_the_model_is_left_alone():
    model, images = random_model(small(dropout=0.5, drop_path=0.5)).train(), images_for(small())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.inference_mode():
        plain = images.clone()
    for method in methods_of(model):
        with torch.no_grad():
            together = explain(model, images, method)
            with torch.inference_mode():
                alone = explain(model, plain[1:2].clone(), method)
        same(together[1:2], alone.clone(), 1e-7)
        same(explain(model, images, method, batch_size=2), together, 1e-7)
    assert model.training
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


def test_the_class_that_is_explained_is_the_predicted_one_unless_it_is_said():
    model, images = random_model(small()), images_for(small())
    classes = predicted(model, images)
    same(explain(model, images), explain(model, images, targets=classes))
    assert (explain(model, images) - explain(model, images, targets=(classes + 1) % 7)).std() > 0


def test_what_cannot_be_explained_is_refused():
    model, images = random_model(small()), images_for(small())
    with pytest.raises(Error, match="did you mean 'relevance'"):
        explain(model, images, "relevence")
    with pytest.raises(Error, match=r"classes go from 0 to 6, not \[0, 7, 1\]"):
        explain(model, images, targets=torch.tensor([0, 7, 1]))
    with pytest.raises(Error, match="3 pictures need as many targets"):
        explain(model, images, targets=torch.tensor([0, 1]))
    with pytest.raises(Error, match=r"float \[b c h w\]"):
        explain(model, torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    with pytest.raises(Error, match="VisionTransformer has no convolutional maps"):
        explain(model, images, "grad_cam")
    with pytest.raises(Error, match="without a head"):
        explain(random_model(small(num_classes=0)), images)
    tokens = random_model(small(pool="none"))
    for method in ("relevance", "rollout", "gradient"):
        with pytest.raises(Error, match="no one class to explain"):
            explain(tokens, images, method)
