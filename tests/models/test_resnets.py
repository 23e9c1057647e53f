"""The ResNets and the hybrids: timm's logits, and what a user may count on."""

import math
from types import MethodType

import pytest
import torch
import torch.nn.functional as F

from tests.models.oracles import difference
from tests.models.resnets import pictures, random_model, small, timm_twin
from tests.reference.torchvision_stub import timm
from vitrail import Error, Recorded, Tape
from vitrail.models.parts import drop_paths, set_drop_path_draws
from vitrail.models.standardize import StandardizedConv2d, standardized
from vitrail.models.zoo import ALIASES, create_model, list_models, resolve

TOLERANCE = 1e-11
KINDS = ("resnet", "bit", "hybrid", "stem")
SIZES = {"resnet": (33, 50), "bit": (50, 33), "hybrid": (49, 30), "stem": (24, 40)}


def on_meta(name, **config):
    with torch.device("meta"):
        return create_model(name, **config)


@pytest.mark.parametrize("size", ["square", "odd"])
@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_timms_with_every_tensor_random(kind, size):
    height, width = (32, 32) if size == "square" else SIZES[kind]
    ours = random_model(kind, image_size=(height, width))
    theirs, images = timm_twin(ours.config), pictures(height, width)
    assert set(theirs.state_dict()) == set(ours.state_dict())
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert difference(ours(images), theirs(images)) < TOLERANCE


@pytest.mark.parametrize("kind", ["resnet", "bit", "hybrid"])
def test_logits_are_timms_with_timms_own_first_weights_in_float32(kind):
    ours = small(kind).float()
    theirs = timm_twin(ours.config).float()
    ours.load_state_dict(theirs.state_dict())
    images = pictures().float()
    with torch.no_grad():
        assert theirs(images).std() > 1e-3
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


def test_a_resnet_in_training_is_timms():
    """Batch statistics, and how the running ones move."""
    ours = random_model("resnet").train()
    theirs = timm_twin(ours.config)
    theirs.load_state_dict(ours.state_dict())
    theirs.train()
    images = pictures(64)
    assert difference(ours(images), theirs(images)) < 1e-10
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-9, atol=1e-12)


def test_the_zoo_builds_what_timm_builds_under_the_name():
    names = [*list_models("resnet*"), *list_models("vit_*_r*_224")]
    known = set(timm.list_models())
    # the ViT paper's alone
    assert set(names) - known == {
        "resnetv2_50x2_bit",
        "resnetv2_152x1_bit",
        "resnetv2_200x3_bit",
        "vit_base_r50_s32_224",
        "vit_large_r50_s16_224",
    }
    for name in ["resnet101", "resnetv2_101x3_bit", "resnetv2_152x2_bit"]:
        with torch.device("meta"):
            theirs = timm.create_model(name)
        ours = on_meta(name)
        assert {n: t.shape for n, t in ours.state_dict().items()} == {
            n: t.shape for n, t in theirs.state_dict().items()
        }
    ours = on_meta("vit_small_r26_s32_224")
    theirs = timm.create_model("vit_small_r26_s32_224")  # runs its ResNet once
    assert {n: t.shape for n, t in ours.state_dict().items()} == {
        n: t.shape for n, t in theirs.state_dict().items()
    }
    assert ours.config.grid == theirs.patch_embed.grid_size


# ---------------------------------------------------------------------------------------------
# Each mutation is a mistake that ports have made; each must be far outside the tolerance.


def zeroed(ending):
    def mutate(model):
        hit = [t for n, t in model.state_dict().items() if n.endswith(ending)]
        assert hit
        for tensor in hit:
            tensor.zero_()

    return mutate


def ones(ending):
    def mutate(model):
        hit = [t for n, t in model.state_dict().items() if n.endswith(ending)]
        assert hit
        for tensor in hit:
            tensor.fill_(1)

    return mutate


def symmetric_padding(model):
    for part in model.modules():
        if isinstance(part, StandardizedConv2d) and part.pads_itself:
            half = part.kernel_size[0] // 2
            part.pads_itself, part.padding = False, (half, half)


