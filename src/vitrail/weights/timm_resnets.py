"""timm's state dicts of the ResNets: the plain one, whose names are torchvision's too, and BiT's.

Our names are timm's. A plain ResNet's file from before 2018 lacks the batch norms' counters,
which nothing computes with. torchvision's files have the very same names: those that it released
are known by what they are called, and by the lacking counters (`as_torchvision`).
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.kit.preprocess import IMAGENET_MEAN, IMAGENET_STD
from vitrail.models import vit
from vitrail.models.base import height_width
from vitrail.models.bit_resnet import BiTConfig, variant
from vitrail.models.hybrid import STAGE_WIDTHS, HybridConfig
from vitrail.models.hybrid import VARIANTS as HYBRIDS
from vitrail.models.resnet import VARIANTS, ResNetConfig
from vitrail.weights import timm
from vitrail.weights.rules import Reading
from vitrail.weights.timm import STANDARDIZED_NUMERICS

RESNET_NUMERICS = {"activation": "relu", "norm_eps": 1e-5}
TIMM_HAS = ("50x1", "50x3", "101x1", "101x3", "152x2", "152x4")
TIMM_LACKS = ("vit_base_r50_s32", "vit_large_r50_s16")
TIMM_SIZES = {"vit_base_r26_s32": (224,)}  # the others in their names are 224 and 384
# torchvision's second weights (IMAGENET1K_V2) are resized to 232 pixels instead of 256.
SECOND_WEIGHTS = ("resnet50-11ad3fa6", "resnet101-cd907fc2", "resnet152-f82ba261")
Architecture = tuple[str, dict[str, Any], list[str]]


def recognise(tensors: Mapping[str, Tensor], config: Any) -> Reading | None:
    """What a ResNet's state dict holds; None where this is none, or not for this model."""
    first = ("stages.0.blocks.0.norm1.", "stages.0.blocks.0.conv1.")
    if isinstance(config, BiTConfig) and any(name.startswith(first) for name in tensors):
        return Reading(
            "timm", timm.IDENTITY, tensors, droppable=("head",), numerics=STANDARDIZED_NUMERICS
        )
    if type(config) is ResNetConfig and "layer1.0.conv1.weight" in tensors:
        return Reading("timm", timm.IDENTITY, tensors, droppable=("fc",), numerics=RESNET_NUMERICS)
    return None


def as_torchvision(reading: Reading, source: str) -> Reading:
    """A ResNet's reading as torchvision's, where the file is one that torchvision released.

    Args:
        reading: what `recognise` made of it.
        source: the file's name, as in ``resnet50-0676ba61.pth``.
    """
    released = re.match(r"(resnet\d+-[0-9a-f]{8})\b", source)
    counted = any(name.endswith(".num_batches_tracked") for name in reading.tensors)
    if released is None and counted:
        return reading
    second = released is not None and released[1] in SECOND_WEIGHTS
    reading.family = "torchvision"
    reading.preprocessing = {
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "interpolation": "bilinear",
        "fit": "crop",
        "crop": 224 / 232 if second else 0.875,
    }
    return reading


def resnet_architecture(config: ResNetConfig) -> Architecture:
    """How timm would build this ResNet: its name, the arguments, and what timm cannot express."""
    by_depths = {fields["depths"]: name for name, fields in VARIANTS.items()}
    name, usual = by_depths.get(config.depths, "resnet50"), ResNetConfig()
    planes = [width // 4 for width in config.widths]
    wanted = {
        "layers": (list(config.depths), list(VARIANTS[name]["depths"])),
        "channels": (planes, [width // 4 for width in usual.widths]),
        "act_layer": (config.activation, "relu"),
        "in_chans": (config.in_channels, 3),
    }
    beyond = _beyond(config, {"stem_width": 64, "norm_eps": 1e-5})
    return _named(name, beyond), _different(wanted), beyond


def bit_architecture(config: BiTConfig) -> Architecture:
    """How timm would build this BiT ResNet: as `resnet_architecture`."""
    alike = [short for short in TIMM_HAS if variant(short)["depths"] == config.depths]
    exact = [short for short in alike if variant(short)["widths"] == config.widths]
    short = [*exact, *alike, "50x1"][0]
    factor = int(short.partition("x")[2])  # on every width that timm is given
    wanted = {
        "channels": ([width // factor for width in config.widths], list(BiTConfig.widths)),
        "stem_chs": (config.stem_width // factor, 64),
        "in_chans": (config.in_channels, 3),
    }
    beyond = _beyond(config, {**STANDARDIZED_NUMERICS, "depths": variant(short)["depths"]})
    return _named(f"resnetv2_{short}_bit", beyond), _different(wanted), beyond


def hybrid_architecture(config: HybridConfig) -> Architecture:
    """How timm would build this hybrid: as `resnet_architecture`."""
    known = {name: HYBRIDS[name] for name in HYBRIDS if name not in TIMM_LACKS}
    alike = [
        name
        for name, (_, depths, patch_size) in known.items()
        if (depths, patch_size) == (config.depths, config.patch_size)
    ]
    exact = [name for name in alike if vit.SIZES[known[name][0]]["width"] == config.width]
    name = [*exact, *alike, "vit_base_r50_s16"][0]
    size, depths, patch_size = known[name]
    sides = TIMM_SIZES.get(name, (224, 384))
    image_size = height_width(config.image_size)
    shown = next((side for side in sides if image_size == (side, side)), sides[0])
    usual = {
        **STANDARDIZED_NUMERICS,
        "depths": depths,
        "widths": STAGE_WIDTHS[: len(depths)],
        "stem_width": 64,
    }
    beyond = [*timm.beyond_timm(config), *_beyond(config, usual)]
    arguments = {
        "img_size": timm.plain_size(image_size),
        **timm.vit_arguments(config, size, patch_size),
    }
    return _named(f"{name}_{shown}", beyond), arguments, beyond


def _named(name: str, beyond: list[str]) -> str:
    return f"vitrail:{name}" if beyond else name


def _different(wanted: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    return {name: ours for name, (ours, theirs) in wanted.items() if ours != theirs}


def _beyond(config: Any, usual: Mapping[str, Any]) -> list[str]:
    """The fields that change the logits and that timm has no argument for."""
    return [
        f"{name}={getattr(config, name)!r}"
        for name, value in usual.items()
        if getattr(config, name) != value
    ]
