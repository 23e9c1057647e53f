"""MAE against numbers that the authors' own code gave (tests/data_reference/mae.json)."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.conftest import randomise
from tests.models.authors import cases, fill, images_of
from vitrail.kit.errors import Error
from vitrail.models.zoo import create_model, from_config
from vitrail.training.objectives import Example, MaskedAutoencoder

CASES = cases("mae")


def ours(case) -> tuple:
    config = {
        **case["config"],
        "num_classes": 0,
        "position": "sincos2d_mae",
        "pool": "mean",
        "class_token": True,
    }
    model = from_config("vit", config)
    table = model.pos_embed.clone()
    decoder = MaskedAutoencoder(
        model, case["share"], case["normalize_pixels"], tuple(case["decoder"])
    )
    for part in (model.double(), decoder.double()):
        fill(part, case["seed"])
    model.pos_embed.copy_(table)  # the authors fix it in float32 too
    return model, decoder


@pytest.mark.parametrize("name", CASES)
def test_it_draws_and_loses_what_the_authors_code_does(name):
    case = CASES[name]
    model, decoder = ours(case)
    images = images_of(case)
    with torch.no_grad():
        noise = torch.tensor(case["noise"], dtype=torch.float64)
        drawn, removed = decoder.draw(model, model.project(images), noise)
        loss = decoder.compare(drawn, removed, images)
    assert removed.tolist() == case["removed"]
    theirs = torch.tensor(case["drawn"], dtype=torch.float64)
    torch.testing.assert_close(drawn[0], theirs, rtol=1e-6, atol=1e-6)
    assert loss.item() == pytest.approx(case["loss"], rel=1e-7)


def test_names_are_the_authors():
    model, decoder = ours(CASES["normalised pixels"])
    assert {name.split(".")[0] for name in decoder.state_dict()} == {
        "mask_token",
        "decoder_embed",
        "decoder_blocks",
        "decoder_norm",
        "decoder_pred",
    }
    assert {"cls_token", "pos_embed", "norm.weight"} <= set(model.state_dict())


def test_a_step_is_a_function_of_its_samples_and_trains_all_that_it_should():
    model, decoder = ours(CASES["normalised pixels"])
    model.float(), decoder.float()
    randomise(model)
    images = torch.randn(2, 3, 16, 16)
    zeros = torch.zeros(2, dtype=torch.int64)

    def loss(epoch: int) -> torch.Tensor:
        batch = Example(images, zeros, epochs=zeros + epoch, indices=torch.arange(2))
        return decoder(model, batch).value

    assert torch.equal(loss(0), loss(0))
    assert not torch.equal(loss(0), loss(1))
    loss(0).backward()
    trained = [*model.named_parameters(), *decoder.named_parameters()]
    assert not [name for name, p in trained if p.requires_grad and p.grad is None]


def test_relative_positions_are_refused():
    model = from_config("vit", {**CASES["normalised pixels"]["config"], "position": "relative"})
    with pytest.raises(Error, match="added at the input"):
        MaskedAutoencoder(model)


@pytest.mark.parametrize("name", ["vit_nano_patch7_28", "vit_tiny_r_s16_p8_224"])
def test_macs_are_those_of_what_is_computed(name):
    size = 28 if "28" in name else 256
    model = create_model(name, num_classes=0, image_size=size)
    objective = MaskedAutoencoder(model, share=0.75, decoder=(24, 2, 2))
    images = torch.randn(1, 3, size, size)
    batch = Example(images, torch.zeros(1, dtype=torch.int64), epochs=[0], indices=[0])
    counter = FlopCounterMode(display=False)
    # Fused attention on the CPU is not counted.
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        objective(model, batch)
    assert objective.macs(model) == counter.get_total_flops() // 2
