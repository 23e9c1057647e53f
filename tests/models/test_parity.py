"""Our logits are timm's and transformers', in float64 with every tensor random.

With default weights many wrong models pass: biases are zero, attention is flat, all positions are
nearly alike. So every tensor is random here, attention is checked not to be flat, and the
mutations at the end show that each of the usual mistakes would be found a hundred times over.
"""

import pytest
import torch
from einops import rearrange
from torch import Tensor

from tests.models.oracles import (
    attention_share,
    difference,
    images_for,
    random_model,
    small,
    timm_twin,
    transformers_twin,
)
from vitrail.models.vit import VisionTransformer, ViTConfig

TOLERANCE = 1e-11

CONFIGS = {
    "paper": small(),
    "not square": small(image_size=(32, 56)),
    "registers": small(registers=4, pool="mean", class_token=True),
    "registers and class token after positions": small(registers=2, position_on_prefix=False),
    "layer scale": small(layer_scale=0.1),
    "mean pooling": small(pool="mean"),
    "mean pooling, norm after": small(pool="mean", norm_after_pool=True),
    "mean pooling beside a class token": small(pool="mean", class_token=True),
    "class token, norm after": small(norm_after_pool=True),
    "attention pooling": small(pool="map"),
    "attention pooling beside registers": small(pool="map", registers=3, class_token=True),
    "no pooling": small(pool="none", class_token=True),
    "no position": small(pool="mean", position="none"),
    "tanh": small(activation="gelu_tanh", pool="map"),
    "quick": small(activation="quick_gelu"),
    "relu": small(activation="relu"),
    "silu": small(activation="silu"),
    "other eps": small(norm_eps=1e-3, pool="map"),
    "no qkv bias": small(qkv_bias=False),
    "patch 32": small(patch_size=32, image_size=96),
    "patch 14": small(patch_size=14, image_size=(42, 28)),
    "grey pictures, deep and narrow": small(in_channels=1, depth=4, width=16, heads=1),
    "no head": small(num_classes=0),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_timms_with_every_tensor_random(name):
    config = CONFIGS[name]
    ours, images = random_model(config), images_for(config)
    theirs = timm_twin(config)
    assert set(theirs.state_dict()) == set(ours.state_dict())
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert difference(ours(images), theirs(images)) < TOLERANCE
    if (images.shape[-1] // config.patch_size) > 1:
        assert 0.1 < attention_share(ours, images) < 0.8


def test_logits_are_timms_with_timms_own_first_weights_in_float32():
    config = small(image_size=64, depth=4)
    theirs = timm_twin(config).float()
    ours = VisionTransformer(config).eval()
    ours.load_state_dict(theirs.state_dict())
    images = images_for(config).float()
    with torch.no_grad():
        assert theirs(images).std() > 1e-3
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch32_384"])
def test_the_zoo_builds_what_timm_builds_under_the_name(name):
    import timm

    from vitrail.models.zoo import create_model

    ours, theirs = create_model(name, num_classes=5), timm.create_model(name, num_classes=5).eval()
    assert {n: t.shape for n, t in ours.state_dict().items()} == {
        n: t.shape for n, t in theirs.state_dict().items()
    }
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, ours.image_size, ours.image_size)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "fields"),
    [
        ((48, 64), {}),
        ((24, 40), {"registers": 2, "position_on_prefix": False}),
        ((64, 32), {"pool": "mean"}),
    ],
)
def test_another_size_at_run_time_is_timms(size, fields):
    config = small(**fields)
    ours, images = random_model(config), images_for(small(**fields, image_size=size))
    theirs = timm_twin(config, dynamic_img_size=True)
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        # timm resizes the table in float32 whatever the model is in
        assert difference(ours(images), theirs(images)) < 1e-5


