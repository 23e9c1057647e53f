"""One battery over every name of the zoo, made small: what holds of a model whatever its family.

Costly checks run once for each distinct small model (`reduced.small_models`); a failure is shown
under the first name that has it. What belongs to a name (sizes, preprocessing, aliases) is
checked for every name.
"""

import itertools
import json
import math
import re
from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from tests.contract.reduced import CLASSES, build, pictures, shared, small_models, without_a_size
from vitrail import Error, Tape, list_models, load_model, save_model
from vitrail.inspection.draw import attention_maps
from vitrail.kit.preprocess import Preprocessing
from vitrail.models.base import height_width
from vitrail.models.cost import cost
from vitrail.models.parts import drop_paths, set_drop_path_draws
from vitrail.models.zoo import (
    ALIASES,
    BASES,
    ENTRIES,
    FAMILIES,
    config_of,
    create_model,
    describe,
    from_config,
    from_description,
    resolve,
)

SMALL = small_models()
# What these do beside a relative is in the numbers, or in another relative too: traced if slow.
LIKE_A_RELATIVE = {
    "vit_nano_patch7_28",
    "deit3_small_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_giant_patch14_dinov2",
    "vit_medium_patch32_clip_224",
    "vit_base_patch32_siglip_256",
    "vit_small_r26_s32_224",
    "pvt_v2_b0",
    "pvt_v2_b5",
    "botnet50_s1_224",
    "cvt_13_nas_224",
    "cvt_w24_384",
}


def slow_but(names, kept):
    """The names as parameters, those that are not kept marked slow."""
    return [pytest.param(name, marks=() if name in kept else pytest.mark.slow) for name in names]


every_small = pytest.mark.parametrize("name", SMALL)
every_graph = pytest.mark.parametrize("name", slow_but(SMALL, {*SMALL} - LIKE_A_RELATIVE))
every_name = pytest.mark.parametrize("name", list_models())
FIRST_OF_FAMILY = {entry.family: name for name, entry in reversed(ENTRIES.items())}.values()

# A Performer's random features are drawn once and never trained.
FROZEN = {"t2t": r"tokens_to_token\.attention[12]\.w"}
# Only the class token is read, and it is not convolved: the last queries of the map reach nothing.
WITHOUT_GRADIENT = {"cvt": r"stage2\.blocks\.1\.attn\.conv_proj_q\..*"}
# Attention beside that of the blocks: between T2T's unfoldings, and of pooling (one query).
OTHER_ATTENTION = r"(.*\.)?(tokens\.\d+|pool)\.attention"


def same(actual, expected, relative=1e-9):
    scale = expected.abs().max().item()
    torch.testing.assert_close(actual, expected, rtol=relative, atol=relative * scale)


def family_of(name):
    return resolve(name)[1].family


def matching(patterns, name, parameters):
    pattern = patterns.get(family_of(name), "(?!)")
    return {parameter for parameter in parameters if re.fullmatch(pattern, parameter)}


def with_gradients(model, images):
    """Gradients by parameter, and how many numbers autograd kept for them."""
    kept = 0

    def pack(tensor):
        nonlocal kept
        kept += tensor.numel()
        return tensor

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(images).square().sum()
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return dict(zip(trained, gradients, strict=True)), kept


def blocks_of(config):
    """Names of a model's blocks on the tape, and which of them attend."""
    stages = [
        [f"stages.{s}.blocks.{j}" for j in range(depth)]
        for s, depth in enumerate(getattr(config, "depths", ()))
    ]
    plain = [f"blocks.{i}" for i in range(getattr(config, "depth", 0))]
    heads, attending = getattr(config, "heads", ()), plain
    if isinstance(heads, tuple):
        attending = list(itertools.chain(*stages[: len(heads)]))
    elif not plain:  # BoTNet: attention in the last stage alone
        attending = stages[-1]
    return [*itertools.chain(*stages), *plain], attending


# Once for every distinct small model


@every_small
def test_gives_logits_and_the_features_that_its_head_sees(name):
    model, images = shared(name), pictures(shared(name))
    with torch.no_grad():
        features, logits = model.features(images), model(images)
    assert logits.shape == (2, CLASSES)
    assert features.ndim == 2
    assert features.shape[0] == 2
    head = model.get_submodule(model.head_name)
    assert features.shape[1] == next(head.parameters()).shape[1]
    assert logits.isfinite().all()
    assert not torch.allclose(logits[0], logits[1])


@every_small
def test_every_parameter_has_a_finite_gradient(name):
    model = shared(name)
    gradients, _ = with_gradients(model, pictures(model))
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == matching(FROZEN, name, frozen | set(gradients))
    unused = {parameter for parameter, gradient in gradients.items() if gradient is None}
    assert not unused
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    zero = {parameter for parameter, gradient in gradients.items() if not gradient.any()}
    assert zero == matching(WITHOUT_GRADIENT, name, gradients)


