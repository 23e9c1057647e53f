"""The relatives of the plain ViT against timm and transformers, and positions against formulas."""

from functools import partial

import pytest
import torch
from einops import rearrange
from torch import Tensor, nn

from tests.conftest import randomise
from tests.models.oracles import attention_share, difference, images_for, random_model, small
from tests.reference.torchvision_stub import timm
from vitrail import Error, Tape, load_weights
from vitrail.kit.grid import resize_table
from vitrail.kit.preprocess import IMAGENET_MEAN
from vitrail.models.cost import cost
from vitrail.models.vit import VisionTransformer, ViTConfig
from vitrail.models.vit_variants import ALIASES, VARIANTS
from vitrail.models.zoo import create_model, resolve

TOLERANCE = 1e-11

# Every kind of relative once: our name, which is timm's, at a size that is quick.
NAMES = [
    "deit_tiny_patch16_224",
    "deit_tiny_distilled_patch16_224",
    "deit3_small_patch16_224",
    "deit3_huge_patch14_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_giant_patch14_dinov2",
    "vit_giant_patch14_reg4_dinov2",
    "vit_base_patch16_clip_224",
    "vit_base_patch16_clip_quickgelu_224",
    "vit_base_patch16_siglip_224",
    "vit_base_patch32_siglip_256",
]


def pair(name: str) -> tuple[VisionTransformer, nn.Module, Tensor]:
    """Ours and timm's of a name, two blocks of width 48, with the same random weights."""
    patch_size = resolve(name)[1].config["patch_size"]
    size = 3 * patch_size
    ours = create_model(name, 5, size, depth=2, width=48, heads=3, mlp_width=96)
    ratio = 2 * (1 + ours.config.gated_mlp)
    theirs = timm.create_model(
        name, num_classes=5, img_size=size, depth=2, embed_dim=48, num_heads=3, mlp_ratio=ratio
    )
    ours, theirs = ours.double(), theirs.double().eval()
    randomise(ours)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs, images_for(ours.config)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_timms_with_every_tensor_random(name):
    ours, theirs, images = pair(name)
    assert set(theirs.state_dict()) == set(ours.state_dict())
    with torch.no_grad():
        assert difference(ours(images), theirs(images)) < TOLERANCE
        features = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
        assert difference(ours.features(images), features) < TOLERANCE
    assert 0.1 < attention_share(ours, images) < 0.9


MUTATIONS = {
    "quick GELU": ("vit_base_patch16_clip_224", {"activation": "quick_gelu"}, None),
    "CLIP with the usual eps": ("vit_base_patch16_clip_224", {"norm_eps": 1e-6}, None),
    "CLIP without its first norm": ("vit_base_patch16_clip_224", {"pre_norm": False}, "norm_pre"),
    "gate and value swapped": ("vit_giant_patch14_dinov2", {}, "swap"),
    "another gate": ("vit_giant_patch14_dinov2", {"activation": "gelu"}, None),
    "exact GELU": ("vit_base_patch32_siglip_256", {"activation": "gelu"}, None),
    "distillation token dropped": ("deit_tiny_distilled_patch16_224", {}, "dist_token"),
    "only the class head": ("deit_tiny_distilled_patch16_224", {}, "head_dist"),
    "LayerScale not read": ("deit3_small_patch16_224", {}, "gamma"),
    "registers not read": ("vit_small_patch14_reg4_dinov2", {}, "reg_token"),
}


@pytest.mark.parametrize("case", MUTATIONS)
def test_a_wrong_relative_is_found_a_hundred_times_over(case):
    name, fields, what = MUTATIONS[case]
    ours, theirs, images = pair(name)
    state = {key: tensor.clone() for key, tensor in ours.state_dict().items()}
    for key in list(state):
        if what == "swap" and ".fc1." in key:
            state[key] = torch.cat([*reversed(state[key].chunk(2))])
        elif what == "norm_pre" and what in key:
            del state[key]
        elif what and what in key:
            state[key] = torch.full_like(state[key], float(what == "gamma"))
    config = ViTConfig(**{**vars(ours.config), **fields})
    mutated = VisionTransformer(config).double().eval()
    mutated.load_state_dict(state, strict=what != "norm_pre")
    with torch.no_grad():
        assert difference(mutated(images), theirs(images)) > 100 * TOLERANCE


def test_a_distilled_model_gives_both_logits_on_the_tape():
    ours, theirs, images = pair("deit_tiny_distilled_patch16_224")
    theirs.set_distilled_training()
    theirs.train()
    tape = Tape(only="*_logits")
    with torch.no_grad():
        logits = ours(images, tape=tape)
        by_class, by_teacher = theirs(images)
    assert list(tape) == ["class_logits", "distillation_logits"]
    assert difference(tape["class_logits"], by_class) < TOLERANCE
    assert difference(tape["distillation_logits"], by_teacher) < TOLERANCE
    assert torch.equal(logits, (tape["class_logits"] + tape["distillation_logits"]) / 2)
    assert difference(by_class, by_teacher) > 0.1
    headless = create_model("deit_tiny_distilled_patch16_224", 0, 32, depth=1)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(headless(images), headless.features(images))