TRANSFORMERS = {
    "their defaults": small(norm_eps=1e-12),
    "tanh, not square": small(activation="gelu_tanh", image_size=(32, 48)),
    "patch 32, no qkv bias": small(patch_size=32, image_size=96, qkv_bias=False, norm_eps=1e-5),
    "grey": small(in_channels=1, heads=1, depth=3),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_logits_are_transformers_with_every_tensor_random(name):
    config = TRANSFORMERS[name]
    ours, images = random_model(config), images_for(config)
    theirs = transformers_twin(ours)
    with torch.no_grad():
        assert difference(ours(images), theirs(images).logits) < TOLERANCE
    assert 0.1 < attention_share(ours, images) < 0.8


def test_pre_logits_are_transformers_pooler():
    config = small(pre_logits=True, num_classes=0)
    ours, images = random_model(config), images_for(config)
    theirs = transformers_twin(ours, pooler=True)
    with torch.no_grad():
        assert difference(ours.features(images), theirs(images).pooler_output) < TOLERANCE


def test_another_size_at_run_time_is_transformers_with_their_resize():
    config = small(position_resize="bicubic")
    ours, images = random_model(config), images_for(small(image_size=(48, 40)))
    theirs = transformers_twin(ours)
    with torch.no_grad():
        logits = theirs(images, interpolate_pos_encoding=True).logits
        assert difference(ours(images), logits) < TOLERANCE
        # and a table resized another family's way is another model
        other = VisionTransformer(small()).double().eval()
        other.load_state_dict(ours.state_dict())
        assert difference(other(images), logits) > 1e-3


# ---------------------------------------------------------------------------------------------
# Each mutation is a mistake that ports of ViT have made; each must be far outside the tolerance.

State = dict[str, Tensor]


def thirds(order: tuple[int, int, int]):
    """q, k and v stacked in another order."""

    def mutate(state: State) -> None:
        for name in state:
            if ".qkv." in name:
                parts = state[name].chunk(3)
                state[name] = torch.cat([parts[i] for i in order])

    return mutate


def heads_first(state: State) -> None:
    """q, k and v of each head together, instead of all heads' q, then k, then v."""
    for name in state:
        if ".qkv." in name:
            state[name] = rearrange(state[name], "(three h e) ... -> (h three e) ...", three=3, h=3)


def zeroed(ending: str):
    """A tensor that was not read from the file."""

    def mutate(state: State) -> None:
        hit = [name for name in state if name.endswith(ending)]
        assert hit
        for name in hit:
            state[name] = torch.zeros_like(state[name])

    return mutate


def half_of_qkv_bias(part: int):
    def mutate(state: State) -> None:
        for name in state:
            if name.endswith("qkv.bias"):
                parts = list(state[name].chunk(3))
                parts[part] = torch.zeros_like(parts[part])
                state[name] = torch.cat(parts)

    return mutate


def shifted_positions(state: State) -> None:
    state["pos_embed"] = state["pos_embed"].roll(1, dims=1)


def shifted_patch_positions(state: State) -> None:
    table = state["pos_embed"]
    state["pos_embed"] = torch.cat([table[:, :1], table[:, 1:].roll(1, dims=1)], dim=1)


def transposed_positions(state: State) -> None:
    table = state["pos_embed"]
    patches = rearrange(table[:, 1:], "one (h w) d -> one (w h) d", h=4)
    state["pos_embed"] = torch.cat([table[:, :1], patches], dim=1)


def transposed_kernel(state: State) -> None:
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].transpose(2, 3).contiguous()


def reversed_channels(state: State) -> None:
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].flip(1)


def class_token_dropped(state: State) -> None:
    del state["cls_token"]
    state["pos_embed"] = state["pos_embed"][:, 1:]


def ones(ending: str):
    def mutate(state: State) -> None:
        for name in state:
            if name.endswith(ending):
                state[name] = torch.ones_like(state[name])

    return mutate


def norm_moved(state: State) -> None:
    for kind in ("weight", "bias"):
        state[f"fc_norm.{kind}"] = state.pop(f"norm.{kind}")


def nothing(state: State) -> None:
    pass


MEAN = {"pool": "mean", "class_token": True}
MUTATIONS = {
    "k and v swapped": ({}, {}, thirds((0, 2, 1))),
    "q and k swapped": ({}, {}, thirds((1, 0, 2))),
    "v, k, q": ({}, {}, thirds((2, 1, 0))),
    "heads before q, k, v": ({}, {}, heads_first),
    "eps 1e-5": ({}, {"norm_eps": 1e-5}, nothing),
    "eps 1e-12": ({}, {"norm_eps": 1e-12}, nothing),
    "tanh GELU": ({}, {"activation": "gelu_tanh"}, nothing),
    "quick GELU": ({}, {"activation": "quick_gelu"}, nothing),
    "scale by the full width": ({}, {"attention_scale": "width"}, nothing),
    "class token dropped": (MEAN, {"class_token": False}, class_token_dropped),
    "class token not read": ({}, {}, zeroed("cls_token")),
    "positions not read": ({}, {}, zeroed("pos_embed")),
    "positions shifted by one": ({}, {}, shifted_positions),
    "patch positions shifted by one": ({}, {}, shifted_patch_positions),
    "positions column by column": ({}, {}, transposed_positions),
    "kernel transposed": ({}, {}, transposed_kernel),
    "BGR": ({}, {}, reversed_channels),
    "no q bias": ({}, {}, half_of_qkv_bias(0)),
    "no v bias": ({}, {}, half_of_qkv_bias(2)),
    "no projection bias": ({}, {}, zeroed("attn.proj.bias")),
    "no fc1 bias": ({}, {}, zeroed("fc1.bias")),
    "no fc2 bias": ({}, {}, zeroed("fc2.bias")),
    "no patch bias": ({}, {}, zeroed("patch_embed.proj.bias")),
    "no norm1 bias": ({}, {}, zeroed("norm1.bias")),
    "no head bias": ({}, {}, zeroed("head.bias")),
    "norm2 scale not read": ({}, {}, ones("norm2.weight")),
    "LayerScale not read": ({"layer_scale": 0.1}, {}, ones("gamma")),
    "registers not read": ({"registers": 2}, {}, zeroed("reg_token")),
    "norm after the mean": ({"pool": "mean"}, {"norm_after_pool": True}, norm_moved),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_model_is_found_a_hundred_times_over(name):
    right, wrong, mutate = MUTATIONS[name]
    config = small(**right)
    model, images = random_model(config), images_for(config)
    theirs = timm_twin(config)
    theirs.load_state_dict(model.state_dict())
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    mutate(state)
    mutated = VisionTransformer(ViTConfig(**{**vars(config), **wrong})).double().eval()
    mutated.load_state_dict(state)
    with torch.no_grad():
        reference = theirs(images)
        assert difference(model(images), reference) < TOLERANCE
        assert difference(mutated(images), reference) > 100 * TOLERANCE
