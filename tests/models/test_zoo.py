"""Names: what they resolve to, and what is said of those that resolve to nothing."""

import pytest
import torch

import tests.reference.torchvision_stub  # noqa: F401  (before timm)
from vitrail import Error, list_models
from vitrail.models import vit_variants
from vitrail.models.vit import SIZES, ViTConfig
from vitrail.models.zoo import ALIASES, create_model, default_preprocessing, resolve


def on_meta(name, *args, **config):
    with torch.device("meta"):
        return create_model(name, *args, **config)


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("B/16", "vit_base_patch16_224"),
        ("Ti/16", "vit_tiny_patch16_224"),
        ("L/32", "vit_large_patch32_224"),
        ("H/14", "vit_huge_patch14_224"),
        ("So400m/14", "vit_so400m_patch14_224"),
        ("g/14", "vit_giant_patch14_224"),
        ("G/14", "vit_gigantic_patch14_224"),
        ("ViT-B_16", "vit_base_patch16_224"),
        ("ViT-L/16", "vit_large_patch16_224"),
        ("S_32", "vit_small_patch32_224"),
        ("google/vit-base-patch16-224", "vit_base_patch16_224"),
        ("google/vit-base-patch16-224-in21k", "vit_base_patch16_224"),
        ("google/vit-large-patch32-384", "vit_large_patch32_384"),
        ("google/vit-huge-patch14-224-in21k", "vit_huge_patch14_224"),
        ("vit_base_patch16", "vit_base_patch16_224"),
        ("vit_base_patch16_224", "vit_base_patch16_224"),
        ("vit_base_patch16_320", "vit_base_patch16_320"),
        ("vit_tiny_patch4_32", "vit_tiny_patch4_32"),
        ("vit_huge_patch14_518", "vit_huge_patch14_518"),
        ("vit_small_patch15", "vit_small_patch15_225"),
        ("vit_mu_patch16", "vit_mu_patch16_224"),
    ],
)
def test_names_and_aliases(written, name):
    full, entry = resolve(written)
    assert full == name
    model = on_meta(written)
    assert model.config == on_meta(name).config
    assert model.image_size == int(name.rpartition("_")[2])
    assert entry.family == "vit"


def test_every_listed_name_says_what_it_is():
    assert len(list_models()) == len(set(list_models())) >= 20
    for name in list_models("vit_*"):
        if resolve(name)[1].family != "vit":
            continue
        config = ViTConfig(**resolve(name)[1].config)
        size = SIZES[name.split("_")[1]]
        if name not in ("vit_giant_patch14_dinov2", "vit_giant_patch14_reg4_dinov2"):
            assert (config.depth, config.width) == (size["depth"], size["width"])
        assert f"_patch{config.patch_size}_" in name
        assert name.endswith(("dinov2", f"_{config.image_size}"))
    assert set(ALIASES.values()) <= set(list_models())


def test_every_listed_vit_is_timms_where_timm_has_the_name():
    import timm

    ours = [*list_models("vit_*"), *list_models("deit*")]
    shared = sorted({*ours} & {*timm.list_models("vit_*"), *timm.list_models("deit*")})
    shared = [name for name in shared if resolve(name)[1].family == "vit"]
    assert len(shared) >= 70
    assert not {*vit_variants.VARIANTS} - {*shared}
    for name in shared:
        with torch.device("meta"):
            theirs = timm.create_model(name, num_classes=1000)
        ours = on_meta(name)
        assert {n: p.shape for n, p in ours.named_parameters()} == {
            n: p.shape for n, p in theirs.named_parameters()
        }, name
        assert ours.blocks[0].attn.heads == theirs.blocks[0].attn.num_heads
        assert ours.norm.eps == theirs.norm.eps
        if name.startswith("vit_") and "clip" not in name:
            assert ours.norm.eps == 1e-6


def test_patterns():
    assert list_models("vit_tiny_patch*") == ["vit_tiny_patch16_224", "vit_tiny_patch16_384"]
    assert list_models("*384") == [name for name in list_models() if name.endswith("384")]
    assert list_models("nothing*") == []


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("vit_bas_patch16_224", "vit_base_patch16_224"),
        ("vit_base_patch_16_224", "vit_base_patch16_224"),
        ("VIT_TINY_PATCH16_224", "vit_tiny_patch16_224"),
        ("b/16", "B/16"),
        ("ViT-B-16", "ViT-B_16"),
        ("google/vit-base-patch16", None),
        ("resnet9000", None),
        ("", None),
        ("vit_base_patch0_224", "vit_base_patch"),
    ],
)
def test_an_unknown_name_names_the_nearest(name, near):
    with pytest.raises(Error, match="unknown model") as caught:
        create_model(name)
    if near:
        assert "did you mean" in str(caught.value)
        assert near in str(caught.value)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"dept": 4}, "no field 'dept'; did you mean 'depth'"),
        ({"embed_dim": 4}, "no field 'embed_dim'; it has patch_size"),
        ({"depth": "four"}, "depth must be a whole number, not 'four'"),
        ({"depth": 4.0}, "depth must be a whole number, not 4.0"),
        ({"dropout": "1e-3"}, "dropout must be a number, not '1e-3'"),
        ({"qkv_bias": 1}, "qkv_bias must be true or false, not 1"),
        ({"registers": True}, "registers must be a whole number, not True"),
        ({"pool": 3}, "pool must be a word, not 3"),
        ({"layer_scale": "x"}, "layer_scale must be a number or nothing, not 'x'"),
        ({"image_size": "224"}, "image_size must be a whole number or a list of numbers"),
        ({"image_size": (224,)}, "an image size is a whole number or"),
        ({"image_size": 225}, "use 224 or 240"),
        ({"heads": 5}, "5 heads do not divide a width of 192"),
    ],
)
def test_a_wrong_field_is_said_in_a_sentence(config, sentence):
    with pytest.raises(Error, match=sentence):
        create_model("vit_tiny_patch16_224", **config)


def test_arguments_reach_the_model():
    model = create_model("Ti/16", 5, image_size=(32, 64), in_channels=1, depth=1, dropout=0)
    assert not model.training
    assert model(torch.zeros(2, 1, 32, 64)).shape == (2, 5)
    assert model.image_size == (32, 64)
    assert model.preprocessing.size == (32, 64)
    assert create_model("Ti/16", num_classes=0, depth=1).features(
        torch.zeros(1, 3, 224, 224)
    ).shape == (1, 192)


def test_preprocessing_is_googles_with_timms_crop():
    assert default_preprocessing((224, 224)).crop == 0.9
    assert default_preprocessing((384, 384)).crop == 1.0
    assert default_preprocessing((28, 28)).crop == 1.0
    assert create_model("Ti/16", depth=1).preprocessing.mean == (0.5, 0.5, 0.5)
