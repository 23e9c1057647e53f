"""PVT and PVT v2: the authors' files, timm's of PVT v2, transformers' of both.

PVT's names are the authors' own, PVT v2's are timm's, which numbers the stages from 0 and makes
each stage's embedding part of it. transformers keeps keys and values apart and the position tables
with the embeddings; all of its norms have the same eps, also those that the authors left at 1e-5
(transformers/models/pvt/modeling_pvt.py).
"""

from collections.abc import Mapping
from functools import partial
from math import isqrt, prod
from typing import Any

import torch
from torch import Tensor

from vitrail.kit.grid import resize_table
from vitrail.kit.preprocess import IMAGENET_MEAN, IMAGENET_STD
from vitrail.models.base import height_width
from vitrail.models.pvt import PVTConfig
from vitrail.models.pvt_v2 import SIZES, PVTv2Config
from vitrail.weights.rules import Reading, Rule, same

NUMERICS = {
    "activation": "gelu",
    "attention_scale": "head",
    "norm_eps": 1e-6,
    "embed_norm_eps": 1e-5,
}
IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
PUBLISHED = {**IMAGENET, "interpolation": "bicubic", "crop": 0.875, "fit": "crop"}
SQUASHED = {**IMAGENET, "interpolation": "bicubic", "crop": 1.0, "fit": "squash"}


def recognise(tensors: Mapping[str, Tensor], config: Any) -> Reading | None:
    """What a file of one of the pyramids holds; None where this is none, or not for this model."""
    if isinstance(config, PVTConfig):
        if "patch_embed1.proj.weight" in tensors:
            rules = [*_tables(config, "pos_embed{}"), Rule("{name}", "{name}")]
            notes = _turned(config)
            return Reading(
                "pvt", rules, tensors, numerics=NUMERICS, notes=notes, **_common(PUBLISHED)
            )
        for prefix in ("pvt.", ""):
            if f"{prefix}encoder.patch_embeddings.0.projection.weight" in tensors:
                rules = transformers_rules(config, prefix)
                numerics = {**NUMERICS, "embed_norm_eps": 1e-6}
                notes = _turned(config)
                return Reading(
                    "transformers",
                    rules,
                    tensors,
                    numerics=numerics,
                    notes=notes,
                    **_common(SQUASHED),
                )
    if isinstance(config, PVTv2Config):
        if "patch_embed1.proj.weight" in tensors:
            rules = authors_rules(config)
            return Reading("pvt", rules, tensors, numerics=NUMERICS, **_common(PUBLISHED))
        if "patch_embed.proj.weight" in tensors and "stages.0.norm.weight" in tensors:
            rules = [Rule("{name}", "{name}")]
            return Reading("timm", rules, tensors, numerics=NUMERICS, **_common({}))
        for prefix in ("pvt_v2.", ""):
            if f"{prefix}encoder.layers.0.patch_embedding.proj.weight" in tensors:
                rules = transformers_v2_rules(config, prefix)
                numerics = {**NUMERICS, "embed_norm_eps": 1e-6}
                return Reading(
                    "transformers", rules, tensors, numerics=numerics, **_common(SQUASHED)
                )
    return None


def authors_rules(config: PVTv2Config) -> list[Rule]:
    """The rules of the authors' PVT v2 (classification/pvt_v2.py)."""
    made = [Rule("patch_embed1.{name}", "patch_embed.{name}")]
    for stage in range(len(config.depths)):
        theirs, ours = f"block{stage + 1}.{{i}}", f"stages.{stage}.blocks.{{i}}"
        if stage:
            made.append(
                Rule(f"patch_embed{stage + 1}.{{name}}", f"stages.{stage}.downsample.{{name}}")
            )
        made += [
            Rule(f"{theirs}.mlp.dwconv.dwconv.{{name}}", f"{ours}.mlp.dwconv.{{name}}"),
            Rule(f"{theirs}.{{name}}", f"{ours}.{{name}}"),
            Rule(f"norm{stage + 1}.{{name}}", f"stages.{stage}.norm.{{name}}"),
        ]
    return [*made, Rule("head.{name}", "head.{name}")]


def transformers_rules(config: PVTConfig, prefix: str = "pvt.") -> list[Rule]:
    """The rules of transformers' PvtForImageClassification, or of PvtModel with an empty prefix."""
    made = _tables(config, f"{prefix}encoder.patch_embeddings.{{}}.position_embeddings", first=0)
    for stage in range(len(config.depths)):
        embedding = f"{prefix}encoder.patch_embeddings.{stage}"
        theirs, ours = f"{prefix}encoder.block.{stage}.{{i}}", f"block{stage + 1}.{{i}}"
        attention = f"{theirs}.attention.self"
        made += [
            *_both(f"{embedding}.projection", f"patch_embed{stage + 1}.proj"),
            *_both(f"{embedding}.layer_norm", f"patch_embed{stage + 1}.norm"),
            *_both(f"{attention}.query", f"{ours}.attn.q"),
            *_key_value(attention, f"{ours}.attn.kv"),
            *_both(f"{attention}.sequence_reduction", f"{ours}.attn.sr"),
            *_both(f"{attention}.layer_norm", f"{ours}.attn.norm"),
            *_both(f"{theirs}.attention.output.dense", f"{ours}.attn.proj"),
            *_both(f"{theirs}.layer_norm_1", f"{ours}.norm1"),
            *_both(f"{theirs}.layer_norm_2", f"{ours}.norm2"),
            *_both(f"{theirs}.mlp.dense1", f"{ours}.mlp.fc1"),
            *_both(f"{theirs}.mlp.dense2", f"{ours}.mlp.fc2"),
        ]
    last = len(config.depths) - 1
    return [
        *made,
        Rule(f"{prefix}encoder.patch_embeddings.{last}.cls_token", "cls_token"),
        *_both(f"{prefix}encoder.layer_norm", "norm"),
        *_both("classifier", "head"),
    ]


