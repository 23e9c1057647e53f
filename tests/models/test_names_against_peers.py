"""By their names: what the zoo builds and what timm or transformers builds give the same logits.

Everything is as the name says but for the picture's size and, where it is a field, the depth.
"""

import pytest
import torch

import tests.reference.torchvision_stub  # noqa: F401  (before timm)
from tests.conftest import randomise
from tests.models.oracles import difference
from vitrail.models.vit import ViTConfig
from vitrail.models.zoo import config_of, create_model
from vitrail.weights.convert import convert

TIMM = [
    *("vit_tiny_patch16_224", "vit_tiny_patch16_384", "vit_small_patch32_224"),
    *("vit_small_patch32_384", "vit_small_patch16_224", "vit_small_patch8_224"),
    *("vit_base_patch32_224", "vit_base_patch16_224", "vit_base_patch16_384"),
    *("vit_base_patch8_224", "vit_large_patch16_224", "vit_large_patch14_224"),
    *("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"),
    *("deit_tiny_distilled_patch16_224", "deit_small_distilled_patch16_224"),
    *("deit3_small_patch16_224", "deit3_medium_patch16_224", "deit3_base_patch16_224"),
    *("vit_small_patch14_dinov2", "vit_base_patch14_dinov2"),
    *("vit_small_patch14_reg4_dinov2", "vit_base_patch14_reg4_dinov2"),
    *("vit_base_patch16_clip_224", "vit_base_patch32_clip_quickgelu_224"),
    *("vit_base_patch16_siglip_224", "vit_base_patch32_siglip_256"),
    *("vit_tiny_r_s16_p8_224", "vit_small_r26_s32_224", "vit_base_r50_s16_224"),
    *("resnetv2_50x1_bit", "resnet50"),
    *("pvt_v2_b0", "pvt_v2_b1", "pvt_v2_b2", "pvt_v2_b2_li"),
]
FIRST_WEIGHTS = [
    *(("vit_tiny_patch16_224", 1e-5), ("vit_base_patch16_224", 1e-5)),
    *(("deit3_small_patch16_224", 1e-5), ("deit_tiny_distilled_patch16_224", 1e-5)),
    *(("vit_small_patch14_reg4_dinov2", 1e-5), ("vit_base_patch16_siglip_224", 1e-5)),
    *(("vit_tiny_r_s16_p8_224", 1e-5), ("resnet50", 1e-5), ("pvt_v2_b0", 1e-5)),
    # standardised weights through 50 layers: float32 itself is 1e-5 from float64 there
    ("resnetv2_50x1_bit", 4e-5),
]
TRANSFORMERS = [
    *("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_small_patch14_dinov2"),
    *("vit_small_patch14_reg4_dinov2", "cvt_13_224", "pvt_tiny"),
    *("pvt_v2_b0", "pvt_v2_b2_li", "resnet50", "resnetv2_50x1_bit"),
]


def changes(name):
    """A small picture and, for a ViT, a single block: the same fields here and in timm."""
    config = config_of(name)
    if not isinstance(config, ViTConfig):
        return {"image_size": 64}
    return {"image_size": 2 * config.stride, "depth": 1}


def pictures(size):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, size, size, generator=generator, dtype=torch.float64)


def both(name, dtype, device):
    """Our model and timm's of a name."""
    import timm

    fields = changes(name)
    more = {"img_size": fields["image_size"], "depth": 1} if "depth" in fields else {}
    with torch.device(device):
        theirs = timm.create_model(name, num_classes=7, **more).eval()
        ours = create_model(name, num_classes=7, **fields)
    if device == "meta":  # to be filled
        ours, theirs = ours.to_empty(device="cpu"), theirs.to_empty(device="cpu")
    return ours.to(dtype), theirs.to(dtype), pictures(fields["image_size"]).to(dtype)


@pytest.mark.parametrize("name", TIMM)
def test_the_name_has_timms_logits(name):
    """In float64 with every tensor random."""
    ours, theirs, x = both(name, torch.float64, "meta")
    randomise(ours)
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) < 1e-9


@pytest.mark.parametrize(("name", "allowed"), FIRST_WEIGHTS)
def test_the_name_has_timms_logits_with_timms_first_weights_in_float32(name, allowed):
    ours, theirs, x = both(name, torch.float32, "cpu")
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        assert difference(ours(x), theirs(x)) < allowed


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_the_name_has_transformers_logits(tmp_path, name):
    transformers = pytest.importorskip("transformers")
    fields = changes(name)
    kind = name.partition("_")[0]
    # numerics that transformers has: its CvT the exact GELU, its pyramids one eps for all norms
    fields |= {"cvt": {"activation": "gelu"}, "pvt": {"embed_norm_eps": 1e-6}}.get(kind, {})
    fields |= {"pool": "token_mean"} if "dinov2" in name else {}
    with torch.device("meta"):
        ours = create_model(name, num_classes=7, **fields)
    ours = ours.to_empty(device="cpu")
    randomise(ours)
    convert(ours, "hf", tmp_path / "hf")
    auto = transformers.AutoModelForImageClassification
    theirs = auto.from_pretrained(tmp_path / "hf", dtype=torch.float64).eval()
    x = pictures(fields["image_size"])
    with torch.no_grad():
        assert difference(ours.double()(x), theirs(x).logits) < 1e-9


def test_there_are_enough_of_them():
    assert len({*TIMM, *TRANSFORMERS}) >= 30