@every_small
def test_takes_pictures_of_other_sizes_and_shapes(name):
    model = shared(name)
    seen = []
    for height, width in ((1.5, 1.5), (1, 1.5), (2, 1)):
        with torch.no_grad():
            logits = model(pictures(model, 2, height, width))
        assert logits.shape == (2, CLASSES)
        assert logits.isfinite().all()
        seen.append(logits)
    # A picture turned on its side is another picture.
    turned = pictures(model, 2, 1, 1.5).transpose(2, 3)
    with torch.no_grad():
        assert not torch.allclose(model(turned), seen[1])


@every_small
def test_a_picture_is_judged_alike_alone_and_in_a_batch(name):
    model, images = shared(name), pictures(shared(name), 4)
    with torch.no_grad():
        together = model(images)
        for index in range(4):
            same(model(images[index : index + 1]), together[index : index + 1])


@every_small
def test_a_tape_changes_nothing_and_has_the_names_of_the_contract(name):
    model, images, tape = shared(name), pictures(shared(name)), Tape()
    with torch.no_grad():
        taped, plain, features = model(images, tape=tape), model(images), model.features(images)
    same(taped, plain)
    assert torch.equal(tape["logits"], taped)
    same(tape["pooled"], features)
    blocks, attending = blocks_of(model.config)
    for block in blocks:
        assert tape[f"{block}.out"].shape[0] == len(images)
    maps = {key: tensor for key, tensor in tape.items() if key.endswith("attention")}
    assert {f"{block}.attention" for block in attending} == {
        key for key in maps if not re.fullmatch(OTHER_ATTENTION, key)
    }
    for key, weights in maps.items():
        assert weights.ndim == 4, key
        assert weights.shape[0] == len(images)
        assert (weights >= 0).all()
        same(weights.sum(-1), torch.ones(weights.shape[:-1], dtype=weights.dtype))
    names = [block for key in tape for block in blocks if key == f"{block}.out"]
    assert names == blocks  # in the order of the forward pass


@every_small
def test_attention_asked_for_alone_is_that_of_the_whole_tape(name):
    model, images = shared(name), pictures(shared(name))
    whole, some = Tape(), Tape(only="*.attention")
    with torch.no_grad():
        same(model(images, tape=some), model(images, tape=whole))
    assert list(some) == [key for key in whole if key.endswith(".attention")]
    for key in some:
        same(some[key], whole[key])


@every_small
def test_feature_maps_have_the_sizes_that_their_strides_say(name):
    model = shared(name)
    side = model.image_size
    for height, width in ((side, side), (2 * side, 3 * side), (side + 5, 2 * side + 3)):
        images = torch.randn(2, 3, height, width, dtype=torch.float64)
        try:
            with torch.no_grad():
                maps = model.feature_maps(images)
        except Error:  # only patches that do not fill the picture are a reason
            assert not {height, width} <= {side, 2 * side, 3 * side}
            continue
        assert maps.strides == sorted(maps.strides)
        assert len(maps) == len(maps.strides) > 0
        for picture, stride in zip(maps, maps.strides, strict=True):
            assert picture.isfinite().all()
            assert picture.shape[0] == 2
            for pixels, places in zip((height, width), picture.shape[2:], strict=True):
                assert places in (pixels // stride, math.ceil(pixels / stride))


@every_small
def test_without_classes_it_ends_in_its_features(name):
    model, images = shared(name), pictures(shared(name))
    headless = build(name, num_classes=0)
    tensors = headless.state_dict()
    left = {key for key in model.state_dict() if key not in tensors}
    assert all(model.depth_of(key) == model.layers for key in left)
    assert {f"{model.head_name}.weight", f"{model.head_name}.bias"} <= left
    headless.load_state_dict({key: model.state_dict()[key] for key in tensors})
    with torch.no_grad():
        features = model.features(images)
        same(headless(images), features)
        same(headless.features(images), features)
    assert headless.num_classes == 0


@every_small
def test_checkpointing_keeps_less_and_gives_the_same_gradients(name):
    model = build(name).train()
    images, start = pictures(model, 3), {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(1)
    expected, kept = with_gradients(model, images)
    after = {key: value.clone() for key, value in model.named_buffers()}
    model.load_state_dict(start)
    model.checkpointing = True
    torch.manual_seed(1)
    gradients, kept_in_checkpoints = with_gradients(model, images)
    assert kept_in_checkpoints < kept
    for parameter, gradient in expected.items():
        same(gradients[parameter], gradient)
    for key, value in model.named_buffers():
        same(value.double(), after[key].double())


@every_graph
def test_compiles_whole(name):
    torch.compiler.reset()
    model = build(name).float()
    images = pictures(model).float()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        same(compiled(images), model(images), 1e-5)
    torch.compiler.reset()


@every_graph
def test_exports_with_any_batch_size(name):
    model = build(name).float()
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    exported = torch.export.export(model, (pictures(model).float(),), dynamic_shapes=(batch,))
    images = pictures(model, 5).float()
    with torch.no_grad():
        same(exported.module()(images), model(images), 1e-5)


@every_small
def test_a_saved_model_comes_back_as_it_was(name, tmp_path):
    model = build(name).float().set_labels([f"class {index}" for index in range(CLASSES)])
    images = pictures(model).float()
    loaded = load_model(save_model(model, tmp_path))
    assert type(loaded) is type(model)
    assert loaded.config == model.config
    assert loaded.preprocessing == model.preprocessing
    assert loaded.labels == model.labels
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))


