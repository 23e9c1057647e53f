"""Folding: each step alone and all together leave the logits of every family as they were."""

import copy

import pytest
import torch
from torch import nn

from tests.contract import reduced
from vitrail.export import steps
from vitrail.export.fold import Folded, FoldedTransformer, fold
from vitrail.export.reading import LastBlock, PoolByQuery, last_block
from vitrail.kit.errors import Error
from vitrail.kit.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from vitrail.models.standardize import StandardizedConv2d

EXACT = 1e-10  # in float64, where rounding is 1e-16

# One of every family, and of the plain ViT one of every way to pool and every kind of token.
FAMILIES = {
    "token": ("vit_base_patch16_224", {}),
    "pre_logits": ("vit_base_patch16_224", {"pre_logits": True}),
    "mean": ("vit_base_patch16_224", {"pool": "mean", "class_token": False}),
    "mean_norm_after": ("vit_base_patch16_224", {"pool": "mean", "norm_after_pool": True}),
    "token_mean": ("vit_base_patch16_224", {"pool": "token_mean"}),
    "map": ("vit_base_patch16_siglip_224", {}),
    "registers": ("vit_small_patch14_reg4_dinov2", {}),
    "gated": ("vit_giant_patch14_dinov2", {}),
    "layer_scale": ("deit3_small_patch16_224", {}),
    "clip": ("vit_base_patch16_clip_224", {}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "relative": ("vit_base_patch16_224", {"position": "relative"}),
    "every_layer": ("vit_base_patch16_224", {"position": "learned2d", "position_at": "layers"}),
    "grey": ("vit_base_patch16_224", {"in_channels": 1}),
    "hybrid": ("vit_base_r50_s16_224", {}),
    "hybrid_stem": ("vit_tiny_r_s16_p8_224", {}),
    "bit": ("resnetv2_50x1_bit", {}),
    "resnet": ("resnet50", {}),
    "botnet": ("botnet50_224", {}),
    "botnet_absolute": ("botnet50_224", {"position": "absolute"}),
    "botnet_t3": ("botnet_t3_224", {}),
    "cvt": ("cvt_13_224", {}),
    "cvt_linear": ("cvt_13_224", {"projections": "linear", "embedding": "patch"}),
    "cvt_mean": ("cvt_13_224", {"pool": "mean", "position": "every"}),
    "t2t": ("t2t_vit_14", {}),
    "t2t_transformer": ("t2t_vit_t_14", {}),
    "t2t_patches": ("t2t_vit_14", {"tokens": "patches"}),
    "pvt": ("pvt_tiny", {}),
    "pvt_v2": ("pvt_v2_b2", {}),
    "pvt_v2_linear": ("pvt_v2_b2_li", {}),
}


def build(kind):
    name, changes = FAMILIES[kind]
    model = reduced.build(name, **changes)
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if kind != "grey" else ((0.4,), (0.3,))
    size = model.preprocessing.size
    model.preprocessing = Preprocessing(size=size, mean=mean, std=std)
    return model


def bytes_for(model, batch=3, size=None):
    generator = torch.Generator().manual_seed(5)
    shape = (batch, *(size or model.preprocessing.size), 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


@torch.no_grad()
def gap(model, folded, images):
    """The largest difference of logits, as a share of the largest logit."""
    dtype = next(model.parameters()).dtype
    expected = model(normalise(model, images).to(dtype))
    got = folded(images)
    assert got.shape == expected.shape
    return float((got - expected).abs().max() / expected.abs().max())


def normalise(model, images):
    """In float64: `Preprocessing.normalize` itself rounds to float32."""
    p = model.preprocessing
    floats = images.double() / 255
    if len(p.mean) == 1:
        floats = (floats * torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64)).sum(
            -1, keepdim=True
        )
    mean, std = (torch.tensor(part, dtype=torch.float64) for part in (p.mean, p.std))
    floats = (floats - mean) / std
    return floats.permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", FAMILIES)
def test_folding_is_exact(kind):
    model = build(kind)
    images = bytes_for(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold(model)
    assert gap(model, folded, images) < EXACT
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    single = model.float()
    with torch.no_grad():
        expected = single(model.preprocessing.normalize(images))
        got = fold(single)(images)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


STEPS = {
    "standardized_weights": ("hybrid", "bit"),
    "batch_norms": ("resnet", "botnet", "botnet_absolute", "botnet_t3", "cvt"),
    "layer_norms": (
        *("token", "pre_logits", "mean", "mean_norm_after", "token_mean", "map", "distilled"),
        *("cvt", "cvt_linear", "cvt_mean", "t2t", "t2t_transformer", "pvt", "pvt_v2"),
        "pvt_v2_linear",
    ),
    "layer_scales": ("layer_scale", "registers"),
    "query_scales": ("token", "map", "relative", "botnet", "cvt", "t2t_transformer", "pvt"),
    "joined_projections": ("cvt_linear", "pvt"),
    "last_block": ("map", "token", "distilled", "registers", "cvt", "cvt_linear", "t2t", "pvt"),
}
ALONE = [(step, kind) for step, kinds in STEPS.items() for kind in kinds]


@pytest.mark.parametrize(("step", "kind"), ALONE)
def test_every_step_alone_is_exact_and_does_something(step, kind):
    model = build(kind)
    changed = copy.deepcopy(model)
    if step == "last_block":
        steps.query_scales(changed)  # which it builds upon
    shapes = describe(changed)
    weights = {name: tensor.clone() for name, tensor in changed.state_dict().items()}
    {"last_block": last_block}.get(step, getattr(steps, step, None))(changed)
    images = normalise(model, bytes_for(model))
    with torch.no_grad():
        expected, got = model(images), changed(images)
    assert (got - expected).abs().max() < EXACT * expected.abs().max()
    after = changed.state_dict()
    same = after.keys() == weights.keys() and all(
        torch.equal(after[name], tensor) for name, tensor in weights.items()
    )
    assert not same or describe(changed) != shapes


def describe(model):
    return [(name, type(part).__name__) for name, part in model.named_modules()]


def parts(module, kind):
    return [part for part in module.modules() if isinstance(part, kind)]


def test_nothing_is_left_that_could_be_folded():
    assert not parts(fold(build("bit")), StandardizedConv2d)
    assert not parts(fold(build("hybrid")), StandardizedConv2d)
    for kind in ("resnet", "botnet", "cvt"):
        assert not parts(fold(build(kind)), nn.BatchNorm2d)
    for kind in ("token", "mean", "map", "distilled", "t2t", "pvt"):
        folded = fold(build(kind))
        norms = parts(folded, nn.LayerNorm)
        kept = [norm for norm in norms if norm.elementwise_affine]
        # PVT norms what it embeds: that is the residual stream itself
        assert len(kept) == (4 if kind == "pvt" else 0)
    for kind in ("token", "distilled", "t2t", "pvt", "cvt"):
        assert len(parts(fold(build(kind)), LastBlock)) == 1
    assert len(parts(fold(build("map")), PoolByQuery)) == 1
    assert not parts(fold(build("mean")), LastBlock)
    assert not parts(fold(build("relative")), LastBlock)
    assert isinstance(fold(build("hybrid")), FoldedTransformer)


@pytest.mark.parametrize("kind", ["token", "registers", "relative", "every_layer", "hybrid"])
@pytest.mark.parametrize("shape", [(2, 2), (2, 1)])
def test_a_plain_transformer_at_another_size(kind, shape):
    model = build(kind)
    side = model.preprocessing.size[0]
    size = (side * shape[0], side * shape[1])
    assert gap(model, fold(model, size), bytes_for(model, size=size)) < EXACT


@pytest.mark.parametrize("kind", ["bit", "resnet", "botnet", "cvt", "cvt_mean", "t2t", "pvt_v2"])
def test_another_family_at_another_size(kind):
    model = build(kind)
    height, width = model.preprocessing.size
    size = (2 * height, 2 * width)
    assert gap(model, fold(model, size), bytes_for(model, size=size)) < 1e-6


def test_a_table_is_resized_as_the_model_does_it_itself():
    model = build("pvt")
    size = tuple(2 * side for side in model.preprocessing.size)
    assert gap(model, fold(model, size), bytes_for(model, size=size)) < 1e-6


def test_a_size_that_the_patches_do_not_divide():
    with pytest.raises(Error, match="multiple of"):
        fold(build("token"), 33)


def test_a_model_of_other_channels_is_refused():
    with pytest.raises(Error, match="channels"):
        fold(reduced.build("vit_base_patch16_224", in_channels=4))


def test_a_family_that_nobody_knows_is_normalised_in_front():
    class Plain(type(build("resnet")).__mro__[1]):
        """A classifier without anything that folding looks for."""

        def __init__(self, config):
            super().__init__(config)
            self.head = nn.Linear(3, 7)

        def features(self, images, tape=None):
            return images.mean(dim=(2, 3))

    model = Plain(build("resnet").config).double().eval()
    model.preprocessing = build("resnet").preprocessing
    folded = fold(model)
    assert isinstance(folded, Folded)
    assert gap(model, folded, bytes_for(model)) < EXACT
