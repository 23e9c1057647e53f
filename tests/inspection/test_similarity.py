"""CKA against its definition on all pictures at once, and patches that are planted."""

import math

import pytest
import torch

from tests.contract.reduced import pictures, shared
from tests.models.oracles import images_for, random_model, small
from vitrail.inspection.similarity import CKA, Near, layer_similarity, nearest_patches
from vitrail.inspection.tokens import tokens_of
from vitrail.kit.errors import Error
from vitrail.models.tape import Tape


def features(n: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator, dtype=torch.float64)


def related(n: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two layers that have something in common: CKA well between 0 and 1, means far from 0."""
    x = features(n, width, seed)
    mixing = features(width, width + 3, 100) / width**0.5
    return x + 5, (x @ mixing).tanh() + features(n, width + 3, seed + 50) - 2


def hsic(k: torch.Tensor, l: torch.Tensor) -> float:  # noqa: E741
    """The unbiased estimate as Song et al. (2012) write it in equation 5, in plain sums."""
    n = len(k)
    k, l = k.clone(), l.clone()  # noqa: E741
    k.fill_diagonal_(0), l.fill_diagonal_(0)
    trace = sum(float(k[i, j] * l[j, i]) for i in range(n) for j in range(n))
    sums = float(k.sum()) * float(l.sum()) / ((n - 1) * (n - 2))
    middle = 2 / (n - 2) * float((k.sum(0) * l.sum(1)).sum())
    return (trace + sums - middle) / (n * (n - 3))


def direct(x: torch.Tensor, y: torch.Tensor) -> float:
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l))


def cka(x: torch.Tensor, y: torch.Tensor, batch: int | None = None) -> float:
    counted = CKA()
    for start in range(0, len(x), batch or len(x)):
        stop = start + (batch or len(x))
        counted.update([x[start:stop]], [y[start:stop]])
    return counted.result().item()


def test_one_batch_is_the_definition():
    x, y = related(20, 6)
    assert cka(x, y) == pytest.approx(direct(x, y), rel=1e-9)
    assert 0.2 < cka(x, y) < 0.9  # or nothing would have been tested


def test_batches_are_the_quotient_of_averages():
    x, y = related(24, 6)
    parts = [(x[i : i + 8], y[i : i + 8]) for i in (0, 8, 16)]
    sums = [
        sum(hsic(a @ a.T, b @ b.T) for a, b in pairs)
        for pairs in (parts, [(a, a) for a, _ in parts], [(b, b) for _, b in parts])
    ]
    expected = sums[0] / math.sqrt(sums[1] * sums[2])
    assert cka(x, y, batch=8) == pytest.approx(expected, rel=1e-9)


def test_batches_estimate_what_all_pictures_say():
    # The unbiased estimate does not depend on the size of the batches; the biased one would.
    x, y = related(1200, 6)
    whole = cka(x, y)
    for batch in (8, 16, 60):
        assert cka(x, y, batch) == pytest.approx(whole, abs=0.03)
    # Of layers that have nothing in common batches of 8 would say 0.8 without the correction.
    assert abs(cka(features(1200, 40), features(1200, 40, 1), batch=8)) < 0.1


def test_rotation_and_scale_change_nothing():
    x, y = related(40, 6)
    turned, _ = torch.linalg.qr(features(6, 6, 7))
    assert cka(x, x @ turned) == pytest.approx(1, rel=1e-9)
    assert cka(x, 1000 * (x @ turned) + 3) == pytest.approx(1, rel=1e-9)
    assert cka(x @ turned * 0.01 - 8, y) == pytest.approx(cka(x, y), rel=1e-7)
    skewed = x * torch.tensor([1, 1, 1, 1, 1, 20.0])  # not a rotation
    assert cka(x, skewed) < 0.9


def test_single_precision_and_large_means_do_no_harm():
    x, y = related(64, 6)
    assert cka((x + 100).float(), (y - 50).float()) == pytest.approx(cka(x, y), abs=1e-4)


def test_a_short_batch_weighs_what_it_holds():
    x, y = related(20, 6)
    counted = CKA()
    counted.update([x[:16]], [y[:16]])
    counted.update([x[16:]], [y[16:]])
    assert counted.pictures == 20
    weights = [(16, x[:16], y[:16]), (4, x[16:], y[16:])]
    across, ours, theirs = (
        sum(n * hsic(a @ a.T, b @ b.T) for n, a, b in pairs)
        for pairs in (
            weights,
            [(n, a, a) for n, a, _ in weights],
            [(n, b, b) for n, _, b in weights],
        )
    )
    assert counted.result().item() == pytest.approx(across / math.sqrt(ours * theirs), rel=1e-9)


def test_layers_of_a_model_and_of_two():
    model, other = random_model(small()), shared("pvt_tiny")
    images, theirs = images_for(small(), batch=12), pictures(other, batch=12)
    tape, second = Tape(), Tape()
    with torch.no_grad():
        model(images, tape=tape), other(theirs, tape=second)
    found = layer_similarity(model, [images])
    assert found.first == found.second == ["blocks.0.out", "blocks.1.out"]
    first, last = (tape[f"blocks.{i}.out"].flatten(1) for i in range(2))
    torch.testing.assert_close(found.matrix.diag(), torch.ones(2, dtype=torch.float64))
    assert found.matrix[0, 1].item() == pytest.approx(direct(first, last), rel=1e-7)
    across = layer_similarity(model, [(images, theirs)], other)
    assert across.second == [name for name in second if name.endswith(".out")]
    assert across.matrix.shape == (2, len(across.second))
    expected = direct(last, second[across.second[2]].flatten(1))
    assert across.matrix[1, 2].item() == pytest.approx(expected, rel=1e-7)
    # A last batch that is too small is left out.
    assert layer_similarity(model, images.split(10)).pictures == 10
    alone = layer_similarity(model, [images], only="blocks.1.out")
    assert alone.matrix.shape == (1, 1)


def test_pictures_that_are_all_alike_have_no_similarity():
    counted = CKA()
    counted.update([torch.ones(6, 3)], [features(6, 3)])
    assert counted.result().isnan().all()


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(Error, match="at least 4 pictures, not 3"):
        CKA().update([features(3, 2)])
    with pytest.raises(Error, match="same pictures, not 6 and 5"):
        CKA().update([features(6, 2)], [features(5, 2)])
    with pytest.raises(Error, match="no pictures"):
        CKA().result()
    model = random_model(small())
    with pytest.raises(Error, match="at least 4 pictures"):
        layer_similarity(model, [images_for(small(), batch=3)])
    with pytest.raises(Error, match=r"has no layer 'blocks\.7\.out'"):
        layer_similarity(model, [images_for(small(), batch=4)], only="blocks.7.out")


def test_planted_copies_of_a_patch_are_found():
    tokens = features(4 * 9, 8).reshape(4, 9, 8)
    tokens[0, 7] = 3 * tokens[0, 1]  # longer, the same way
    tokens[2, 5] = tokens[0, 1] + 0.1 * features(1, 8, 9)[0]
    tokens[3, 0] = -tokens[0, 1]
    found = nearest_patches(tokens, (3, 3), (0, 0, 1), most=2)
    assert [(near.picture, near.row, near.column) for near in found] == [(0, 2, 1), (2, 1, 2)]
    assert found[0].cosine == pytest.approx(1)
    assert 0.9 < found[1].cosine < 1
    within = nearest_patches(tokens, (3, 3), (0, 0, 1), most=50, among="within")
    assert within[0] == found[0]
    assert len(within) == 8  # not the patch itself
    assert {near.picture for near in within} == {0}
    across = nearest_patches(tokens, (3, 3), (0, 0, 1), most=50, among="across")
    assert across[0] == found[1]
    assert len(across) == 27
    assert across[-1] == Near(3, 0, 0, pytest.approx(-1))


def test_copies_in_pictures_are_found_in_a_models_tokens():
    # Before attention mixes anything, the same pixels at the same position are the same token.
    model = random_model(small(position="none"))
    images = images_for(small(), batch=3)
    images[2, :, 24:32, 8:16] = images[0, :, 0:8, 16:24]
    for block in model.blocks:
        with torch.no_grad():
            block.attn.proj.weight.zero_()
    tokens = tokens_of(model, images, "blocks.1.out")[0]
    found = nearest_patches(tokens.places, tokens.grid, (0, 0, 2), most=3, among="across")
    assert (found[0].picture, found[0].row, found[0].column) == (2, 3, 1)
    assert found[0].cosine == pytest.approx(1)
    assert found[1].cosine < 0.999


def test_a_patch_that_does_not_exist_is_refused():
    with pytest.raises(Error, match="no patch 3, 0 of picture 1 among 2 pictures of 3 x 3"):
        nearest_patches(torch.zeros(2, 9, 4), (3, 3), (1, 3, 0))
    with pytest.raises(Error, match="within, across or among all"):
        nearest_patches(torch.zeros(2, 9, 4), (3, 3), (1, 2, 0), among="here")
