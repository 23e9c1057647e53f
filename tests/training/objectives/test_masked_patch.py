import math

import numpy as np
import pytest
import torch

from tests.commands import records
from tests.conftest import randomise
from vitrail.data.sources import open_source
from vitrail.kit.errors import Error
from vitrail.models.zoo import create_model
from vitrail.recipes.run import train
from vitrail.training.objectives import (
    Example,
    MaskedPatchPrediction,
    corrupt,
    mean_color_classes,
)


def test_color_classes_are_those_of_a_direct_computation():
    images = torch.rand(2, 3, 12, 8, generator=torch.Generator().manual_seed(0))
    found = mean_color_classes(images, 4)
    assert found.shape == (2, 6)
    assert found.dtype == torch.int64
    pixels = images.double().numpy()
    for b in range(2):
        for n in range(6):
            row, column = divmod(n, 2)
            patch = pixels[b, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            red, green, blue = (min(7, math.floor(8 * channel.mean())) for channel in patch)
            assert found[b, n] == 64 * red + 8 * green + blue


@pytest.mark.parametrize(
    ("color", "number"), [((0, 0, 0), 0), ((1, 1, 1), 511), ((0.5, 0.124, 0.126), 4 * 64 + 0 + 1)]
)
def test_color_classes_at_the_edges(color, number):
    image = torch.tensor(color)[None, :, None, None].expand(1, 3, 4, 4)
    assert mean_color_classes(image, 4).tolist() == [[number]]


def test_other_numbers_of_bits():
    image = torch.tensor([0.9, 0.1, 0.6])[None, :, None, None].expand(1, 3, 2, 2)
    assert mean_color_classes(image, 2, bits=1).tolist() == [[0b101]]


@pytest.mark.parametrize(("n", "share"), [(16, 0.5), (49, 0.15), (9, 0.5)])
def test_exactly_the_share_is_chosen_in_every_picture(n, share):
    tokens = torch.randn(20, n, 3)
    mask = torch.full((3,), 7.0)
    before = tokens.clone()
    after, chosen = corrupt(tokens, mask, torch.Generator().manual_seed(1), share)
    assert chosen.sum(1).tolist() == [round(share * n)] * 20
    assert torch.equal(tokens, before)
    assert torch.equal(after[~chosen], before[~chosen])


def test_corruption_is_80_10_10_and_others_are_of_the_same_picture_and_never_itself():
    b, n = 400, 50
    # Each token says its picture and its place.
    tokens = torch.stack(
        torch.meshgrid(torch.arange(b), torch.arange(n), indexing="ij"), -1
    ).float()
    mask = torch.tensor([-1.0, -1.0])
    after, chosen = corrupt(tokens, mask, torch.Generator().manual_seed(2))
    masked = (after == -1).all(-1)
    moved = ~masked & (after != tokens).any(-1)
    count = chosen.sum().item()
    assert not masked[~chosen].any()
    assert masked.sum().item() / count == pytest.approx(0.8, abs=0.02)
    assert moved.sum().item() / count == pytest.approx(0.1, abs=0.015)
    assert torch.equal(after[moved][:, 0], tokens[moved][:, 0])  # of the same picture
    steps = (after[moved][:, 1] - tokens[moved][:, 1]) % n
    assert steps.min() >= 1  # never itself
    assert np.bincount(steps.int(), minlength=n)[1:].min() > 0  # and any other
    # The three fates are drawn for each token by itself: pictures differ in how many are masked.
    assert masked.sum(1).float().std() == pytest.approx(math.sqrt(25 * 0.8 * 0.2), rel=0.2)


def example(size: int = 16, epochs=(0, 0), indices=(0, 1)) -> Example:
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 256, (2, size, size, 3), generator=generator, dtype=torch.uint8)
    model = create_model("vit_mu_patch4_16")
    images = model.preprocessing.normalize(pixels)
    return Example(
        images,
        torch.zeros(2, dtype=torch.int64),
        None,
        pixels,
        torch.tensor(epochs),
        torch.tensor(indices),
    )


