"""LAMB against its formula and timm's, both conventions of weight decay, Polyak averaging."""

import pytest
import torch
from torch import nn

import tests.reference.torchvision_stub  # noqa: F401  (before timm)
from vitrail.models.zoo import create_model
from vitrail.training.ema import EMA
from vitrail.training.lamb import LAMB
from vitrail.training.optim import Rates, make_optimizer, set_rate
from vitrail.training.recipe import Duration, Model, Optim, Recipe, Schedule, Tuning


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(4, 3), (5,), (2, 3, 2)]
    draws = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return [nn.Parameter(draw) for draw in draws]


def give_gradients(tensors: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for tensor in tensors:
        tensor.grad = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)


def test_lamb_is_its_formula():
    ours, lr, decay, eps = parameters(), 0.1, 0.3, 1e-6
    expected = [p.detach().clone() for p in ours]
    first = [torch.zeros_like(p) for p in expected]
    second = [torch.zeros_like(p) for p in expected]
    optimizer = LAMB(ours, lr=lr, betas=(0.9, 0.99), eps=eps, weight_decay=decay)
    for step in range(1, 6):
        give_gradients(ours, step)
        for i, weight in enumerate(expected):
            gradient = ours[i].grad
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.99 * second[i] + 0.01 * gradient**2
            m, v = first[i] / (1 - 0.9**step), second[i] / (1 - 0.99**step)
            update = m / (v.sqrt() + eps) + decay * weight
            weight -= lr * weight.norm() / update.norm() * update
        optimizer.step()
        for mine, right in zip(ours, expected, strict=True):
            torch.testing.assert_close(mine.detach(), right, rtol=1e-12, atol=1e-12)


def test_lamb_is_timms():
    from timm.optim import Lamb

    ours, theirs = parameters(), parameters()
    groups = [slice(0, 1), slice(1, 3)]
    decays = (0.05, 0.0)  # without decay there is no trust ratio in either

    def split(all_of_them):
        return [
            {"params": all_of_them[g], "weight_decay": d}
            for g, d in zip(groups, decays, strict=True)
        ]

    mine = LAMB(split(ours), lr=0.01, eps=1e-8)
    timms = Lamb(split(theirs), lr=0.01, eps=1e-8, max_grad_norm=None)
    for step in range(5):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        mine.step()
        timms.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_lamb_leaves_a_weight_of_zero_its_plain_step():
    zero = nn.Parameter(torch.zeros(2, 2))
    optimizer = LAMB([zero], lr=0.1, weight_decay=0.1)
    zero.grad = torch.ones(2, 2)
    optimizer.step()
    assert zero.flatten().tolist() == pytest.approx([-0.1] * 4)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_independent_decay_follows_the_schedule_alone(name):
    # big_vision: w <- w - s * (lr * update + decay * w); with no gradient only decay is left.
    model = create_model("vit_mu_patch16_32", 4)
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
    recipe = Optim(
        name=name, lr=1e-3, weight_decay=1e-2, decay="independent", layer_decay=0.5, clip_norm=None
    )
    optimizer = make_optimizer(model, recipe)
    weight, bias = model.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.bias
    expected = 1.0
    for share in (1.0, 0.5, 0.25):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        set_rate(optimizer, share * recipe.lr, recipe.lr)
        optimizer.step()
        expected *= 1 - share * 1e-2  # whatever the rate and the depth
    assert weight.detach().flatten()[0].item() == pytest.approx(expected, rel=1e-6)
    assert bias.detach()[0].item() == 1.0


def test_independent_decay_goes_by_the_peak_of_each_phase():
    recipe = Recipe(
        model=Model(name="vit_mu_patch16_32"),
        optim=Optim(lr=1e-3, weight_decay=1e-2, decay="independent", clip_norm=None),
        schedule=Schedule(kind="constant", warmup=Duration(0)),
        tuning=Tuning(part="head_then_all", head_for=Duration(2), head_lr=0.1),
    )
    model = create_model("vit_mu_patch16_32", 4)
    rates, optimizer = Rates(recipe, examples=100, total=4), make_optimizer(model, recipe.optim)
    model.head.weight.data.fill_(1.0)
    for step in range(4):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        set_rate(optimizer, rates(step), rates.peak(step))
        optimizer.step()
    assert model.head.weight.detach().flatten()[0].item() == pytest.approx(0.99**4, rel=1e-6)


def test_torchs_decay_at_a_thousandth_of_the_rate_is_the_other_one():
    def trained(recipe: Optim) -> torch.Tensor:
        torch.manual_seed(0)
        model = create_model("vit_mu_patch16_32", 4)
        optimizer = make_optimizer(model, recipe)
        for step in range(3):
            for i, parameter in enumerate(model.parameters()):
                generator = torch.Generator().manual_seed(10 * i + step)
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            set_rate(optimizer, recipe.lr * (1 - step / 3), recipe.lr)
            optimizer.step()
        return model.blocks[0].mlp.fc1.weight.detach()

    torchs = trained(Optim(lr=1e-3, weight_decay=0.1))
    independent = trained(Optim(lr=1e-3, weight_decay=1e-4, decay="independent"))
    torch.testing.assert_close(torchs, independent, rtol=1e-6, atol=1e-9)


# Adafactor's rate is relative to the size of the weights, and a head of zeros has almost none.
@pytest.mark.parametrize(
    ("name", "lr"), [("adamw", 0.02), ("sgd", 0.1), ("lamb", 0.02), ("adafactor", 1.0)]
)
def test_every_optimizer_goes_downhill(name, lr):
    torch.manual_seed(0)
    model = create_model("vit_mu_patch16_32", 4).train()
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    optimizer = make_optimizer(model, Optim(name=name, lr=lr))
    losses = []
    for _ in range(25):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < 0.8 * losses[0], losses


def test_polyak_averaging_has_one_decay():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    ema = EMA(model, decay=0.9, warmup=False)
    model.weight.data.fill_(0.0)
    for step in range(5):
        ema.update(step)
    assert ema.state()["weight"].item() == pytest.approx(0.9**5)
