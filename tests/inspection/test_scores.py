"""Deletion and insertion against curves that are known from a model's weights."""

import itertools
import math

import pytest
import torch

from tests.inspection.planted import Planted, by_patch
from vitrail.inspection.scores import (
    BASELINES,
    baseline_of,
    curves,
    paired_difference,
    patch_of,
    patch_order,
    random_orders,
)
from vitrail.kit.errors import Error
from vitrail.models.zoo import create_model

# Three of the four patches of a picture of 4 x 4 pixels, 2 x 2 each, make up the logit: what a
# patch of value 1 adds is its entry here.
ADDS = torch.tensor([[1.0, 0.0], [2.0, -0.5]], dtype=torch.float64)
ORDER = [2, 0, 1, 3]  # by what they add


def planted() -> Planted:
    return Planted(by_patch(ADDS[None] / 12, 2)[0]).eval()


def ones(b=1) -> torch.Tensor:
    return torch.ones(b, 3, 4, 4, dtype=torch.float64)


def sigmoid(values):
    return [1 / (1 + math.exp(-value)) for value in values]


def test_the_curve_of_a_planted_model_is_the_known_one():
    model, order = planted(), torch.tensor([ORDER])
    zero = torch.zeros(1, dtype=torch.int64)
    deleted = curves(model, ones(), order, (2, 2), "deletion", "grey", targets=zero)
    expected = sigmoid([2.5, 0.5, -0.5, -0.5, 0.0])  # what is left after each patch
    assert deleted.probabilities[0].tolist() == pytest.approx(expected, rel=1e-12)
    assert deleted.shares.tolist() == [0, 0.25, 0.5, 0.75, 1]
    area = (expected[0] / 2 + sum(expected[1:4]) + expected[4] / 2) / 4
    assert deleted.areas.item() == pytest.approx(area, rel=1e-12)
    inserted = curves(model, ones(), order, (2, 2), "insertion", "grey", targets=zero)
    expected = sigmoid([0.0, 2.0, 3.0, 3.0, 2.5])
    assert inserted.probabilities[0].tolist() == pytest.approx(expected, rel=1e-12)
    # Of the other class both are what is missing to 1.
    other = curves(model, ones(), order, (2, 2), targets=1 - zero)
    torch.testing.assert_close(other.probabilities, 1 - deleted.probabilities)


def test_no_order_scores_better_than_the_true_one():
    every = torch.tensor(list(itertools.permutations(range(4))))
    images, best = ones(24), torch.tensor([ORDER]).expand(24, 4)
    for mode, sign in (("deletion", 1), ("insertion", -1)):
        true = curves(planted(), images, best, (2, 2), mode).areas
        others = curves(planted(), images, every, (2, 2), mode).areas
        assert (sign * (others - true) >= -1e-12).all()


def test_exactly_the_patches_that_were_named_are_replaced():
    # 5 x 7 pixels in patches of 2 x 3: the last row of patches is 1 high, the last column 1 wide.
    model = Planted(torch.zeros(3, 5, 7, dtype=torch.float64)).eval()
    images = torch.rand(2, 3, 5, 7, dtype=torch.float64) + 1
    order = torch.tensor([[0, 8, 4, 1, 2, 3, 5, 6, 7], [7, 6, 5, 4, 3, 2, 1, 0, 8]])
    model.seen.clear()
    curves(model, images, order, (2, 3), targets=torch.zeros(2, dtype=torch.int64))
    seen = torch.cat(model.seen).reshape(2, 10, 3, 5, 7)
    box = {0: (0, 2, 0, 3), 4: (2, 4, 3, 6), 8: (4, 5, 6, 7), 7: (4, 5, 3, 6)}
    for picture, steps in ((0, 3), (1, 1)):
        expected = images[picture].clone()
        assert torch.equal(seen[picture, 0], expected)
        for step in range(steps):
            top, bottom, left, right = box[order[picture, step].item()]
            expected[:, top:bottom, left:right] = 0  # grey, once normalised
            assert torch.equal(seen[picture, step + 1], expected)
        assert seen[picture, 9].abs().max() == 0