@pytest.mark.parametrize("predict", ["color", "color4x4", "pixels"])
def test_what_is_to_be_found(predict):
    model = create_model("vit_mu_patch4_16", 0)
    batch = example()
    objective = MaskedPatchPrediction(model, predict=predict)
    wanted = objective.targets(batch)
    colors = batch.pixels.float() / 255
    row, column = 2, 1  # patch 9 of 4x4
    patch = colors[1, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
    if predict == "color":
        levels = (8 * patch.mean((0, 1))).floor()
        assert wanted[1, 9] == 64 * levels[0] + 8 * levels[1] + levels[2]
    elif predict == "color4x4":  # a cell of a 4-pixel patch is one pixel
        levels = (8 * patch).floor().clamp(max=7)
        expected = 64 * levels[..., 0] + 8 * levels[..., 1] + levels[..., 2]
        assert wanted[1, 9].tolist() == expected.flatten().tolist()
    else:
        assert wanted[1, 9].tolist() == pytest.approx((2 * patch - 1).flatten().tolist(), abs=1e-6)


def test_only_corrupted_places_are_asked_and_the_draws_follow_the_sample():
    model = create_model("vit_mu_patch4_16", 0)
    randomise(model)
    objective = MaskedPatchPrediction(model, seed=5)
    randomise(objective, 1)
    first = objective(model, example()).value
    assert torch.equal(first, objective(model, example()).value)
    assert not torch.equal(first, objective(model, example(epochs=(1, 1))).value)
    assert not torch.equal(first, objective(model, example(indices=(2, 3))).value)
    # A batch is its samples: what is corrupted does not depend on who else is in it.
    whole = example()
    halves = [
        Example(
            whole.images[i : i + 1],
            whole.labels[i : i + 1],
            None,
            whole.pixels[i : i + 1],
            whole.epochs[i : i + 1],
            whole.indices[i : i + 1],
        )
        for i in range(2)
    ]
    mean = sum(objective(model, half).value for half in halves) / 2
    torch.testing.assert_close(first, mean)


def test_every_parameter_that_is_trained_gets_a_gradient():
    model = create_model("vit_base_patch16_224", 0, 32, depth=2, width=24, heads=2, mlp_width=48)
    randomise(model)
    objective = MaskedPatchPrediction(model)
    randomise(objective)
    objective(model, example(32)).value.backward()
    trained = [*model.named_parameters(), *objective.named_parameters()]
    without = [name for name, p in trained if p.requires_grad and p.grad is None]
    assert not without


def test_a_network_of_stages_is_refused():
    with pytest.raises(Error, match="needs a plain ViT or a hybrid, not a ResNet"):
        MaskedPatchPrediction(create_model("resnet50", 0, depths=(1, 1, 1, 1)))
    with pytest.raises(Error, match="multiple of 4"):
        MaskedPatchPrediction(create_model("vit_nano_patch7_28", 0), predict="color4x4")


def test_the_loss_falls_below_the_entropy_of_the_colors(tmp_path):
    source = open_source("demo:fashion")
    images = np.stack([source.example(i).image for i in range(1024)])
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, -1)
    colors = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    counts = torch.bincount(mean_color_classes(colors, 7).flatten(), minlength=512).double()
    shares = counts[counts > 0] / counts.sum()
    entropy = float(-(shares * shares.log()).sum())
    run = train(
        (images, np.arange(1024) % 2),
        model="vit_nano_patch7_28",
        recipe="masked_patch",
        out=tmp_path / "run",
        steps=120,
        batch_size=64,
        set={"optim.lr": 3e-3, "model.depth": 2, "augment.crop": "none"},
    )
    losses = [record["loss"] for record in records(run.folder, "step")]
    assert losses[0] == pytest.approx(math.log(512), rel=1e-3)  # a head of zeros knows nothing
    assert np.mean(losses[-20:]) < 0.95 * entropy
    assert run.metrics["val"]["loss"] < entropy
    assert run.top1 is None
