"""timm's state dicts of the plain ViT, and what timm calls one of our models.

Our names are timm's, so the one rule is the identity. A bare state dict does not say which
activation, eps or pixel statistics go with it: timm keeps those with the model's name, and a timm
folder in its `config.json`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.kit.preprocess import Preprocessing
from vitrail.models import zoo
from vitrail.models.base import height_width
from vitrail.models.hybrid import HybridConfig
from vitrail.models.vit import SIZES, ViTConfig
from vitrail.models.vit_variants import CLIPS, DEIT, VARIANTS
from vitrail.weights.rules import Reading, Rule

NUMERICS = {
    "activation": "gelu",
    "norm_eps": 1e-6,
    "attention_scale": "head",
    "position_resize": "bicubic_antialias",
}
STANDARDIZED_NUMERICS = {  # of BiT's ResNets and of the hybrids
    "standardize_eps": 1e-8,
    "standardize_eps_on": "variance",
    "group_norm_eps": 1e-5,
}
IDENTITY = [Rule("{name}", "{name}")]

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
DISTILLED = {(size, 16): sides for size, sides in DEIT.items()}
POOLS = {"token": "token", "mean": "avg", "map": "map", "none": "", "token_mean": "token"}
PLAIN_ARGUMENTS = {  # timm's arguments that are fields of ours
    "img_size": "image_size",
    "patch_size": "patch_size",
    "embed_dim": "width",
    "depth": "depth",
    "num_heads": "heads",
    "in_chans": "in_channels",
    "class_token": "class_token",
    "reg_tokens": "registers",
    "pos_embed": "position",
    "pre_norm": "pre_norm",
    "qkv_bias": "qkv_bias",
    "init_values": "layer_scale",
    "act_layer": "activation",
}
CROP_MODES = {"crop": "center", "squash": "squash", "letterbox": "border"}


def recognise(tensors: Mapping[str, Tensor], config: Any) -> Reading | None:
    """What a state dict in timm's names holds; None where this is none, or not for this model."""
    if "patch_embed.proj.weight" not in tensors or not isinstance(config, ViTConfig):
        return None
    numerics, notes = dict(NUMERICS), []
    if isinstance(config, HybridConfig):
        numerics |= STANDARDIZED_NUMERICS
    if "norm_pre.weight" in tensors:
        numerics["norm_eps"] = 1e-5
    if config.gated_mlp:
        numerics["activation"] = "silu"
    elif "norm_pre.weight" in tensors or "attn_pool.latent" in tensors:
        del numerics["activation"]
        notes.append(
            f"timm has such models with different activations: {config.activation} is the model's "
            "own, as its name says; the file does not say"
        )
    return Reading(
        family="timm",
        rules=IDENTITY,
        tensors=tensors,
        droppable=("pre_logits", "cls_token", "head"),
        numerics=numerics,
        notes=notes,
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
        said["numerics"] = {"activation": arguments["act_layer"]}
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


def describe(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """The zoo's name, and config fields beside it, for a timm `config.json`.

    Returns:
        None where the zoo has no such architecture, or no word for one of its arguments.
    """
    name, arguments = config.get("architecture"), dict(config.get("model_args") or {})
    if name not in zoo.ENTRIES:
        return None
    base = zoo.config_of(name)
    if not isinstance(base, ViTConfig):
        fields = {PLAIN_ARGUMENTS[a]: value for a, value in arguments.items() if a in {"in_chans"}}
        return (name, fields) if len(fields) == len(arguments) else None
    ratio, pool = arguments.pop("mlp_ratio", None), arguments.pop("global_pool", None)
    norm, free = arguments.pop("fc_norm", None), arguments.pop("no_embed_class", None)
    if set(arguments) - set(PLAIN_ARGUMENTS) or pool not in {None, *POOLS.values()}:
        return None
    fields = {PLAIN_ARGUMENTS[argument]: value for argument, value in arguments.items()}
    if isinstance(fields.get("image_size"), list):
        fields["image_size"] = tuple(fields["image_size"])
    if fields.get("position") == "learn":
        fields["position"] = "learned"
    if ratio is not None:
        hidden = int(fields.get("width", base.width) * ratio)
        fields["mlp_width"] = hidden // (1 + base.gated_mlp)
    if pool is not None:
        fields["pool"] = next(ours for ours, theirs in POOLS.items() if theirs == pool)
    if free is not None:
        fields["position_on_prefix"] = not free
    mean = fields.get("pool", base.pool) == "mean"
    fields["norm_after_pool"] = mean if norm is None else norm
    return name, fields


def architecture(config: ViTConfig) -> tuple[str, dict[str, Any], list[str]]:
    """How timm would build this model.

    Regularisation (dropout, drop path) is not carried over: it changes no logits.

    Returns:
        The architecture's name, the arguments that differ from it (``img_size`` always), and the
        fields that timm cannot express: where there are any, the name is ``vitrail:NAME``.
    """
    beyond, image_size = beyond_timm(config), height_width(config.image_size)
    if config.gated_mlp:
        name = "vit_giant_patch14_dinov2"
        base = ViTConfig(**VARIANTS[name][0])
    elif config.distilled:
        name, base = _nearest(config, DISTILLED, "deit_{}_distilled_patch{}_{}")
        base = dataclasses.replace(base, distilled=True)
    elif config.pre_norm and config.norm_eps == 1e-5:
        name, base = _nearest(config, CLIPS, "vit_{}_patch{}_clip_{}")
        base = dataclasses.replace(base, pre_norm=True)
    else:
        name, base = _nearest(config, ARCHITECTURES, "vit_{}_patch{}_{}")
    arguments = {"img_size": plain_size(image_size), **_differing(config, base)}
    return (f"vitrail:{name}" if beyond else name), arguments, beyond


def _nearest(
    config: ViTConfig, known: Mapping[tuple[str, int], tuple[int, ...]], written: str
) -> tuple[str, ViTConfig]:
    """The known architecture nearest to a config: its name and its own config."""
    dims = {"depth": config.depth, "width": config.width, "heads": config.heads}
    sizes = [name for name, size in SIZES.items() if dims.items() <= size.items()]
    size = next((name for name in sizes if SIZES[name]["mlp_width"] == config.mlp_width), "base")
    patch_size = config.patch_size
    if (size, patch_size) not in known:
        patch_size = next((p for s, p in known if s == size), 16)
        size = size if (size, patch_size) in known else "base"
    image_size = height_width(config.image_size)
    resolutions = known[size, patch_size]
    shown = next((side for side in resolutions if image_size == (side, side)), resolutions[0])
    return written.format(size, patch_size, shown), _plain(size, patch_size)


def _plain(size: str, patch_size: int) -> ViTConfig:
    fields: dict[str, Any] = {**SIZES[size], "patch_size": patch_size, "image_size": patch_size}
    return ViTConfig(**fields)


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


def plain_size(size: tuple[int, int]) -> int | list[int]:
    """A size as timm takes it: one number for a square."""
    return size[0] if size[0] == size[1] else list(size)


def vit_arguments(config: ViTConfig, size: str, patch_size: int) -> dict[str, Any]:
    """timm's arguments that differ from those of ``vit_{size}_patch{patch_size}``."""
    return _differing(config, _plain(size, patch_size))


def _differing(config: ViTConfig, base: ViTConfig) -> dict[str, Any]:
    """timm's arguments that differ from those of an architecture."""
    ours, theirs = _all_arguments(config), _all_arguments(base)
    theirs["fc_norm"] = config.pool == "mean"  # what timm makes of None
    return {name: value for name, value in ours.items() if value != theirs[name]}


def _all_arguments(config: ViTConfig) -> dict[str, Any]:
    fixed = config.position != "none"
    return {
        "patch_size": config.patch_size,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.heads,
        "mlp_ratio": _ratio(config.mlp_width * (1 + config.gated_mlp), config.width),
        "in_chans": config.in_channels,
        "global_pool": POOLS[config.pool],
        "class_token": config.has_class_token,
        "fc_norm": config.norm_after_pool,
        "reg_tokens": config.registers,
        "no_embed_class": fixed and config.prefix > 0 and not config.position_on_prefix,
        "pos_embed": "learn" if fixed else "none",
        "pre_norm": config.pre_norm,
        "qkv_bias": config.qkv_bias,
        "init_values": config.layer_scale,
        "act_layer": config.activation,
    }


def _ratio(hidden: int, width: int) -> float:
    """timm's ``mlp_ratio``, of which it takes int(width * ratio)."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width


def beyond_timm(config: ViTConfig) -> list[str]:
    """The fields that change the logits and that timm's ViT has no argument for."""
    clip = config.pre_norm and not (config.gated_mlp or config.distilled)
    eps = config.norm_eps if clip and config.norm_eps == 1e-5 else 1e-6
    usual = {"pre_logits": False, "attention_scale": "head", "norm_eps": eps}
    if config.position not in ("none", "relative"):
        usual["position_at"] = "input"
    beyond = [
        f"{name}={getattr(config, name)!r}"
        for name, value in usual.items()
        if getattr(config, name) != value
    ]
    if config.position in ("learned2d", "relative"):
        beyond.append(f"position={config.position!r}")
    if config.pool == "token_mean":
        beyond.append("pool='token_mean'")
    plain = config.position_on_prefix and config.position != "none" and not config.registers
    if config.distilled and not plain:
        beyond.append("distilled=True beside registers or without positions of the tokens")
    if config.layer_scale == 0:
        beyond.append("layer_scale=0.0")
    return beyond