def transformers_v2_rules(config: PVTv2Config, prefix: str = "pvt_v2.") -> list[Rule]:
    """The rules of transformers' PvtV2ForImageClassification; of PvtV2Model with no prefix."""
    made = []
    for stage in range(len(config.depths)):
        layer, ours = f"{prefix}encoder.layers.{stage}", f"stages.{stage}"
        embedding = f"{ours}.downsample" if stage else "patch_embed"
        theirs, block = f"{layer}.blocks.{{i}}", f"{ours}.blocks.{{i}}"
        made += [
            *_both(f"{layer}.patch_embedding.proj", f"{embedding}.proj"),
            *_both(f"{layer}.patch_embedding.layer_norm", f"{embedding}.norm"),
            *_both(f"{theirs}.attention.query", f"{block}.attn.q"),
            *_key_value(f"{theirs}.attention", f"{block}.attn.kv"),
            *_both(f"{theirs}.attention.spatial_reduction", f"{block}.attn.sr"),
            *_both(f"{theirs}.attention.layer_norm", f"{block}.attn.norm"),
            *_both(f"{theirs}.attention.proj", f"{block}.attn.proj"),
            *_both(f"{theirs}.layer_norm_1", f"{block}.norm1"),
            *_both(f"{theirs}.layer_norm_2", f"{block}.norm2"),
            *_both(f"{theirs}.mlp.dense1", f"{block}.mlp.fc1"),
            *_both(f"{theirs}.mlp.dwconv.dwconv", f"{block}.mlp.dwconv"),
            *_both(f"{theirs}.mlp.dense2", f"{block}.mlp.fc2"),
            *_both(f"{layer}.layer_norm", f"{ours}.norm"),
        ]
    return [*made, *_both("classifier", "head")]


def architecture(config: PVTv2Config) -> tuple[str, dict[str, Any], list[str]]:
    """How timm would build this PVT v2.

    Its class takes no image size, because nothing in it depends on one.

    Returns:
        The architecture's name, the arguments that differ from it, and the fields that timm cannot
        express: where there are any, the name is ``vitrail:NAME``.
    """
    usual = {
        "widths": PVTv2Config().widths,
        "mlp_ratios": PVTv2Config().mlp_ratios,
        "linear": False,
    }
    named = {name: {**usual, **size} for name, size in SIZES.items()}
    sizes = {
        name: {field: getattr(config, field) for field in size} for name, size in named.items()
    }
    name = next((name for name in named if sizes[name] == named[name]), "b2")
    wanted = {
        # ours, what the named architecture has
        "depths": (config.depths, named[name]["depths"]),
        "embed_dims": (config.widths, named[name]["widths"]),
        "mlp_ratios": (config.mlp_ratios, named[name]["mlp_ratios"]),
        "linear": (config.linear, named[name]["linear"]),
        "num_heads": (config.heads, PVTv2Config().heads),
        "sr_ratios": (config.reductions, PVTv2Config().reductions),
        "qkv_bias": (config.qkv_bias, True),
        "in_chans": (config.in_channels, 3),
    }
    arguments = {
        argument: list(ours) if isinstance(ours, tuple) else ours
        for argument, (ours, theirs) in wanted.items()
        if ours != theirs
    }
    beyond = [
        f"{field}={getattr(config, field)!r}"
        for field, value in NUMERICS.items()
        if getattr(config, field) != value
    ]
    return ("vitrail:" * bool(beyond)) + f"pvt_v2_{name}", arguments, beyond


def _common(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    return {"droppable": ("head",), "preprocessing": preprocessing, "resize": "bilinear"}


def _alike(config: PVTConfig) -> list[tuple[int, int] | None]:
    """The model's grid of each stage where a square one has as many places; else None."""
    grids = config.grids(height_width(config.image_size))
    return [g if g[0] != g[1] and isqrt(prod(g)) ** 2 == prod(g) else None for g in grids]


def _tables(config: PVTConfig, theirs: str, first: int = 1) -> list[Rule]:
    """The rules of the position tables. Published ones are square, whatever the model's are."""
    made = []
    for stage, grid in enumerate(_alike(config)):
        lay = same if grid is None else partial(_onto, grid, int(stage == len(config.depths) - 1))
        made.append(Rule(theirs.format(stage + first), f"pos_embed{stage + 1}", lay))
    return made


def _onto(grid: tuple[int, int], prefix: int, table: Tensor) -> Tensor:
    """A square table of as many places as a grid, fitted to the grid."""
    if table.ndim != 3 or table.shape[1] != prefix + prod(grid):
        return table  # of another size: the model fits it
    side = isqrt(prod(grid))
    return resize_table(table, (side, side), grid, "bilinear", prefix)


def _turned(config: PVTConfig) -> list[str]:
    return [
        f"pos_embed{stage + 1}: {isqrt(prod(g))}x{isqrt(prod(g))} -> {g[0]}x{g[1]}, bilinear, "
        "if the file is of square pictures"
        for stage, g in enumerate(_alike(config))
        if g is not None
    ]


def _both(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}.{kind}", f"{ours}.{kind}") for kind in ("weight", "bias")]


def _key_value(theirs: str, ours: str) -> list[Rule]:
    return [
        Rule(
            (f"{theirs}.key.{kind}", f"{theirs}.value.{kind}"), f"{ours}.{kind}", _stacked, _halves
        )
        for kind in ("weight", "bias")
    ]


def _stacked(key: Tensor, value: Tensor) -> Tensor:
    return torch.cat([key, value])


def _halves(stacked: Tensor) -> tuple[Tensor, ...]:
    return stacked.chunk(2)