def infinite_border(model):
    def forward(self, images):
        return F.max_pool2d(self.conv(images), 3, 2, 1)

    model.stem.forward = MethodType(forward, model.stem)


def not_standardized(model):
    for part in model.modules():
        if isinstance(part, StandardizedConv2d):
            part.eps, part.eps_on = 1.0, "deviation"


def key_and_value_swapped(model):
    for block in model.blocks:
        for tensor in (block.attn.qkv.weight, block.attn.qkv.bias):
            query, key, value = tensor.clone().chunk(3)
            tensor.copy_(torch.cat([query, value, key]))


def shortcut_of_the_raw_input(model):
    for name, part in model.named_modules():
        if name.endswith("blocks.0"):
            part.norm1.forward = lambda x: x.clone()


def nothing(model):
    pass


MUTATIONS = {
    "resnet, eps": ("resnet", {"norm_eps": 1e-3}, nothing),
    "resnet, activation": ("resnet", {"activation": "silu"}, nothing),
    "resnet, running means not read": ("resnet", {}, zeroed("running_mean")),
    "resnet, running variances not read": ("resnet", {}, ones("running_var")),
    "resnet, no norm bias": ("resnet", {}, zeroed("bn2.bias")),
    "resnet, no head bias": ("resnet", {}, zeroed("fc.bias")),
    "bit, eps of the filters": ("bit", {"standardize_eps": 1e-6}, nothing),
    "bit, eps on the deviation": ("bit", {"standardize_eps_on": "deviation"}, nothing),
    "bit, eps of the norms": ("bit", {"group_norm_eps": 1e-6}, nothing),
    "bit, filters as they are": ("bit", {}, not_standardized),
    "bit, a border of -inf": ("bit", {}, infinite_border),
    "bit, shortcut of the raw input": ("bit", {}, shortcut_of_the_raw_input),
    "bit, no last norm bias": ("bit", {}, zeroed("norm.bias")),
    "hybrid, eps on the deviation": ("hybrid", {"standardize_eps_on": "deviation"}, nothing),
    "hybrid, eps of the norms": ("hybrid", {"group_norm_eps": 1e-6}, nothing),
    "hybrid, eps of the Transformer": ("hybrid", {"norm_eps": 1e-5}, nothing),
    "hybrid, another GELU": ("hybrid", {"activation": "gelu_tanh"}, nothing),
    "hybrid, another scale": ("hybrid", {"attention_scale": "width"}, nothing),
    "hybrid, symmetric padding": ("hybrid", {}, symmetric_padding),
    "hybrid, k and v swapped": ("hybrid", {}, key_and_value_swapped),
    "hybrid, class token not read": ("hybrid", {}, zeroed("cls_token")),
    "hybrid, projection's norm not read": ("hybrid", {}, ones("downsample.norm.weight")),
    "stem, symmetric padding": ("stem", {}, symmetric_padding),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_model_is_found_a_hundred_times_over(name):
    kind, wrong, mutate = MUTATIONS[name]
    right, mutated = random_model(kind), small(kind, **wrong)
    theirs = timm_twin(right.config)
    theirs.load_state_dict(right.state_dict())
    mutated.load_state_dict(right.state_dict())
    with torch.no_grad():
        mutate(mutated)
        reference = theirs(pictures())
        assert difference(right(pictures()), reference) < TOLERANCE
        assert difference(mutated(pictures()), reference) > 100 * TOLERANCE


def test_both_places_of_the_eps():
    weight = torch.randn(5, 4, 3, 3, dtype=torch.float64) * 1e-3 + 1
    flat = weight.flatten(1)
    mean, deviation = flat.mean(1)[:, None], flat.std(1, correction=0)[:, None]
    inside = ((flat - mean) / (deviation**2 + 1e-6).sqrt()).view_as(weight)
    outside = ((flat - mean) / (deviation + 1e-6)).view_as(weight)
    torch.testing.assert_close(standardized(weight, 1e-6, "variance"), inside)
    torch.testing.assert_close(standardized(weight, 1e-6, "deviation"), outside)
    for eps_on in ("variance", "deviation"):  # a filter that is all alike spoils nothing
        alike = torch.ones(2, 3, 1, 1, requires_grad=True)
        standardized(alike, 1e-5, eps_on).sum().backward()
        assert alike.grad is not None
        assert alike.grad.isfinite().all()


# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_tape_changes_nothing_and_holds_what_it_says(kind):
    model, tape = random_model(kind), Tape()
    with torch.no_grad():
        taped, plain = model(pictures(), tape=tape), model(pictures())
    torch.testing.assert_close(taped, plain, rtol=1e-11, atol=1e-11)
    outs = [name for name in tape if name.startswith("stages.")]
    expected = [
        f"stages.{s}.blocks.{j}.out" for s, d in enumerate(model.config.depths) for j in range(d)
    ]
    assert outs == expected
    assert tape["stem"].shape == (3, model.config.stem_width, 8, 8)
    assert tape["logits"].shape == (3, 7)
    torch.testing.assert_close(tape["pooled"], model.features(pictures()))
    if kind in ("hybrid", "stem"):
        assert tape["patches"].shape == (3, 16, 48)
        assert tape["blocks.1.attention"].shape == (3, 3, 17, 17)
    # nothing on the tape was written over later
    again = Tape()
    with torch.no_grad():
        model(pictures(), tape=again)
    assert all(torch.equal(again[name], tape[name]) for name in tape)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_alone_and_in_a_batch_gives_the_same(kind):
    model, images = random_model(kind), pictures(batch=4)
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(alone, model(images), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_at_any_size(kind):
    model, (height, width) = random_model(kind), SIZES[kind]
    with torch.no_grad():
        logits, maps = (call(pictures(height, width)) for call in (model, model.feature_maps))
    assert logits.isfinite().all()
    assert maps.strides == {"resnet": [4, 8, 16, 32], "stem": [8]}.get(kind, [4, 8])
    for stride, part in zip(maps.strides, maps, strict=True):
        assert part.shape[-2:] == (math.ceil(height / stride), math.ceil(width / stride))
    channels = [part.shape[1] for part in maps]
    assert channels == (
        [*model.config.widths[:-1], 48] if kind in ("hybrid", "stem") else [*model.config.widths]
    )


def test_patches_of_several_positions_must_divide_the_picture():
    with pytest.raises(Error, match="use 32 or 40"):
        small("stem", image_size=36)
    with pytest.raises(Error, match="use 32 or 40"):
        small("stem")(pictures(36))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_everything_and_checkpointing_gives_the_same(kind):
    model, images = (
        random_model(kind, drop_path=0.3).train(),
        pictures(64),
    )
    set_drop_path_draws(model, torch.rand(len(images), len(drop_paths(model))))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = []
    for checkpointing in (False, True):
        model.load_state_dict(state)
        model.checkpointing = checkpointing
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["resnet", "bit", "hybrid"])
def test_compiles_whole_and_exports_with_any_batch_size(kind):
    torch.compiler.reset()
    shallow = {
        "resnet": {"depths": (1, 1), "widths": (32, 64)},
        "bit": {"depths": (1, 1)},
        "hybrid": {"depths": (1, 1), "depth": 1},
    }
    model, images = random_model(kind, **shallow[kind]).float(), pictures().float()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            compiled(images, tape=Tape()), model(images), rtol=1e-4, atol=1e-4
        )
    recorded = Recorded(model, ["stem", "pooled"])
    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(recorded, (images,), dynamic_shapes={"images": batch})
    with torch.no_grad():
        logits, tensors = program.module()(images[:2])
        torch.testing.assert_close(logits, model(images[:2]), rtol=1e-4, atol=1e-4)
    assert set(tensors) == {"stem", "pooled"}
    torch.compiler.reset()


