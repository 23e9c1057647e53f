"""Google's `.npz` files of BiT's ResNets and of the hybrids of ResNet and ViT.

Blocks and units are counted from 1 in both, so they are renamed before the rules see them; BiT
writes units with two digits, and a scope may carry a number of its own (``standardized_conv2d_3``).
Stored kernels are raw: standardising them is the model's work. Vectors of a GroupNorm may be
stored as (1, 1, 1, channels). The ViT's half of a hybrid is the plain ViT's (`google.py`).
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from vitrail.kit.preprocess import HALF
from vitrail.models.base import ImageClassifier
from vitrail.models.bit_resnet import BiTConfig
from vitrail.models.hybrid import HybridConfig
from vitrail.weights import google
from vitrail.weights.rules import Reading, Rule, to_theirs

BIT_NUMERICS = {  # bit_pytorch/models.py
    "standardize_eps": 1e-10,
    "standardize_eps_on": "variance",
    "group_norm_eps": 1e-5,
}
HYBRID_NUMERICS = {  # vit_jax/models_resnet.py
    "standardize_eps": 1e-5,
    "standardize_eps_on": "deviation",
    "group_norm_eps": 1e-6,
}
BIT_ROOT = "resnet/root_block/"
BIT_PICTURES = {
    "mean": HALF,
    "std": HALF,
    "fit": "squash",
    "crop": 1.0,
    "interpolation": "bilinear",
}


def recognise(tensors: Mapping[str, Tensor], config: Any) -> Reading | None:
    """What a Google file of a ResNet holds; None where this is no such file or model."""
    if isinstance(config, BiTConfig):
        return _bit(tensors) if any(name.startswith(BIT_ROOT) for name in tensors) else None
    if not isinstance(config, HybridConfig):
        return None
    plain = google.read_plain(tensors, config)
    if plain is None:
        return None
    names = {_from_zero(name): name for name in plain.tensors}
    return dataclasses.replace(
        plain,
        rules=[*hybrid_rules(config), *plain.rules],
        tensors={short: plain.tensors[name] for short, name in names.items()},
        names={short: plain.in_file(name) for short, name in names.items()},
        numerics={**plain.numerics, **HYBRID_NUMERICS},
    )


def _bit(tensors: Mapping[str, Tensor]) -> Reading:
    names = {_from_zero(name): name for name in tensors if name.startswith("resnet/")}
    return Reading(
        family="google",
        rules=BIT_RULES,
        tensors={short: tensors[name] for short, name in names.items()},
        names=names,
        dropped=[name for name in tensors if not name.startswith("resnet/")],
        droppable=("head",),
        numerics=BIT_NUMERICS,
        preprocessing=BIT_PICTURES,
    )


def _from_zero(name: str) -> str:
    """A name with its block and unit counted from 0, and scopes without numbers of their own."""

    def count(found: re.Match[str]) -> str:
        return f"{found[1]}block{int(found[2]) - 1}/unit{int(found[3]) - 1}/"

    plain = re.sub(r"^(resnet/|)block(\d+)/unit(\d+)/", count, name)
    return re.sub(r"(standardized_conv2d|group_norm)_\d+/", r"\1/", plain)


def _from_one(name: str) -> str:
    """The inverse of `_from_zero`, with two digits for BiT's units."""

    def count(found: re.Match[str]) -> str:
        digits = 2 if found[1] else 1
        return f"{found[1]}block{int(found[2]) + 1}/unit{int(found[3]) + 1:0{digits}d}/"

    return re.sub(r"^(resnet/|)block(\d+)/unit(\d+)/", count, name)


def _vector(tensor: Tensor) -> Tensor:
    if tensor.shape[:-1].numel() != 1:
        raise ValueError(f"{list(tensor.shape)} in the file, which should be [channels]")
    return tensor.flatten()


def _kernel(theirs: str, ours: str) -> Rule:
    return Rule(f"{theirs}/kernel", f"{ours}.weight", google.hwio_to_oihw, google.oihw_to_hwio)


def _norm(theirs: str, ours: str, words: tuple[str, str]) -> list[Rule]:
    weight, bias = words
    return [
        Rule(f"{theirs}/{weight}", f"{ours}.weight", _vector),
        Rule(f"{theirs}/{bias}", f"{ours}.bias", _vector),
    ]


def _bit_rules() -> list[Rule]:
    words, convolution = ("gamma", "beta"), "standardized_conv2d"
    theirs, ours = "resnet/block{s}/unit{j}", "stages.{s}.blocks.{j}"
    rules = [_kernel(f"{BIT_ROOT}{convolution}", "stem.conv")]
    for number, letter in enumerate("abc", start=1):
        rules += [
            _kernel(f"{theirs}/{letter}/{convolution}", f"{ours}.conv{number}"),
            *_norm(f"{theirs}/{letter}/group_norm", f"{ours}.norm{number}", words),
        ]
    return [
        *rules,
        _kernel(f"{theirs}/a/proj/{convolution}", f"{ours}.downsample.conv"),
        *_norm("resnet/group_norm", "norm", words),
        _kernel("resnet/head/conv2d", "head.fc"),
        Rule("resnet/head/conv2d/bias", "head.fc.bias"),
    ]


BIT_RULES = _bit_rules()


def hybrid_rules(config: HybridConfig) -> list[Rule]:
    """The rules of a hybrid's ResNet; its projection is the plain ViT's ``embedding``."""
    words, root = ("scale", "bias"), "patch_embed.backbone"
    stem = f"{root}.stem" if config.depths else root
    theirs, ours = "block{s}/unit{j}", f"{root}.stages.{{s}}.blocks.{{j}}"
    rules = [_kernel("conv_root", f"{stem}.conv"), *_norm("gn_root", f"{stem}.norm", words)]
    for number in (1, 2, 3):
        rules += [
            _kernel(f"{theirs}/conv{number}", f"{ours}.conv{number}"),
            *_norm(f"{theirs}/gn{number}", f"{ours}.norm{number}", words),
        ]
    return [
        *rules,
        _kernel(f"{theirs}/conv_proj", f"{ours}.downsample.conv"),
        *_norm(f"{theirs}/gn_proj", f"{ours}.downsample.norm", words),
    ]


def write_npz(model: ImageClassifier, path: Path | str) -> None:
    """Write a BiT ResNet or a hybrid as Google would.

    Raises:
        WeightsError: parts that the format cannot hold, such as registers.
    """
    config, tensors = model.config, model.state_dict()
    if isinstance(config, HybridConfig):
        rules = [*hybrid_rules(config), *google.rules(config, newer=False)]
    else:
        rules = BIT_RULES
    theirs = to_theirs(rules, tensors)
    arrays: dict[str, Any] = {_from_one(name): google.to_numpy(theirs[name]) for name in theirs}
    np.savez(Path(path), **arrays)