@every_small
def test_a_description_makes_the_same_model(name):
    model = shared(name)
    description = json.loads(json.dumps(describe(model)))
    again = from_description(description)
    assert again.config == model.config
    assert again.preprocessing == model.preprocessing
    assert describe(again) == describe(model)
    assert {key: tensor.shape for key, tensor in again.state_dict().items()} == {
        key: tensor.shape for key, tensor in model.state_dict().items()
    }


@every_small
def test_draws_decide_what_drop_path_drops(name):
    quiet = {"token_dropout": 0.0} if "token_dropout" in without_a_size(name) else {}
    model = build(name, drop_path=0.5, **quiet)
    images, sites = pictures(model, 3), len(drop_paths(model))
    assert sites > 0
    plain = build(name, **quiet)
    with torch.no_grad():
        same(model(images), plain(images))  # nothing is dropped outside training
        model.train()
        draws = torch.rand(3, sites)
        draws[0] = 1.0  # all kept
        draws[1] = 0.0  # all dropped
        set_drop_path_draws(model, draws)
        once, again = model(images), model(images)
        assert torch.equal(once, again)
        set_drop_path_draws(model, 1 - draws)
        assert not torch.allclose(model(images), once)
    set_drop_path_draws(model, draws)
    gradients, _ = with_gradients(model, images)
    assert all(gradient.isfinite().all() for gradient in gradients.values())


@every_small
def test_every_parameter_lies_at_a_depth(name):
    model = shared(name)
    depths = {parameter: model.depth_of(parameter) for parameter, _ in model.named_parameters()}
    assert set(depths.values()) == set(range(model.layers + 1))
    for part in ("weight", "bias"):
        assert depths[f"{model.head_name}.{part}"] == model.layers


@every_small
def test_cost_counts_every_parameter(name):
    model = shared(name)
    assert cost(model).parameters == sum(p.numel() for p in model.parameters())
    assert cost(model.config).macs > 0


# For every name


@every_name
def test_a_name_says_its_size_and_how_pictures_come_in(name):
    fields = without_a_size(name)
    del fields["num_classes"], fields["in_channels"]
    if "patch_size" in fields:  # its own patches divide its own size
        fields["patch_size"] = config_of(name).patch_size
    with torch.device("meta"):
        model = create_model(name, CLASSES, **fields)
    size = config_of(name).image_size
    assert model.image_size == size
    assert model.preprocessing.size == height_width(size)
    assert len(model.preprocessing.mean) == len(model.preprocessing.std) == 3
    assert 0 < model.preprocessing.crop <= 1
    if BASES.get(name) != name:
        assert name.endswith(f"_{size}")
    written = json.loads(json.dumps(model.preprocessing.to_json()))
    assert Preprocessing.from_json(written) == model.preprocessing


@every_name
def test_a_name_does_without_its_size_and_takes_another(name):
    size = config_of(name).image_size
    base = name.removesuffix(f"_{size}")
    found, found_entry = resolve(base)
    assert found == BASES[base]
    assert found.removesuffix(f"_{config_of(found).image_size}") == base
    assert found_entry == ENTRIES[found]
    written, other = resolve(f"{base}_{10 * size}")  # a size that no name has
    assert written == f"{base}_{10 * size}"
    assert other == replace(found_entry, config={**found_entry.config, "image_size": 10 * size})


def test_every_alias_stands_for_a_name():
    for alias, name in ALIASES.items():
        assert alias not in ENTRIES
        assert resolve(alias) == (name, ENTRIES[name])
    assert {entry.family for entry in ENTRIES.values()} == set(FAMILIES)
    assert {*SMALL} >= LIKE_A_RELATIVE


@pytest.mark.parametrize("name", slow_but(list_models(), FIRST_OF_FAMILY))
def test_cost_counts_every_parameter_at_full_size(name):
    with torch.device("meta"):
        model = from_config(family_of(name), ENTRIES[name].config)
    assert cost(config_of(name)).parameters == sum(p.numel() for p in model.parameters())


@every_small
def test_attention_is_drawn_or_refused_in_words(name):
    model = shared(name)
    height, width = height_width(model.image_size)
    images = torch.randint(0, 256, (2, height, width, 3), dtype=torch.uint8)
    if not taped(model, images):
        with pytest.raises(Error, match="no attention map to draw"):
            attention_maps(model, images)
        return
    maps = attention_maps(model, images)
    assert maps.shape[0] == 2
    assert maps.ndim == 3
    assert (maps >= 0).all()
    assert (maps.sum((1, 2)) <= 1 + 1e-6).all()


def taped(model, images):
    tape = Tape(only="*.attention")
    floats = model.preprocessing.normalize(images).to(next(model.parameters()).dtype)
    model(floats, tape=tape)
    return list(tape)
