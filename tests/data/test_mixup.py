"""Mixup and CutMix against direct computations."""

import numpy as np
import pytest
import torch

from vitrail.data.mixup import Mix, apply_mix, draw_mix, mix, soft_targets

IMAGES = torch.rand(4, 3, 20, 30, generator=torch.Generator().manual_seed(0))
TARGETS = soft_targets(torch.tensor([0, 2, 1, 2]), 3)


def test_mixup_mixes_with_the_one_before():
    images, targets = apply_mix(IMAGES, TARGETS, Mix(0.7))
    for i in range(4):
        torch.testing.assert_close(images[i], 0.7 * IMAGES[i] + 0.3 * IMAGES[i - 1])
        torch.testing.assert_close(targets[i], 0.7 * TARGETS[i] + 0.3 * TARGETS[i - 1])


def test_cutmix_pastes_a_box_and_counts_its_true_area():
    before = IMAGES.clone()
    images, targets = apply_mix(IMAGES, TARGETS, Mix(0.5, (0.0, 0.1, 0.5, 0.4)))
    inside = torch.zeros(20, 30, dtype=torch.bool)
    inside[0:10, 3:12] = True
    for i in range(4):
        torch.testing.assert_close(images[i], torch.where(inside, IMAGES[i - 1], IMAGES[i]))
        share = 1 - 90 / 600
        torch.testing.assert_close(targets[i], share * TARGETS[i] + (1 - share) * TARGETS[i - 1])
    assert torch.equal(IMAGES, before)


def test_draws_are_functions_of_seed_epoch_and_position():
    assert draw_mix(1, 2, 3, mixup=0.8, cutmix=1.0) == draw_mix(1, 2, 3, mixup=0.8, cutmix=1.0)
    places = [(1, 2, 3), (1, 2, 67), (1, 3, 3), (2, 2, 3)]
    assert len({draw_mix(*place, mixup=0.8).share for place in places}) == 4


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0])
def test_shares_follow_the_beta_distribution(alpha):
    shares = np.array([draw_mix(0, 0, i, mixup=alpha).share for i in range(4000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_with_both_each_batch_has_one_by_a_fair_coin():
    mixes = [draw_mix(0, 0, i, mixup=0.8, cutmix=1.0) for i in range(2000)]
    assert np.mean([one.box is not None for one in mixes]) == pytest.approx(0.5, abs=0.06)
    for one in mixes:
        if one.box is not None:
            top, left, bottom, right = one.box
            assert 0 <= top <= bottom <= 1
            assert 0 <= left <= right <= 1
            assert (bottom - top) * (right - left) <= 1 - one.share + 1e-9


def test_a_batch_is_mixed_as_often_as_asked_and_by_cutmix_as_often():
    mixes = [draw_mix(0, 0, i, mixup=0.8, cutmix=1.0, prob=0.7, switch=0.2) for i in range(3000)]
    mixed = [one for one in mixes if one is not None]
    assert len(mixed) / 3000 == pytest.approx(0.7, abs=0.05)
    assert np.mean([one.box is not None for one in mixed]) == pytest.approx(0.2, abs=0.05)
    # Where every batch is mixed, the coin for it is not tossed: the draws of old runs stay.
    always = draw_mix(0, 0, 5, mixup=0.2)
    assert always == draw_mix(0, 0, 5, mixup=0.2, prob=1.0, switch=0.9)


def test_neither_leaves_the_batch_alone():
    images, targets = mix(IMAGES, TARGETS, seed=0, epoch=0, position=0)
    assert images is IMAGES
    assert targets is TARGETS
    mixed, _ = mix(IMAGES, TARGETS, seed=0, epoch=0, position=0, mixup=1.0)
    assert not torch.equal(mixed, IMAGES)


def test_smoothed_targets_are_probabilities():
    targets = soft_targets(torch.tensor([1, 0]), 4, smoothing=0.1)
    torch.testing.assert_close(targets[0], torch.tensor([0.025, 0.925, 0.025, 0.025]))
    torch.testing.assert_close(targets.sum(1), torch.ones(2))
