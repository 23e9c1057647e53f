"""Fresh weights are the paper's own (vit_jax/models_vit.py), tensor by tensor.

torch's and timm's defaults are others: see the comment at each test.
"""

import math

import pytest
import torch

from vitrail.models.vit import VisionTransformer, ViTConfig

WIDTH, HIDDEN = 192, 768


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return VisionTransformer(
        ViTConfig(
            patch_size=16,
            depth=2,
            width=WIDTH,
            heads=3,
            mlp_width=HIDDEN,
            pool="map",
            class_token=True,
            registers=8,
            pre_logits=True,
            layer_scale=0.1,
            position_on_prefix=False,
        )
    )


def is_uniform(tensor, bound):
    """Uniform within the bound: reaches it, does not pass it, and has the deviation of it."""
    assert 0.995 * bound < tensor.abs().max() <= bound
    assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert abs(tensor.mean()) < 0.02 * bound


def is_lecun_normal(tensor, fan_in):
    """Deviation 1/sqrt(fan in) after being cut at two deviations of the uncut normal.

    torch's trunc_normal_ alone would come out 12 % too small.
    """
    assert tensor.std().item() == pytest.approx(fan_in**-0.5, rel=0.02)
    cut = 2 * fan_in**-0.5 / 0.8796
    assert 0.98 * cut < tensor.abs().max() <= cut * (1 + 1e-5)


def test_patches(model):
    is_lecun_normal(model.patch_embed.proj.weight, 3 * 16 * 16)
    assert model.patch_embed.proj.bias.abs().max() == 0


def test_queries_keys_and_values_each_by_themselves(model):
    # Xavier on the stacked matrix (timm's "jax", torch's MultiheadAttention) is 1.41 times smaller.
    for block in model.blocks:
        for matrix in block.attn.qkv.weight.chunk(3):
            is_uniform(matrix, math.sqrt(3 / WIDTH))
        is_uniform(block.attn.proj.weight, math.sqrt(3 / WIDTH))
        assert block.attn.qkv.bias.abs().max() == 0
        assert block.attn.proj.bias.abs().max() == 0


def test_mlps(model):
    for mlp in [*(block.mlp for block in model.blocks), model.attn_pool.mlp]:
        for linear in (mlp.fc1, mlp.fc2):
            is_uniform(linear.weight, math.sqrt(6 / (WIDTH + HIDDEN)))
            assert 0 < linear.bias.abs().max() < 1e-5
            assert linear.bias.std().item() == pytest.approx(1e-6, rel=0.2)


def test_positions_tokens_and_scales(model):
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.02)
    assert model.pos_embed.abs().max() > 0.06  # a whole normal, not one cut at two deviations
    assert model.cls_token.abs().max() == 0
    assert model.reg_token.std().item() == pytest.approx(0.02, rel=0.1)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        if "gamma" in name:
            assert (parameter == torch.tensor(0.1)).all(), name


def test_attention_pooling(model):
    pool = model.attn_pool
    bound = math.sqrt(6 / (1 + WIDTH))  # jax's fans of a tensor [1 1 d]: 1 and d
    assert 0.9 * bound < pool.latent.abs().max() <= bound
    for matrix in (pool.q.weight, *pool.kv.weight.chunk(2), pool.proj.weight):
        is_uniform(matrix, math.sqrt(3 / WIDTH))
    for linear in (pool.q, pool.kv, pool.proj):
        assert linear.bias.abs().max() == 0


def test_head_is_zero_and_so_are_the_first_logits(model):
    is_lecun_normal(model.pre_logits.fc.weight, WIDTH)
    assert model.pre_logits.fc.bias.abs().max() == 0
    assert model.head.weight.abs().max() == 0
    assert model.head.bias.abs().max() == 0
    assert model.eval()(torch.randn(1, 3, 224, 224)).abs().max() == 0


def test_the_seed_decides():
    def first(seed):
        torch.manual_seed(seed)
        return VisionTransformer(ViTConfig(depth=1, width=32, heads=2, mlp_width=64)).state_dict()

    one, again, other = first(1), first(1), first(2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["pos_embed"], other["pos_embed"])


@pytest.mark.parametrize("position", ["learned", "sincos2d"])
def test_a_model_from_the_meta_device_can_be_initialised_later(position):
    config = ViTConfig(
        depth=1, width=32, heads=2, mlp_width=64, position=position, layer_scale=1e-4
    )
    torch.manual_seed(3)
    expected = VisionTransformer(config).state_dict()
    with torch.device("meta"):
        model = VisionTransformer(config)
    model.to_empty(device="cpu")
    for tensor in [*model.parameters(), *model.buffers()]:
        torch.nn.init.constant_(tensor, 7.0)
    torch.manual_seed(3)
    model.reset_parameters()
    for name, tensor in model.state_dict().items():
        if "weight" in name or "pos_embed" in name or "gamma" in name:
            assert tensor.abs().max() < 7, name
    # Construction draws torch's own defaults first, so only what is not random can be compared.
    for name in ("cls_token", "blocks.0.norm1.weight", "blocks.0.ls1.gamma", "norm.bias"):
        assert torch.equal(model.state_dict()[name], expected[name])
    if position == "sincos2d":
        assert torch.equal(model.pos_embed, expected["pos_embed"])
