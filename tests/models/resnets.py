"""Small ResNets of each kind, and the same in timm."""

from functools import partial

import torch
from torch import nn

import tests.reference.torchvision_stub  # noqa: F401  (before timm)
from tests.conftest import randomise
from vitrail.models.bit_resnet import BiTConfig
from vitrail.models.hybrid import HybridConfig
from vitrail.models.resnet import ResNetConfig
from vitrail.models.zoo import from_config

STAGES = {"depths": (1, 2), "widths": (128, 256), "stem_width": 32}
VIT = {"depth": 2, "width": 48, "heads": 3, "mlp_width": 96}
SMALL = {
    "resnet": {"depths": (1, 2, 1, 1), "widths": (32, 64, 64, 128)},  # timm has four stages
    "bit": STAGES,
    "hybrid": {**STAGES, **VIT},
    "stem": {"depths": (), "widths": (), "stem_width": 64, "patch_size": 2, **VIT},
}


def small(kind, **fields):
    """A tiny model in float64 and eval mode; ``stem`` is the hybrid without stages."""
    family = "hybrid" if kind == "stem" else kind
    fields = {"num_classes": 7, "image_size": 32, **SMALL[kind], **fields}
    return from_config(family, fields).double()


def random_model(kind, seed=0, **fields):
    model = small(kind, **fields)
    randomise(model, seed)
    return model


def pictures(height=32, width=None, batch=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 3, height, width or height)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def timm_twin(config) -> nn.Module:
    """timm's model of the same configuration, in float64 and eval mode."""
    from timm.layers import HybridEmbed, StdConv2d, StdConv2dSame
    from timm.models.resnet import Bottleneck, ResNet
    from timm.models.resnetv2 import ResNetV2, create_resnetv2_stem
    from timm.models.vision_transformer import VisionTransformer

    c = config
    stages = {"layers": c.depths, "channels": c.widths, "stem_chs": c.stem_width}
    if isinstance(c, ResNetConfig):
        planes = [width // 4 for width in c.widths]
        model = ResNet(Bottleneck, c.depths, num_classes=c.num_classes, channels=planes)
    elif isinstance(c, BiTConfig):
        model = ResNetV2(
            **stages,
            num_classes=c.num_classes,
            stem_type="fixed",
            conv_layer=partial(StdConv2d, eps=c.standardize_eps),
        )
    else:
        assert isinstance(c, HybridConfig)
        same = {
            "preact": False,
            "stem_type": "same",
            "conv_layer": partial(StdConv2dSame, eps=c.standardize_eps),
        }
        if c.depths:
            backbone = ResNetV2(**stages, num_classes=0, global_pool="", **same)
        else:
            backbone = create_resnetv2_stem(3, c.stem_width, **same)
        model = VisionTransformer(
            img_size=c.image_size,
            patch_size=c.patch_size,
            embed_layer=partial(HybridEmbed, backbone=backbone),
            embed_dim=c.width,
            depth=c.depth,
            num_heads=c.heads,
            mlp_ratio=(c.mlp_width + 0.5) / c.width,
            num_classes=c.num_classes,
        )
    return model.double().eval()