def test_preprocessing_is_each_familys():
    made = partial(create_model, depth=1, num_classes=0)
    deit, deit3 = made("deit_tiny_patch16_224"), made("deit3_small_patch16_384")
    assert (deit.preprocessing.mean, deit.preprocessing.crop) == (IMAGENET_MEAN, 0.875)
    assert (deit3.preprocessing.mean, deit3.preprocessing.crop) == (IMAGENET_MEAN, 1.0)
    clip, siglip = made("vit_base_patch16_clip_224"), made("vit_base_patch16_siglip_224")
    assert clip.preprocessing.mean == pytest.approx((0.481, 0.458, 0.408), abs=1e-3)
    assert siglip.preprocessing.mean == (0.5, 0.5, 0.5)
    assert made("vit_small_patch14_dinov2").preprocessing.size == (518, 518)


def test_names_and_aliases():
    assert resolve("facebook/deit-tiny-patch16-224")[0] == "deit_tiny_patch16_224"
    distilled = "facebook/deit-base-distilled-patch16-384"
    assert resolve(distilled)[0] == "deit_base_distilled_patch16_384"
    assert resolve("facebook/dinov2-with-registers-giant")[0] == "vit_giant_patch14_reg4_dinov2"
    assert resolve("deit_small_patch16")[0] == "deit_small_patch16_224"
    assert resolve("vit_small_patch14_dinov2_224")[1].config["image_size"] == 224
    for alias, name in ALIASES.items():
        assert resolve(alias)[0] == name
    with pytest.raises(Error, match="deit_tiny_patch16_224"):
        resolve("deit_tiny_patch_16_224")


# -------------------------------------------------------------------------------------------------
# Positions: the forward pass written down again, one token and one pair at a time.

PLACES = {
    "2-D": {"position": "learned2d"},
    "2-D, not square, no rows for the prefix": {
        "position": "learned2d",
        "position_on_prefix": False,
        "image_size": (32, 48),
    },
    "1-D at every layer": {"position_at": "layers"},
    "1-D at every layer, shared": {"position_at": "layers_shared", "registers": 2},
    "1-D at every layer, patches only": {"position_at": "layers", "position_on_prefix": False},
    "2-D at every layer": {"position": "learned2d", "position_at": "layers"},
    "fixed at every layer": {"position": "sincos2d_mae", "position_at": "layers"},
    "relative": {"position": "relative"},
    "relative, shared, mean": {
        "position": "relative",
        "position_at": "layers_shared",
        "pool": "mean",
    },
    "relative with the full width's scale": {"position": "relative", "attention_scale": "width"},
}


