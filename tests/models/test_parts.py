"""The parts: activations, drop path, dropout, and the numbers that decide them."""

import pytest
import torch
from torch import nn

from tests.models.oracles import images_for, random_model, small
from vitrail.models.parts import ACTIVATIONS, DropPath, drop_paths, set_drop_path_draws
from vitrail.models.vit import VisionTransformer


def test_activations_differ_as_published():
    x = torch.linspace(-8, 8, 160001, dtype=torch.float64)
    exact = ACTIVATIONS["gelu"]()(x)
    normal = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(exact, x * normal.cdf(x), rtol=1e-9, atol=1e-12)
    assert 4.6e-4 < (ACTIVATIONS["gelu_tanh"]()(x) - exact).abs().max() < 4.8e-4
    assert 1.9e-2 < (ACTIVATIONS["quick_gelu"]()(x) - exact).abs().max() < 2.1e-2
    torch.testing.assert_close(ACTIVATIONS["quick_gelu"]()(x), x * torch.sigmoid(1.702 * x))
    torch.testing.assert_close(ACTIVATIONS["silu"]()(x), x * torch.sigmoid(x))
    torch.testing.assert_close(ACTIVATIONS["relu"]()(x), x.clamp_min(0))


def test_draws_decide_which_samples_drop_path_drops():
    path = DropPath(0.25).train()
    path.draws = torch.tensor([0.0, 0.2499, 0.25, 0.9])
    x = torch.ones(4, 3, 2)
    out = path(x)
    assert out[0].abs().max() == out[1].abs().max() == 0
    torch.testing.assert_close(out[2:], torch.full((2, 3, 2), 1 / 0.75))


def test_drop_path_keeps_the_expectation_and_its_rate():
    path = DropPath(0.3).train()
    out = path(torch.ones(20000, 1))
    assert out.mean().item() == pytest.approx(1.0, abs=0.02)
    assert (out == 0).float().mean().item() == pytest.approx(0.3, abs=0.015)


def test_drop_path_does_nothing_in_eval_or_at_rate_zero():
    x = torch.randn(4, 3, 2)
    path = DropPath(0.9).eval()
    path.draws = torch.zeros(4)
    assert path(x) is x
    assert DropPath(0.0).train()(x) is x


def test_draws_go_to_the_sites_in_order_and_can_be_taken_away():
    model = VisionTransformer(small(depth=3, drop_path=0.2))
    # linear along the depth: the first block never drops, the others twice each
    assert [path.rate for path in drop_paths(model)] == [0.1, 0.1, 0.2, 0.2]
    draws = torch.rand(5, 4)
    set_drop_path_draws(model, draws)
    for site, path in enumerate(drop_paths(model)):
        assert torch.equal(path.draws, draws[:, site])
    set_drop_path_draws(model, None)
    assert all(path.draws is None for path in drop_paths(model))
    constant = VisionTransformer(small(depth=3, drop_path=0.2, drop_path_rule="constant"))
    assert [path.rate for path in drop_paths(constant)] == [0.2] * 6
    assert drop_paths(VisionTransformer(small())) == []
    assert drop_paths(VisionTransformer(small(depth=1, drop_path=0.2))) == []


def test_the_same_draws_give_the_same_step_and_others_another():
    model, images = random_model(small(depth=3, drop_path=0.5)).train(), images_for(small(), 8)
    draws = torch.rand(8, 4)
    set_drop_path_draws(model, draws)
    with torch.no_grad():
        first = model(images)
        torch.manual_seed(99)
        assert torch.equal(model(images), first)
        order = torch.randperm(8)
        set_drop_path_draws(model, draws[order])
        torch.testing.assert_close(model(images[order]), first[order], rtol=1e-11, atol=1e-11)
        set_drop_path_draws(model, torch.zeros(8, 4))
        dropped = model(images)
        model.blocks = model.blocks[:1]  # every branch of blocks 1 and 2 was dropped
        torch.testing.assert_close(model.eval()(images), dropped, rtol=1e-11, atol=1e-11)


def test_dropout_stands_where_the_paper_has_it():
    """After the positions, the attention's projection, the activation and the second layer."""
    model = VisionTransformer(small(depth=2, dropout=0.1, pool="map"))
    sites = {n: m.p for n, m in model.named_modules() if isinstance(m, nn.Dropout) and m.p > 0}
    expected = {"pos_drop"}
    for i in range(2):
        expected |= {f"blocks.{i}.attn.proj_drop", f"blocks.{i}.mlp.drop1", f"blocks.{i}.mlp.drop2"}
    assert set(sites) == expected
    assert set(sites.values()) == {0.1}


def test_dropout_acts_in_training_only():
    model, images = random_model(small(dropout=0.5)), images_for(small())
    with torch.no_grad():
        assert torch.equal(model(images), model(images))
        model.train()
        assert not torch.equal(model(images), model(images))


def test_attention_scale_is_by_the_head_or_by_the_width():
    by_head, by_width = (VisionTransformer(small(attention_scale=s)) for s in ("head", "width"))
    assert by_head.blocks[0].attn.scale == 16**-0.5
    assert by_width.blocks[0].attn.scale == 48**-0.5
