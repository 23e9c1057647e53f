"""What a user may count on from a plain ViT, whatever its configuration."""

import copy

import pytest
import torch

from tests.conftest import randomise
from tests.models.oracles import images_for, random_model, small
from vitrail import Error, Tape
from vitrail.kit.grid import patchify, sincos2d
from vitrail.models.vit import VisionTransformer, ViTConfig

EVERY_FAMILY = {
    "paper": {},
    "mean, sin-cos": {"pool": "mean", "position": "sincos2d"},
    "map, registers": {"pool": "map", "registers": 2},
    "norm after, layer scale": {"pool": "mean", "norm_after_pool": True, "layer_scale": 0.1},
    "MAE's table, tanh layer": {"position": "sincos2d_mae", "pre_logits": True},
    "positions on patches only": {"position_on_prefix": False, "registers": 1},
    "no bias": {"qkv_bias": False, "position": "none"},
    "unpooled": {"pool": "none"},
}


def permuted(images: torch.Tensor, patch_size: int, order: torch.Tensor) -> torch.Tensor:
    """The same pictures with their patches in another order."""
    b, c, h, w = images.shape
    p = patch_size
    cut = images.reshape(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)
    laid = cut[:, order].reshape(b, h // p, w // p, c, p, p)
    return laid.permute(0, 3, 1, 4, 2, 5).reshape(b, c, h, w)


@pytest.mark.parametrize("pool", ["token", "mean", "map"])
def test_without_positions_the_order_of_patches_does_not_matter(pool):
    order = torch.randperm(16)
    places = ("learned", "learned2d", "relative", "sincos2d")
    for position, same in [("none", True), *((place, False) for place in places)]:
        config = small(pool=pool, position=position, registers=2)
        model, images = random_model(config), images_for(config)
        with torch.no_grad():
            straight = model(images)
            mixed = model(permuted(images, 8, order))
        gap = ((straight - mixed).abs().max() / straight.abs().max()).item()
        assert gap < 1e-12 if same else gap > 1e-3, position


def test_patches_are_read_row_by_row():
    model, tape = random_model(small(image_size=(16, 32))), Tape(only="patches")
    images = images_for(model.config)
    model(images, tape=tape)
    flat = patchify(images, 8)  # [b n (row column channel)]
    kernel = model.patch_embed.proj.weight.permute(0, 2, 3, 1).flatten(1)
    expected = flat @ kernel.T + model.patch_embed.proj.bias
    torch.testing.assert_close(tape["patches"], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_a_picture_alone_and_in_a_batch_gives_the_same(name):
    model = random_model(small(**EVERY_FAMILY[name]))
    images = images_for(model.config, batch=4)
    with torch.no_grad():
        together = model(images)
        alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(alone, together, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", EVERY_FAMILY)
def test_every_parameter_gets_a_finite_gradient(name):
    model = random_model(small(**EVERY_FAMILY[name])).train()
    model(images_for(model.config)).square().sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", EVERY_FAMILY)
@pytest.mark.parametrize("size", [(8, 8), (16, 48), (40, 40)])
def test_any_size_and_aspect_ratio_that_the_patch_divides(name, size):
    model = random_model(small(**EVERY_FAMILY[name]))
    images = images_for(small(image_size=size))
    tokens = size[0] * size[1] // 64
    with torch.no_grad():
        logits, maps = model(images), model.feature_maps(images)
    assert logits.isfinite().all()
    prefix = model.config.prefix
    assert logits.shape == ((3, prefix + tokens, 7) if name == "unpooled" else (3, 7))
    assert [tuple(m.shape) for m in maps] == [(3, 48, size[0] // 8, size[1] // 8)]
    assert maps.strides == [8]


def test_a_model_that_was_built_for_a_size_equals_one_that_was_resized_to_it():
    """Positions resized at run time are those of `resize_table`; fixed ones are computed anew."""
    size = (24, 40)
    for position in ("learned", "sincos2d", "sincos2d_mae"):
        config = small(position=position)
        model = VisionTransformer(config).double().eval()
        parameters = dict(model.named_parameters())
        randomise_parameters(model)
        built = VisionTransformer(small(position=position, image_size=size)).double().eval()
        state = model.state_dict()
        if position == "learned":
            state["pos_embed"] = model.positions((3, 5))
        else:
            assert "pos_embed" not in parameters
            state["pos_embed"] = built.pos_embed
        built.load_state_dict(state)
        images = images_for(built.config)
        with torch.no_grad():
            torch.testing.assert_close(model(images), built(images), rtol=1e-11, atol=1e-11)


def randomise_parameters(model):
    """As `randomise`, but fixed tables stay what they are."""
    tables = {name: tensor.clone() for name, tensor in model.named_buffers()}
    randomise(model)
    for name, tensor in model.named_buffers():
        tensor.copy_(tables[name])


def test_fixed_tables_are_buffers_with_a_zero_row_for_the_class_token():
    model = VisionTransformer(small(position="sincos2d", registers=2))
    assert "pos_embed" in model.state_dict()
    assert "pos_embed" not in dict(model.named_parameters())
    assert model.pos_embed[0, :3].abs().max() == 0
    torch.testing.assert_close(model.pos_embed[0, 3:], sincos2d((4, 4), 48))
    patches_only = VisionTransformer(small(position="sincos2d", position_on_prefix=False))
    torch.testing.assert_close(patches_only.pos_embed[0], sincos2d((4, 4), 48))


def test_registers_and_class_token_come_first_and_pooling_leaves_them_out():
    for pool in ("mean", "map"):
        model = random_model(small(pool=pool, class_token=True, registers=2, depth=1))
        tape, images = Tape(), images_for(model.config)
        model(images, tape=tape)
        tokens = tape["embedded"]
        prefix = torch.cat([model.cls_token, model.reg_token], dim=1)
        expected = prefix + model.pos_embed[:, :3]
        torch.testing.assert_close(tokens[:, :3], expected.expand(3, -1, -1))
        disturbed = tape["normed"].clone()
        disturbed[:, :3] += 1.0
        torch.testing.assert_close(model.pool(disturbed), tape["pooled"], rtol=1e-12, atol=1e-12)


def test_no_head_gives_the_features():
    headless, images = random_model(small(num_classes=0)), images_for(small())
    whole = random_model(small())
    whole.load_state_dict({**headless.state_dict(), "head.weight": whole.head.weight,
                           "head.bias": whole.head.bias})  # fmt: skip
    with torch.no_grad():
        assert torch.equal(headless(images), headless.features(images))
        assert torch.equal(headless(images), whole.features(images))
        assert torch.equal(whole(images), whole.head(whole.features(images)))
    assert headless.num_classes == 0


def test_attributes():
    model = VisionTransformer(small(image_size=(32, 48)))
    assert (model.num_classes, model.image_size, model.labels) == (7, (32, 48), None)
    assert model.preprocessing.size == (32, 48)
    assert VisionTransformer(small(image_size=(32, 32))).image_size == 32
    assert model.set_labels([f"class {i}" for i in range(7)]).labels[6] == "class 6"
    with pytest.raises(Error, match="3 labels for a model of 7 classes"):
        model.set_labels(["a", "b", "c"])


def test_depth_of_every_parameter_rises_from_the_patches_to_the_head():
    model = VisionTransformer(small(depth=3, registers=1, pool="map", pre_logits=True))
    depths = {name: model.depth_of(name) for name, _ in model.named_parameters()}
    assert {depths[n] for n in ("cls_token", "reg_token", "pos_embed") if n in depths} == {0}
    assert depths["patch_embed.proj.weight"] == 0
    assert depths["blocks.0.norm1.weight"] == 1
    assert depths["blocks.2.mlp.fc2.bias"] == 3
    last = ("norm.weight", "attn_pool.latent", "pre_logits.fc.weight", "head.bias")
    assert {depths[name] for name in last} == {model.layers} == {4}


def test_a_copied_model_is_the_same_model():
    model, images = random_model(small(drop_path=0.3)), images_for(small())
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(model)(images), model(images))


def test_half_precision_and_autocast_stay_near():
    model, images = random_model(small()), images_for(small())
    with torch.no_grad():
        exact = model(images)
        with torch.autocast("cpu", torch.bfloat16):
            near = model.float()(images.float())
        other_size = model.bfloat16()(images_for(small(image_size=48)).bfloat16())
    assert ((near - exact).abs().max() / exact.abs().max()) < 0.1
    assert other_size.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"heads": 5}, "5 heads do not divide a width of 48"),
        ({"pool": "token", "class_token": False}, "do not set class_token to False"),
        ({"pool": "avg"}, r"pool cannot be 'avg'.*token, mean, map, none"),
        ({"pool": "means"}, "did you mean 'mean'"),
        ({"activation": "gelu_tan"}, "did you mean 'gelu_tanh'"),
        ({"position": "sincos"}, "did you mean 'sincos2d'"),
        ({"position": "sincos2d", "width": 6, "heads": 1}, "multiple of 4, not 6"),
        ({"image_size": 33}, r"33x33.*patches of 8.*use 32 or 40"),
        ({"image_size": (32, 5)}, "5 is not a multiple of 8; use 8"),
        ({"image_size": (32, 32, 3)}, "an image size is a whole number or"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"dropout": 1.0}, "dropout is a share"),
        ({"drop_path": -0.1}, "drop_path is a share"),
        ({"num_classes": -1}, "cannot be negative"),
    ],
)
def test_what_does_not_go_together_is_said_in_a_sentence(fields, sentence):
    with pytest.raises(Error, match=sentence):
        VisionTransformer(small(**fields))