def written_down(model: VisionTransformer, images: Tensor) -> Tensor:
    """The logits by the text of appendix D.4."""
    c, state = model.config, dict(model.state_dict())
    rows, columns = images.shape[-2] // c.patch_size, images.shape[-1] // c.patch_size
    tokens = model.patch_embed(images).flatten(2).transpose(1, 2)
    tokens = torch.cat(
        [getattr(model, n).expand(len(images), -1, -1) for n in _tokens(c)] + [tokens], 1
    )
    n = tokens.shape[1]
    for i, block in enumerate(model.blocks):
        if i == 0 or c.position_at != "input":
            tokens = tokens + _added(c, state, i, rows, columns)
        y = block.norm1(tokens)
        q, k, v = (
            part.unflatten(-1, (c.heads, -1)).transpose(1, 2)
            for part in block.attn.qkv(y).chunk(3, -1)
        )
        scale = (c.width if c.attention_scale == "width" else c.width // c.heads) ** -0.5
        logits = scale * torch.einsum("bhie,bhje->bhij", q, k)
        if c.position == "relative":
            keys = state["pos_embed_offset"]
            keys = keys[i % len(keys)]
            for a in range(n):
                for b in range(n):
                    logits[:, :, a, b] += scale * q[:, :, a] @ keys[a - b + n - 1]
        mixed = (logits.softmax(-1) @ v).transpose(1, 2).flatten(2)
        tokens = tokens + block.attn.proj(mixed)
        tokens = tokens + block.mlp(block.norm2(tokens))
    tokens = model.norm(tokens)
    pooled = tokens[:, c.prefix :].mean(1) if c.pool == "mean" else tokens[:, 0]
    return model.head(pooled)


def _tokens(c: ViTConfig) -> list[str]:
    return ["cls_token"] * c.has_class_token + ["reg_token"] * (c.registers > 0)


def _added(c: ViTConfig, state: dict[str, Tensor], layer: int, rows: int, columns: int) -> Tensor:
    added = torch.zeros(c.prefix + rows * columns, c.width, dtype=torch.float64)
    if c.position == "relative":
        return added
    if c.position != "learned2d":
        table = state["pos_embed"][layer % len(state["pos_embed"])]
        added[len(added) - len(table) :] = table
        return added
    pick = layer % len(state["pos_embed_x"])
    if c.position_on_prefix:
        added[: c.prefix] = state["pos_embed_prefix"][pick]
    for y in range(rows):
        for x in range(columns):
            both = (state["pos_embed_x"][pick, x], state["pos_embed_y"][pick, y])
            added[c.prefix + y * columns + x] = torch.cat(both)
    return added


@pytest.mark.parametrize("name", PLACES)
def test_positions_are_those_of_appendix_d4(name):
    config = small(**PLACES[name], depth=3)
    model = random_model(config)
    images = images_for(config)
    with torch.no_grad():
        assert difference(model(images), written_down(model, images)) < TOLERANCE
        other = VisionTransformer(small(depth=3)).double().eval()
        other.load_state_dict(
            {
                k: v
                for k, v in model.state_dict().items()
                if "pos_" not in k and k in other.state_dict()
            },
            strict=False,
        )
        assert difference(other(images_for(small())), model(images_for(small()))) > 1e-3


def test_each_place_has_as_many_tables_as_it_says():
    grid, half = 16, 24
    shapes = {
        ("learned", "layers"): {"pos_embed": [2, 17, 48]},
        ("learned", "layers_shared"): {"pos_embed": [1, 17, 48]},
        ("learned2d", "input"): {
            "pos_embed_prefix": [1, 1, 48],
            "pos_embed_x": [1, 4, half],
            "pos_embed_y": [1, 4, half],
        },
        ("relative", "input"): {"pos_embed_offset": [2, 2 * (1 + grid) - 1, 16]},
        ("relative", "layers_shared"): {"pos_embed_offset": [1, 33, 16]},
    }
    for (position, at), expected in shapes.items():
        model = VisionTransformer(small(position=position, position_at=at))
        state = model.state_dict()
        assert {n: list(t.shape) for n, t in state.items() if n.startswith("pos")} == expected
        for name in expected:
            assert model.depth_of(name) == 0
            assert 0.01 < state[name].std() < 0.03


def test_only_offsets_tell_patches_apart_in_relative_attention():
    """With the key of offset 0 alone a bag of patches remains; another key orders it."""
    config = small(position="relative", pool="none", class_token=False, depth=1)
    model, images = random_model(config), images_for(config)
    order = torch.randperm(16).tolist()
    patches = rearrange(images, "b c (r p) (k q) -> b (r k) c p q", r=4, k=4)[:, order]
    moved = rearrange(patches, "b (r k) c p q -> b c (r p) (k q)", r=4)
    with torch.no_grad():
        model.pos_embed_offset.zero_()
        model.pos_embed_offset[:, 15] = 3.0
        assert difference(model(moved), model(images)[:, order]) < TOLERANCE
        model.pos_embed_offset[:, 16] = -3.0
        assert difference(model(moved), model(images)[:, order]) > 1e-3


def test_relative_attention_moves_with_the_content():
    """One key says 'look one place back': then every token is its neighbour, wherever it lies."""
    config = small(position="relative", pool="none", class_token=False, depth=1)
    model, tape = random_model(config), Tape()
    n = 16
    with torch.no_grad():
        block = model.blocks[0]
        for linear in (block.attn.qkv, block.attn.proj, block.mlp.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
        block.attn.qkv.bias[:48] = 1.0  # all queries are ones, all keys are nothing
        block.attn.qkv.weight[96:] = torch.eye(48)  # values are the normed tokens
        block.attn.proj.weight.copy_(torch.eye(48))
        model.pos_embed_offset.zero_()
        model.pos_embed_offset[0, n - 1 + 1] = 1000.0  # the offset is query - key
        model(images_for(config), tape=tape)
    normed = block.norm1(tape["embedded"])
    moved = tape["blocks.0.out"] - tape["embedded"]
    assert difference(moved[:, 1:], normed[:, :-1]) < TOLERANCE
    assert difference(moved[:, :1], normed.mean(dim=1, keepdim=True)) < TOLERANCE


FACE = {
    "distilled": {"distilled": True},
    "CLIP": {"pre_norm": True, "activation": "quick_gelu", "norm_eps": 1e-5},
    "SwiGLU": {"gated_mlp": True, "activation": "silu", "registers": 2, "layer_scale": 0.1},
    "token and mean": {"pool": "token_mean", "registers": 1},
    "2-D": {"position": "learned2d", "position_at": "layers"},
    "relative": {"position": "relative"},
    "relative, shared": {"position": "relative", "position_at": "layers_shared"},
    "every layer": {"position_at": "layers", "position_on_prefix": False},
}


@pytest.mark.parametrize("name", FACE)
def test_the_face_of_a_model(name):
    config = small(**FACE[name])
    model = random_model(config).float()
    images = images_for(config, batch=4).float()
    tape = Tape()
    with torch.no_grad():
        logits = model(images)
        torch.testing.assert_close(model(images, tape=tape), logits, rtol=1e-5, atol=1e-5)
        alone = torch.cat([model(image[None]) for image in images])
        torch.testing.assert_close(alone, logits, rtol=1e-4, atol=1e-5)
        wide = torch.randn(2, 3, 24, 56)
        assert model(wide).shape == (2, 7)
        (maps,) = model.feature_maps(wide)
        assert maps.shape == (2, 48, 3, 7)
    t = 16 + config.prefix
    assert tape["blocks.1.attention"].shape == (4, 3, t, t)
    assert tape["pooled"].shape == (4, config.features_width)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images), logits, rtol=1e-4, atol=1e-5)
        exported = torch.export.export(model, (images,)).module()
        torch.testing.assert_close(exported(images), logits, rtol=1e-4, atol=1e-5)
    model.train()
    gradients = []
    for checkpointing in (False, True):
        model.checkpointing = checkpointing
        model.zero_grad()
        model(images).square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for key, gradient in gradients[0].items():
        assert gradient.isfinite().all()
        assert gradient.abs().max() > 0, key
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["2-D", "relative", "every layer"])
def test_a_model_built_for_a_size_equals_one_that_was_resized_to_it(name):
    model = random_model(small(**FACE[name]))
    bigger = VisionTransformer(small(**FACE[name], image_size=(48, 40))).double().eval()
    state = model.state_dict()
    images = images_for(small(image_size=(48, 40)))
    report = load_weights(bigger, state)
    assert report.resized
    with torch.no_grad():
        assert difference(bigger(images), model(images)) < TOLERANCE


