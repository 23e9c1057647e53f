"""transformers' files of BiT's ResNets, and of the hybrids (ViT-Hybrid, up to transformers 4).

The hybrid's ResNet is transformers' BiT in its post-activation form, inside of the patch
embeddings; the rest are the plain ViT's names (`transformers_vit.py`) and its LayerNorm of eps
1e-12. The eps of filters and GroupNorms are timm's, from which these files were converted.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.kit.preprocess import HALF
from vitrail.models.bit_resnet import BiTConfig
from vitrail.models.hybrid import HybridConfig
from vitrail.weights import transformers_vit
from vitrail.weights.rules import Reading, Rule
from vitrail.weights.timm import STANDARDIZED_NUMERICS

BACKBONE = "embeddings.patch_embeddings.backbone.bit."
HYBRID_NUMERICS = {
    **STANDARDIZED_NUMERICS,
    "activation": "gelu",
    "norm_eps": 1e-12,
    "attention_scale": "head",
    "position_resize": "bicubic",
}


def recognise(tensors: Mapping[str, Tensor], config: Any) -> Reading | None:
    """What a transformers file of BiT or a hybrid holds; None: it is none, or another model's."""
    if isinstance(config, BiTConfig):
        prefixes, inside, rules, numerics = ("bit.", ""), "", BIT_RULES, STANDARDIZED_NUMERICS
    elif isinstance(config, HybridConfig) and config.depths:
        prefixes, inside, numerics = ("vit.", ""), BACKBONE, HYBRID_NUMERICS
        rules = [*HYBRID_RULES, *transformers_vit.rules(config, "vit")]
    else:
        return None
    first = f"{inside}embedder.convolution.weight"
    prefix = next((p for p in prefixes if p + first in tensors), None)
    if prefix is None:
        return None
    names = {name.removeprefix(prefix): name for name in tensors}
    return Reading(
        family="transformers",
        rules=rules,
        tensors={short: tensors[name] for short, name in names.items()},
        names=names,
        wrappers=[prefix] if prefix else [],
        droppable=("pre_logits", "head"),
        numerics=numerics,
        resize="bicubic",
        resize_kept=getattr(config, "position_resize", "bicubic"),
        preprocessing={"mean": HALF, "std": HALF},
    )


def _resnet(theirs: str, ours: str) -> list[Rule]:
    """The rules of the stages, whichever the form of their blocks."""
    block, own = f"{theirs}encoder.stages.{{s}}.layers.{{j}}.", f"{ours}stages.{{s}}.blocks.{{j}}."
    names = ["downsample.conv", "downsample.norm"]
    names += [f"{part}{number}" for part in ("conv", "norm") for number in (1, 2, 3)]
    stem = Rule(f"{theirs}embedder.convolution.weight", f"{ours}stem.conv.weight")
    return [stem, *(Rule(f"{block}{n}.{{kind}}", f"{own}{n}.{{kind}}") for n in names)]


def _as_convolution(weight: Tensor) -> Tensor:
    if weight.ndim != 2:
        raise ValueError(f"{list(weight.shape)} in the file, which should be [classes, channels]")
    return weight[:, :, None, None]


BIT_RULES = [
    *_resnet("", ""),
    Rule("norm.{kind}", "norm.{kind}"),
    Rule(
        "classifier.1.weight", "head.fc.weight", _as_convolution, lambda weight: weight[..., 0, 0]
    ),
    Rule("classifier.1.bias", "head.fc.bias"),
]
HYBRID_RULES = [
    *_resnet(BACKBONE, "patch_embed.backbone."),
    Rule(f"{BACKBONE}embedder.norm.{{kind}}", "patch_embed.backbone.stem.norm.{kind}"),
]
