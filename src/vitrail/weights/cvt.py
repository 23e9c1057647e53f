"""CvT's weights: the authors' `.pth` files and transformers' layout.

Our names are the authors' (microsoft/CvT lib/models/cls_cvt.py). transformers took the weights
over but computes the exact GELU where the authors' code has the quick one, so the same tensors
give other logits there: each layout comes with its own numerics.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.kit.preprocess import IMAGENET_MEAN, IMAGENET_STD
from vitrail.models.cvt import CvTConfig
from vitrail.weights.rules import Reading, Rule

NUMERICS = {"activation": "quick_gelu", "norm_eps": 1e-5, "attention_scale": "width"}
TRANSFORMERS_NUMERICS = {**NUMERICS, "activation": "gelu"}
PREPROCESSING = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "interpolation": "bicubic"}
AUTHORS = [Rule("{name}", "{name}")]


def _transformers() -> list[Rule]:
    stage = "cvt.encoder.stages.{s}."
    embedding = f"{stage}embedding.convolution_embeddings."
    layer, block = f"{stage}layers.{{j}}.", "stage{s}.blocks.{j}."
    attention = f"{layer}attention.attention."
    modules = {
        f"{embedding}projection": "stage{s}.patch_embed.proj",
        f"{embedding}normalization": "stage{s}.patch_embed.norm",
        f"{layer}layernorm_before": f"{block}norm1",
        f"{layer}layernorm_after": f"{block}norm2",
        f"{layer}attention.output.dense": f"{block}attn.proj",
        f"{layer}intermediate.dense": f"{block}mlp.fc1",
        f"{layer}output.dense": f"{block}mlp.fc2",
        "layernorm": "norm",
        "classifier": "head",
    }
    rules = [Rule(f"{stage}cls_token", "stage{s}.cls_token")]
    for letter, word in (("q", "query"), ("k", "key"), ("v", "value")):
        theirs = f"{attention}convolution_projection_{word}.convolution_projection."
        ours = f"{block}attn.conv_proj_{letter}."
        rules += [
            Rule(f"{theirs}convolution.weight", f"{ours}conv.weight"),
            *(
                Rule(f"{theirs}normalization.{kind}", f"{ours}bn.{kind}")
                for kind in ("running_mean", "running_var", "num_batches_tracked")
            ),
        ]
        modules[f"{theirs}normalization"] = f"{ours}bn"
        modules[f"{attention}projection_{word}"] = f"{block}attn.proj_{letter}"
    return rules + [
        Rule(f"{theirs}.{kind}", f"{ours}.{kind}")
        for theirs, ours in modules.items()
        for kind in ("weight", "bias")
    ]


TRANSFORMERS = _transformers()


def recognise(tensors: Mapping[str, Tensor], config: Any) -> Reading | None:
    """What the authors' file of a CvT holds; None where this is none, or not for this model."""
    if "stage0.patch_embed.proj.weight" not in tensors or not isinstance(config, CvTConfig):
        return None
    return Reading(
        family="cvt",
        rules=AUTHORS,
        tensors=tensors,
        droppable=("head",),
        numerics=NUMERICS,
        preprocessing=PREPROCESSING,
    )


def recognise_transformers(tensors: Mapping[str, Tensor], config: Any) -> Reading | None:
    """What transformers' file of a CvT holds, with or without its head; None where it is none."""
    first = "encoder.stages.0.embedding.convolution_embeddings.projection.weight"
    if not isinstance(config, CvTConfig) or not {first, f"cvt.{first}"} & set(tensors):
        return None
    # A bare CvtModel has no prefix; the rules have that of the classifier.
    names = {f"cvt.{name}" if name.startswith("encoder.") else name: name for name in tensors}
    return Reading(
        family="transformers",
        rules=TRANSFORMERS,
        tensors={plain: tensors[name] for plain, name in names.items()},
        names=names,
        droppable=("head",),
        numerics=TRANSFORMERS_NUMERICS,
        preprocessing=PREPROCESSING,
    )