def test_relative_keys_keep_their_share_of_the_length():
    model = random_model(small(position="relative", depth=1))
    keys = model.pos_embed_offset[:, :, :1].detach()
    longer = resize_table(keys, (33, 1), (65, 1), "bilinear_corners")
    torch.testing.assert_close(longer[:, ::2], keys)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"distilled": True, "pool": "mean"}, "distilled model reads its two tokens"),
        ({"distilled": True, "pre_logits": True}, "distilled model reads its two tokens"),
        ({"position": "learned2d", "width": 27}, "needs an even width, not 27"),
        ({"position": "learned3d"}, "did you mean 'learned2d'"),
        ({"position_at": "layer"}, "did you mean 'layers'"),
        ({"pool": "token_mean", "class_token": False}, "'token_mean' reads the class token"),
    ],
)
def test_what_does_not_go_together(fields, sentence):
    with pytest.raises(Error, match=sentence):
        small(**fields)


def test_macs_are_those_that_timm_reports():
    """timm's table of DINOv2 at 518 pixels, in billions; softmax and norms are not in ours."""
    reported = {
        "vit_small_patch14_dinov2": 46.76,
        "vit_base_patch14_dinov2": 151.71,
        "vit_large_patch14_dinov2": 507.15,
        "vit_giant_patch14_dinov2": 1784.2,
        "vit_small_patch14_reg4_dinov2": 46.95,
        "vit_base_patch14_reg4_dinov2": 152.25,
        "vit_large_patch14_reg4_dinov2": 508.9,
        "vit_giant_patch14_reg4_dinov2": 1790.08,
    }
    for name, gmacs in reported.items():
        with torch.device("meta"):
            assert cost(create_model(name, 0)).macs / 1e9 == pytest.approx(gmacs, rel=5e-3), name


def test_parameters_of_the_published_relatives():
    """DeiT's paper: 5M, 22M, 86M; distilled 6M, 22M, 87M; DINOv2 giant 1.1B."""
    counts = {
        "deit_tiny_patch16_224": 5_717_416,
        "deit_tiny_distilled_patch16_224": 5_717_416 + 2 * 192 + 192 * 1000 + 1000,
        "deit_base_distilled_patch16_224": 86_567_656 + 2 * 768 + 768 * 1000 + 1000,
        # DINOv2's 1,136,480,768 without the mask token
        "vit_giant_patch14_dinov2": 1_136_480_768 - 1536 + 1536 * 1000 + 1000,
    }
    for name, count in counts.items():
        with torch.device("meta"):
            model = create_model(name)
        assert sum(p.numel() for p in model.parameters()) == count, name
    assert {config["patch_size"] for config, _, _ in VARIANTS.values()} == {14, 16, 32}