@pytest.mark.parametrize("kind", KINDS)
def test_no_head_gives_the_features(kind):
    headless, whole = random_model(kind, num_classes=0), random_model(kind)
    whole.load_state_dict(headless.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(headless(pictures()), whole.features(pictures()))


@pytest.mark.parametrize("kind", KINDS)
def test_depth_of_every_parameter_rises_to_the_head(kind):
    model = small(kind)
    depths = {name: model.depth_of(name) for name, _ in model.named_parameters()}
    assert set(depths.values()) == set(range(model.layers + 1))
    assert depths[f"{model.head_name}.weight"] == model.layers
    first = {"resnet": "conv1", "bit": "stem.conv"}.get(kind, "patch_embed.proj")
    assert depths[f"{first}.weight"] == 0
    if kind == "resnet":
        assert depths["layer2.0.conv1.weight"] == 2
    if kind == "bit":
        assert depths["stages.1.blocks.1.conv1.weight"] == 3


def test_fresh_weights_are_the_authors():
    resnet, bit, hybrid = (small(kind) for kind in ("resnet", "bit", "hybrid"))
    assert not resnet.layer1[0].bn3.weight.any()
    assert resnet.layer1[0].bn1.weight.eq(1).all()
    kernel = resnet.layer2[0].conv2.weight
    assert kernel.std().item() == pytest.approx(math.sqrt(2 / (9 * 16)), rel=0.05)
    assert not bit.head.fc.weight.any()
    assert bit.stages[0].blocks[0].norm3.weight.eq(1).all()
    block = hybrid.patch_embed.backbone.stages[0].blocks[0]
    assert not block.norm3.weight.any()
    assert block.downsample.norm.weight.eq(1).all()
    for part in (bit.stem.conv, hybrid.patch_embed.backbone.stem.conv):
        assert part.weight.std().item() == pytest.approx((3 * 49) ** -0.5, rel=0.05)
    width = hybrid.patch_embed.proj.weight.shape[1]
    assert hybrid.patch_embed.proj.weight.std().item() == pytest.approx(width**-0.5, rel=0.05)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("R50x1", "resnetv2_50x1_bit"),
        ("BiT-M-R152x4", "resnetv2_152x4_bit"),
        ("BiT-S-R101x3", "resnetv2_101x3_bit"),
        ("resnetv2_50x1_bit_448", "resnetv2_50x1_bit_448"),
        ("R50+ViT-B_16", "vit_base_r50_s16_224"),
        ("R26+ViT-S_32", "vit_small_r26_s32_224"),
        ("R50+B/32", "vit_base_r50_s32_224"),
        ("R+Ti/16", "vit_tiny_r_s16_p8_224"),
        ("R50_L_32", "vit_large_r50_s32_224"),
        ("vit_large_r50_s16", "vit_large_r50_s16_224"),
        ("vit_base_r50_s16_320", "vit_base_r50_s16_320"),
        ("resnet152", "resnet152"),
        ("resnet50_288", "resnet50_288"),
    ],
)
def test_names_and_aliases(written, name):
    assert resolve(written)[0] == name
    assert set(ALIASES.values()) <= set(list_models())


