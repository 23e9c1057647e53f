"""Meta's files of the plain ViT: DeiT, DeiT-III, MAE, DINO and DINOv2.

All of them grew out of timm's names, which are ours too, so the rules are short: DeiT-III spells
LayerScale `gamma_1`, DINOv2 has `register_tokens` and packs SwiGLU into `w12`, and may number its
blocks by chunk. What belongs to pre-training (mask token, decoder, projection heads) is dropped by
name. A file that has timm's names and nothing else is told by what stands around it (`named_as`).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vitrail.kit.preprocess import IMAGENET_MEAN, IMAGENET_STD
from vitrail.models.base import height_width
from vitrail.models.vit import ViTConfig
from vitrail.weights.positions import with_class_row
from vitrail.weights.rules import Reading, Rule, same

SAME = [Rule("{name}", "{name}")]
DEIT = [
    Rule("blocks.{i}.gamma_1", "blocks.{i}.ls1.gamma"),
    Rule("blocks.{i}.gamma_2", "blocks.{i}.ls2.gamma"),
    *SAME,
]
DINOV2 = [
    Rule("register_tokens", "reg_token"),
    Rule("linear_head.{kind}", "head.{kind}"),
    *SAME,
]
SWIGLU = [
    Rule("blocks.{i}.mlp.w12.{kind}", "blocks.{i}.mlp.fc1.{kind}"),
    Rule("blocks.{i}.mlp.w3.{kind}", "blocks.{i}.mlp.fc2.{kind}"),
]
# What only pre-training needs, by family: the beginnings of names.
PRETRAINING = {
    "deit": (),
    "mae": ("decoder_", "mask_token"),
    "dino": ("head.mlp.", "head.last_layer."),
    "dinov2": ("mask_token", "dino_head.", "ibot_head."),
}
# How each repository fits position tables to another size.
RESIZE = {
    "deit": "bicubic",  # main.py
    "mae": "bicubic",  # util/pos_embed.py interpolate_pos_embed
    "dino": "bicubic_offset",  # vision_transformer.py interpolate_pos_encoding
    "dinov2": "bicubic_offset",  # the same; models with registers have no offset and anti-alias
}
FILE_NAMES = {"deit_": "deit", "mae_": "mae", "dino_": "dino", "dinov2_": "dinov2"}


def recognise(tensors: Mapping[str, Tensor], config: Any) -> Reading | None:
    """What a file with Meta's own names in it holds; None where this is none, or another model."""
    if "patch_embed.proj.weight" not in tensors or type(config) is not ViTConfig:
        return None
    family = _family(tensors)
    return None if family is None else reading_of(family, tensors, config)


def named_as(tensors: Mapping[str, Tensor], wrappers: Sequence[str], source: str) -> str | None:
    """Whose file of nothing but timm's names this is, or None where nothing says so.

    DeiT and MAE keep their weights under ``model``, which timm's trainer does not do, and DINO's
    have no head; all are released under telling names.
    """
    if {"model", "model_ema"} & {*wrappers}:
        return "mae" if "fc_norm.weight" in tensors and "norm.weight" not in tensors else "deit"
    return next((of for start, of in FILE_NAMES.items() if source.startswith(start)), None)


def reading_of(family: str, tensors: Mapping[str, Tensor], config: ViTConfig) -> Reading:
    """A file of this family: ``deit mae dino dinov2``."""
    dropped = [name for name in tensors if name.startswith(PRETRAINING[family])]
    names = {_unchunked(name): name for name in tensors if name not in dropped}
    resize = RESIZE[family]
    if "register_tokens" in tensors:
        resize = "bicubic_antialias"
    numerics = {"norm_eps": 1e-6, "attention_scale": "head", "position_resize": resize}
    rules = {"deit": DEIT, "dinov2": DINOV2}.get(family, SAME)
    if family == "dinov2":  # the class token's row is always there
        rules = [Rule("pos_embed", "pos_embed", same, with_class_row(config)), *rules]
    return Reading(
        family=family,
        rules=[*SWIGLU, *rules] if config.gated_mlp and family == "dinov2" else rules,
        tensors={short: tensors[name] for short, name in names.items()},
        names=names,
        dropped=dropped,
        droppable=("pre_logits", "cls_token", "head", *(["norm"] if family == "mae" else [])),
        numerics={"activation": "silu" if config.gated_mlp else "gelu", **numerics},
        resize=resize,
        resize_kept=config.position_resize,
        preprocessing={
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "interpolation": "bicubic",
            "fit": "crop",
            "crop": _crop(family, tensors, config),
        },
    )


def _family(tensors: Mapping[str, Tensor]) -> str | None:
    """The family that the names give away."""

    def has(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in tensors)

    if has("decoder_"):
        return "mae"
    if has(r"register_tokens|mask_token|ibot_head\.|dino_head\.|blocks\.\d+\.(\d+\.|mlp\.w12\.)"):
        return "dinov2"
    if has(r"head\.(mlp|last_layer)\."):
        return "dino"
    return "deit" if has(r"blocks\.\d+\.gamma_1") else None


def _unchunked(name: str) -> str:
    """``blocks.{chunk}.{i}.`` as ``blocks.{i}.``: DINOv2 counts the blocks through all chunks."""
    return re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name)


def _crop(family: str, tensors: Mapping[str, Tensor], config: ViTConfig) -> float:
    """The share of the picture that each family's evaluation keeps.

    DeiT main.py (DeiT-III: 1), MAE util/datasets.py, DINO eval_linear.py, DINOv2 data/transforms.py
    """
    if family == "deit":
        return 1.0 if any(name.endswith(".gamma_1") for name in tensors) else 0.875
    return 0.875 if max(height_width(config.image_size)) <= 224 else 1.0
