"""timm's state dicts of the plain ViT, and what timm calls one of our models.

Our names are timm's, so the rules are nearly the identity; what differs is DeiT-III's older
spelling of LayerScale. A bare state dict does not say which activation, eps or pixel statistics
go with it: timm keeps those with the model's name, and a timm folder in its `config.json`.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.kit.preprocess import Preprocessing
from vitrail.models.base import height_width
from vitrail.models.vit import SIZES, ViTConfig
from vitrail.weights.rules import Reading, Rule

NUMERICS = {
    "activation": "gelu",
    "norm_eps": 1e-6,
    "attention_scale": "head",
    "position_resize": "bicubic_antialias",
}
IDENTITY = [Rule("{name}", "{name}")]
DEIT3 = [
    Rule("blocks.{i}.gamma_1", "blocks.{i}.ls1.gamma"),
    Rule("blocks.{i}.gamma_2", "blocks.{i}.ls2.gamma"),
    *IDENTITY,
]

# timm's architectures of the plain ViT whose arguments are nothing but the sizes: (size, patch)
# to the resolutions in their names.
ARCHITECTURES = {
    ("tiny", 16): (224, 384),
    ("small", 32): (224, 384),
    ("small", 16): (224, 384),
    ("small", 8): (224,),
    ("base", 32): (224, 384),
    ("base", 16): (224, 384),
    ("base", 8): (224,),
    ("large", 32): (224, 384),
    ("large", 16): (224, 384),
    ("large", 14): (224,),
    ("huge", 14): (224,),
    ("giant", 14): (224,),
    ("gigantic", 14): (224,),
}
POOLS = {"token": "token", "mean": "avg", "map": "map", "none": ""}
CROP_MODES = {"crop": "center", "squash": "squash", "letterbox": "border"}


def recognise(tensors: Mapping[str, Tensor], config: Any) -> Reading | None:
    """What a state dict in timm's names holds; None where this is none, or not for this model."""
    if "patch_embed.proj.weight" not in tensors or not isinstance(config, ViTConfig):
        return None
    deit3 = any(re.fullmatch(r"blocks\.\d+\.gamma_1", name) for name in tensors)
    return Reading(
        family="timm",
        rules=DEIT3 if deit3 else IDENTITY,
        tensors=tensors,
        droppable=("pre_logits", "cls_token", "head"),
        numerics=NUMERICS,
    )


def read_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a timm `config.json` says beyond the names: numerics, pixel statistics, labels, size.

    Returns:
        Any of ``numerics`` and ``preprocessing`` (dicts of fields), ``labels``, ``image_size``.
    """
    said: dict[str, Any] = {}
    arguments = config.get("model_args") or {}
    about = config.get("pretrained_cfg") or {}
    size = arguments.get("img_size")
    if size is not None:
        said["image_size"] = height_width(size if isinstance(size, int) else tuple(size))
    if arguments.get("act_layer") in ("gelu_tanh", "quick_gelu", "relu", "silu"):
        said["numerics"] = {**NUMERICS, "activation": arguments["act_layer"]}
    fits = {mode: fit for fit, mode in CROP_MODES.items()}
    fields = {
        "mean": about.get("mean"),
        "std": about.get("std"),
        "crop": about.get("crop_pct"),
        "interpolation": about.get("interpolation"),
        "fit": fits.get(about.get("crop_mode", "center")),
    }
    said["preprocessing"] = {name: value for name, value in fields.items() if value is not None}
    labels = about.get("label_names") or config.get("label_names")
    if isinstance(labels, list):
        said["labels"] = [str(label) for label in labels]
    return said


def architecture(config: ViTConfig) -> tuple[str, dict[str, Any], list[str]]:
    """How timm would build this model.

    Regularisation (dropout, drop path) is not carried over: it changes no logits.

    Returns:
        The architecture's name, the arguments that differ from it (``img_size`` always), and the
        fields that timm cannot express: where there are any, the name is ``vitrail:NAME``.
    """
    dims = {"depth": config.depth, "width": config.width, "heads": config.heads}
    sizes = [name for name, size in SIZES.items() if dims.items() <= size.items()]
    size = next((name for name in sizes if SIZES[name]["mlp_width"] == config.mlp_width), "base")
    patch_size = config.patch_size
    if (size, patch_size) not in ARCHITECTURES:
        patch_size = next((p for s, p in ARCHITECTURES if s == size), 16)
        size = size if (size, patch_size) in ARCHITECTURES else "base"
    resolutions = ARCHITECTURES[size, patch_size]
    image_size = height_width(config.image_size)
    shown = next((side for side in resolutions if image_size == (side, side)), resolutions[0])
    name = f"vit_{size}_patch{patch_size}_{shown}"
    arguments = {"img_size": _plain(image_size), **_arguments(config, size, patch_size)}
    beyond = _beyond(config)
    return (f"vitrail:{name}" if beyond else name), arguments, beyond


def pretrained_cfg(
    preprocessing: Preprocessing, config: ViTConfig, labels: list[str] | None
) -> dict[str, Any]:
    """timm's record of how pictures come in and what comes out."""
    record = {
        "input_size": [config.in_channels, *preprocessing.size],
        "fixed_input_size": True,
        "interpolation": preprocessing.interpolation,
        "crop_pct": preprocessing.crop,
        "crop_mode": CROP_MODES[preprocessing.fit],
        "mean": list(preprocessing.mean),
        "std": list(preprocessing.std),
        "num_classes": config.num_classes,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    return record if labels is None else {**record, "label_names": labels}


def _plain(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def _arguments(config: ViTConfig, size: str, patch_size: int) -> dict[str, Any]:
    """timm's arguments that differ from those of ``vit_{size}_patch{patch_size}``."""
    named = SIZES[size]
    fixed = config.position != "none"
    wanted = {
        # ours, what the named architecture has
        "patch_size": (config.patch_size, patch_size),
        "embed_dim": (config.width, named["width"]),
        "depth": (config.depth, named["depth"]),
        "num_heads": (config.heads, named["heads"]),
        "mlp_ratio": (
            _ratio(config.mlp_width, config.width),
            _ratio(named["mlp_width"], named["width"]),
        ),
        "in_chans": (config.in_channels, 3),
        "global_pool": (POOLS[config.pool], "token"),
        "class_token": (config.has_class_token, True),
        "fc_norm": (config.norm_after_pool, config.pool == "mean"),
        "reg_tokens": (config.registers, 0),
        "no_embed_class": (fixed and config.prefix > 0 and not config.position_on_prefix, False),
        "pos_embed": ("learn" if fixed else "none", "learn"),
        "qkv_bias": (config.qkv_bias, True),
        "init_values": (config.layer_scale, None),
        "act_layer": (config.activation, "gelu"),
    }
    return {name: ours for name, (ours, theirs) in wanted.items() if ours != theirs}


def _ratio(hidden: int, width: int) -> float:
    """timm's ``mlp_ratio``, of which it takes int(width * ratio)."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def _beyond(config: ViTConfig) -> list[str]:
    """The fields that change the logits and that timm's ViT has no argument for."""
    usual = {"pre_logits": False, "attention_scale": "head", "norm_eps": 1e-6}
    beyond = [
        f"{name}={getattr(config, name)!r}"
        for name, value in usual.items()
        if getattr(config, name) != value
    ]
    if config.layer_scale == 0:
        beyond.append("layer_scale=0.0")
    return beyond