def test_steps_take_as_many_patches_each_whatever_the_batch():
    generator = torch.Generator().manual_seed(0)
    model = Planted(torch.randn(3, 12, 12, generator=generator, dtype=torch.float64) / 9).eval()
    images = torch.randn(5, 3, 12, 12, generator=generator, dtype=torch.float64)
    order = random_orders(5, 9, 1)[0]
    whole = curves(model, images, order, (4, 4))
    for batch_size in (1, 7, 64):
        found = curves(model, images, order, (4, 4), steps=4, batch_size=batch_size)
        assert [round(9 * share) for share in found.shares.tolist()] == [0, 2, 4, 7, 9]
        torch.testing.assert_close(found.probabilities, whole.probabilities[:, [0, 2, 4, 7, 9]])
    assert whole.probabilities[:, 0].min() >= 0.5  # the predicted class of each
    more = curves(model, images, order, (4, 4), steps=100)
    assert torch.equal(more.probabilities, whole.probabilities)


def test_patches_are_ranked_by_their_mean_heat_at_the_border_too():
    heat = torch.zeros(1, 5, 7)
    heat[0, 4, 6] = 1.0  # a patch of one pixel
    heat[0, 2:4, 3:6] = 0.5
    heat[0, 0, 0] = 0.9  # of six pixels
    assert patch_order(heat, (2, 3))[0, :3].tolist() == [8, 4, 0]
    # Equal patches do not stand in the order of reading.
    flat = patch_order(torch.zeros(2, 14, 14), (1, 1))
    assert torch.equal(flat[0], flat[1])
    assert (flat[0].diff() == 1).sum() < 20


def test_random_orders_are_orders_and_the_seed_says_which():
    drawn = random_orders(3, 16, 4, seed=5)
    assert torch.equal(drawn.sort(2)[0], torch.arange(16).expand(4, 3, 16))
    assert len({tuple(order) for order in drawn.flatten(0, 1).tolist()}) == 12
    assert torch.equal(drawn, random_orders(3, 16, 4, seed=5))
    assert not torch.equal(drawn, random_orders(3, 16, 4, seed=6))


def test_baselines_are_what_they_are_called():
    model = create_model("resnet50", num_classes=2, image_size=64)
    picture = torch.randint(0, 256, (1, 64, 48, 3), dtype=torch.uint8)
    images = model.preprocessing.normalize(picture)
    for name, value in (("grey", 127.5), ("black", 0.0)):
        flat = torch.full(picture.shape, value)
        expected = model.preprocessing.normalize(flat)
        torch.testing.assert_close(baseline_of(model, images, name), expected)
    assert baseline_of(model, images, "mean").abs().max() == 0
    blurred = baseline_of(model, images, "blur")
    assert blurred.shape == images.shape
    assert blurred.std() < images.std() / 4
    constant = torch.full_like(images, 0.7)
    torch.testing.assert_close(baseline_of(model, constant, "blur"), constant)
    point = torch.zeros(1, 3, 65, 65)
    point[0, :, 32, 32] = 1
    spread = baseline_of(model, point, "blur")[0, 0]
    torch.testing.assert_close(spread, spread.flip(0), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(spread, spread.T, rtol=1e-5, atol=1e-9)
    distance = (torch.arange(65) - 32.0).square()
    deviation = ((spread.sum(1) * distance).sum() / spread.sum()).sqrt().item()
    assert deviation == pytest.approx(65 / 8, rel=0.03)
    assert set(BASELINES) == {"grey", "mean", "black", "blur"}


def test_patches_are_the_models_own_where_it_has_some():
    assert patch_of(create_model("vit_tiny_patch16_224"), (224, 224)) == (16, 16)
    assert patch_of(create_model("vit_tiny_r_s16_p8_224"), (224, 224)) == (32, 32)
    assert patch_of(create_model("resnet50"), (224, 196)) == (16, 14)


def test_a_difference_of_pairs_has_an_interval():
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(400, generator=generator, dtype=torch.float64)
    second = first + 0.05 + 0.02 * torch.randn(400, generator=generator, dtype=torch.float64)
    found = paired_difference(second, first)
    assert found.mean == pytest.approx((second - first).mean().item())
    # The interval is that of the differences, not of the scores, which differ far more.
    half = 1.96 * (second - first).std().item() / 20
    assert found.low == pytest.approx(found.mean - half, abs=half / 4)
    assert found.high == pytest.approx(found.mean + half, abs=half / 4)


def test_what_cannot_be_scored_is_refused():
    model, order = planted(), torch.tensor([ORDER])
    with pytest.raises(Error, match="did you mean 'deletion'"):
        curves(model, ones(), order, (2, 2), "deletions")
    with pytest.raises(Error, match="did you mean 'grey'"):
        curves(model, ones(), order, (2, 2), baseline="gray")
    for wrong in (torch.tensor([[0, 1, 2]]), torch.tensor([[0, 1, 2, 2]])):
        with pytest.raises(Error, match="an order of the 4 patches"):
            curves(model, ones(), wrong, (2, 2))