def test_a_picture_that_the_patch_does_not_divide():
    model = random_model(small())
    with pytest.raises(Error, match=r"image size 32x30 .* 30 is not a multiple of 8; use 24 or 32"):
        model(torch.zeros(1, 3, 32, 30).double())


def test_configs_that_are_the_same_model_are_equal():
    assert ViTConfig(image_size=(224, 224)) == ViTConfig(image_size=[224, 224]) == ViTConfig()


@pytest.mark.parametrize(
    "fields",
    [{}, {"registers": 2, "position_on_prefix": False}, {"layer_scale": 0.3}, {"distilled": True},
     {"gated_mlp": True, "activation": "silu"}, {"qkv_bias": False}, {"depth": 1}],
)  # fmt: skip
def test_the_last_block_computes_what_is_read_and_nothing_changes(fields):
    model, images = random_model(small(**fields)), images_for(small())
    model.train()

    def gradients(tape: Tape | None) -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(images, tape=tape).square().sum().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    lean, whole = gradients(None), gradients(Tape(only=f"blocks.{model.config.depth - 1}.out"))
    for name, gradient in whole.items():
        torch.testing.assert_close(lean[name], gradient, rtol=1e-9, atol=1e-9, msg=name)
    seen = []
    model.blocks[-1].mlp.fc1.register_forward_hook(
        lambda _, given, made: seen.append(made.shape[1])
    )
    model(images)
    tokens = model.encode(images).shape[1]
    assert seen == [2 if model.config.distilled else 1, tokens]
