"""torchvision's ViT: its layout and its forward pass written down with torch's own modules.

torchvision has no build beside this torch, so the reference is its description: an
`nn.MultiheadAttention` of each block under `self_attention`, an `nn.Sequential` under `mlp`.
"""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.conftest import randomise
from tests.weights.conftest import close
from vitrail import WeightsError, load_weights
from vitrail.kit.preprocess import IMAGENET_MEAN
from vitrail.weights.rules import to_theirs
from vitrail.weights.torchvision_vit import RULES


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(24, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(24, 3, batch_first=True)
        self.ln_2 = nn.LayerNorm(24, eps=1e-6)
        linear = (nn.Linear(24, 40), nn.Linear(40, 24))
        self.mlp = nn.Sequential(linear[0], nn.GELU(), nn.Dropout(0), linear[1], nn.Dropout(0))

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Reference(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_proj = nn.Conv2d(3, 24, 4, 4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, 24))
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.zeros(1, 10, 24))
        blocks = OrderedDict((f"encoder_layer_{i}", Block()) for i in range(2))
        self.encoder.layers = nn.Sequential(blocks)
        self.encoder.ln = nn.LayerNorm(24, eps=1e-6)
        self.heads = nn.Sequential(OrderedDict(head=nn.Linear(24, 5)))

    def forward(self, images):
        x = self.conv_proj(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1)
        x = self.encoder.layers(x + self.encoder.pos_embedding)
        return self.heads(self.encoder.ln(x)[:, 0])


@pytest.fixture
def reference():
    model = Reference().double().eval()
    randomise(model)
    return model


@pytest.mark.parametrize("old", [False, True])
def test_logits_are_those_of_the_description(tmp_path, tiny, images, reference, old):
    state = reference.state_dict()
    if old:
        pairs = ((".mlp.0.", ".mlp.linear_1."), (".mlp.3.", ".mlp.linear_2."))
        for new, before in pairs:
            state = {name.replace(new, before): tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "vit_b_16-c867db91.pth")
    model = tiny(activation="gelu_tanh", norm_eps=1e-3)
    report = load_weights(model, tmp_path / "vit_b_16-c867db91.pth")
    assert report.family == "torchvision"
    assert report.preprocessing.mean == IMAGENET_MEAN
    assert (report.preprocessing.crop, report.preprocessing.interpolation) == (0.875, "bilinear")
    assert model.config.position_resize == "bicubic_corners"
    with torch.no_grad():
        assert close(model(images()), reference(images()))
        kept = tiny(activation="gelu_tanh")
        load_weights(kept, state, numerics="keep")
        assert not close(kept(images()), reference(images()))


def test_tables_are_resized_corner_on_corner(tiny, reference):
    model = tiny(image_size=20)
    report = load_weights(model, reference.state_dict())
    assert report.resized == ["pos_embed"]
    grid = reference.encoder.pos_embedding.detach()[0, 1:].T.reshape(1, 24, 3, 3)
    grid = F.interpolate(grid, (5, 5), mode="bicubic", align_corners=True)
    torch.testing.assert_close(model.pos_embed.detach()[0, 1:], grid[0].flatten(1).T)


def test_rules_work_both_ways(tiny, reference):
    model = tiny()
    load_weights(model, reference.state_dict())
    back = to_theirs(RULES, model.state_dict())
    assert set(back) == set(reference.state_dict())
    assert all(torch.equal(tensor, reference.state_dict()[n]) for n, tensor in back.items())


def test_missing_extra_and_other_shapes_are_named(tiny, reference):
    state = dict(reference.state_dict())
    one = "encoder.layers.encoder_layer_1.self_attention.in_proj_bias"
    with pytest.raises(WeightsError, match=r"blocks\.1\.attn\.qkv\.bias"):
        load_weights(tiny(), {n: t for n, t in state.items() if n != one})
    with pytest.raises(WeightsError, match=r"encoder\.other"):
        load_weights(tiny(), {**state, "encoder.other": torch.ones(1)})
    with pytest.raises(WeightsError, match=r"blocks\.1\.attn\.qkv\.bias: \[2\]"):
        load_weights(tiny(), {**state, one: torch.ones(2)})
    with pytest.raises(WeightsError, match="head of 5 classes"):
        load_weights(tiny(num_classes=3), state)
