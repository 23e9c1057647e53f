import math

import pytest
import torch

from vitrail.models.zoo import create_model
from vitrail.training.ema import EMA
from vitrail.training.ledger import Ledger
from vitrail.training.optim import has_decay, make_optimizer, rate_at, set_rate
from vitrail.training.recipe import Optim, Schedule


def test_the_rate_warms_up_and_falls_to_zero():
    cosine = [rate_at(step, 100, 10, Schedule(kind="cosine")) for step in range(100)]
    assert cosine[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert cosine[10] == 1
    assert cosine[55] == pytest.approx(0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert cosine == cosine[:10] + sorted(cosine[10:], reverse=True)
    assert 0 < cosine[-1] < 0.001
    linear = [rate_at(step, 100, 0, Schedule(kind="linear")) for step in (0, 50, 99)]
    assert linear == pytest.approx([1, 0.5, 0.01])
    assert rate_at(99, 100, 10, Schedule(kind="constant")) == 1


def test_decay_is_for_matrices_only():
    model = create_model("vit_mu_patch16_32", 4, registers=2, layer_scale=0.1, pool="token")
    decays = {name for name, p in model.named_parameters() if has_decay(name, p)}
    assert decays == {
        "patch_embed.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
        "head.weight",
    }


def test_rates_fall_towards_the_embeddings():
    model = create_model("vit_mu_patch16_32", 4, depth=3)
    optimizer = make_optimizer(model, Optim(lr=1.0, layer_decay=0.5))
    set_rate(optimizer, 0.1, 0.1)
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert len(rates) == len(names)  # every parameter once
    assert rates["head.weight"] == pytest.approx(0.1)
    assert rates["norm.weight"] == pytest.approx(0.1)
    assert rates["blocks.2.mlp.fc1.weight"] == pytest.approx(0.1 * 0.5)
    assert rates["blocks.0.mlp.fc1.bias"] == pytest.approx(0.1 * 0.5**3)
    assert rates["pos_embed"] == pytest.approx(0.1 * 0.5**4)


def test_the_average_warms_up_and_can_be_put_on_and_off():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(0.0)
    ema = EMA(model, decay=0.9999)
    values, expected = [1.0, 2.0, 3.0, 4.0], 0.0
    for step, value in enumerate(values):
        model.weight.data.fill_(value)
        ema.update(step)
        decay = (1 + step) / (10 + step)
        expected = decay * expected + (1 - decay) * value
    with ema.applied():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 4.0


def test_an_average_of_a_short_run_is_not_its_start():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(100.0)
    ema = EMA(model, decay=0.9999)
    model.weight.data.fill_(0.0)
    for step in range(1000):
        ema.update(step)
    assert abs(ema.state()["weight"].item()) < 1e-6  # a constant 0.9999 would leave 90


def test_the_ledger_gives_the_papers_compute():
    # ViT paper, Table 6: L/16 for 14 epochs of 303M images costs 1,567 exaFLOPs
    ledger = Ledger(device="", macs_per_image=61_550_000_000, images=14 * 303_000_000)
    assert ledger.to_json()["exaflops"] == pytest.approx(1567, rel=2e-3)