def test_unknown_names_and_fields():
    with pytest.raises(Error, match=r"did you mean.*R50x1"):
        create_model("R50x9")
    with pytest.raises(Error, match="no field 'width'; did you mean 'widths'"):
        create_model("resnet50", width=64)
    with pytest.raises(Error, match="multiple of 128, not 200"):
        create_model("R50x1", depths=(1,), widths=(200,))
    with pytest.raises(Error, match="2 depths for 1 widths"):
        create_model("resnet50", depths=(1, 1), widths=(64,))
    with pytest.raises(Error, match="standardize_eps_on is one of variance, deviation"):
        create_model("R50x1", standardize_eps_on="both")
    with pytest.raises(Error, match="did you mean 'gelu'"):
        create_model("resnet50", activation="gelv")


def test_pictures_come_in_as_each_family_was_judged():
    bit, hybrid, resnet = (on_meta(n) for n in ("R50x1", "R50+B/16", "resnet50"))
    assert (bit.preprocessing.fit, bit.preprocessing.crop) == ("squash", 1.0)
    assert bit.preprocessing.mean == hybrid.preprocessing.mean == (0.5, 0.5, 0.5)
    assert resnet.preprocessing.mean == (0.485, 0.456, 0.406)
    assert (resnet.preprocessing.crop, resnet.preprocessing.interpolation) == (0.875, "bilinear")
    assert on_meta("resnet50", in_channels=1).preprocessing.mean == (0.5,)
