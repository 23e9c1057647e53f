"""transformers' files of the plain ViT: ViT, DeiT, ViT-MAE and DINOv2, with and without registers.

They share their names but for the insides of DINOv2's blocks; q, k and v are three matrices. The
numerics are transformers' own: LayerNorm has eps 1e-12, except in DINOv2. A folder's `config.json`
and `preprocessor_config.json` say more (`read_config`).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vitrail.kit.preprocess import HALF, IMAGENET_MEAN, IMAGENET_STD
from vitrail.models.base import height_width
from vitrail.models.vit import ViTConfig
from vitrail.weights.positions import with_class_row
from vitrail.weights.rules import Reading, Rule, same

MODEL_TYPES = ("vit", "deit", "vit_mae", "dinov2", "dinov2_with_registers")
ONE_EPS = ("pvt", "pvt_v2")  # the norms of embeddings have it too
PREFIXES = ("vit.", "deit.", "dinov2.", "dinov2_with_registers.", "")
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
RESAMPLE = ("nearest", "lanczos", "bilinear", "bicubic", "box")  # PIL's numbers
_IMAGENET = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
PREPROCESSING = {
    "vit": {"mean": HALF, "std": HALF, "interpolation": "bilinear", "fit": "squash", "crop": 1.0},
    "deit": {**_IMAGENET, "interpolation": "bicubic", "fit": "crop", "crop": 0.875},
    "mae": {**_IMAGENET, "interpolation": "bilinear", "fit": "squash", "crop": 1.0},
    "dinov2": {**_IMAGENET, "interpolation": "bicubic", "fit": "crop", "crop": 0.875},
}


def recognise(tensors: Mapping[str, Tensor], config: Any) -> Reading | None:
    """What a transformers file of the plain ViT holds; None: this is none, or another model."""
    patches = "embeddings.patch_embeddings.projection.weight"
    prefix = next((p for p in PREFIXES if p + patches in tensors), None)
    if prefix is None or type(config) is not ViTConfig:
        return None
    kind = _kind(tensors)
    dropped = [
        name
        for name in tensors
        if name.startswith("decoder.") or name.endswith("embeddings.mask_token")
    ]
    names = {name.removeprefix(prefix): name for name in tensors if name not in dropped}
    registers = "embeddings.register_tokens" in names
    resize = "bicubic_antialias" if registers else "bicubic"
    return Reading(
        family="transformers",
        rules=rules(config, kind),
        tensors={short: tensors[name] for short, name in names.items()},
        names=names,
        wrappers=[prefix] if prefix else [],
        dropped=dropped,
        droppable=("pre_logits", "cls_token", "head", *(["norm"] if kind == "mae" else [])),
        numerics={
            "activation": "silu" if config.gated_mlp else "gelu",
            "norm_eps": 1e-6 if kind == "dinov2" else 1e-12,
            "attention_scale": "head",
            "position_resize": resize,
        },
        resize=resize,
        resize_kept=config.position_resize,
        preprocessing=PREPROCESSING[kind],
    )


def rules(config: ViTConfig, kind: str) -> list[Rule]:
    """The rules of a ``kind`` of file: ``vit deit mae dinov2``; prefixes are off."""
    block = "encoder.layer.{i}."
    theirs = {"norm1": "layernorm_before", "norm2": "layernorm_after"}
    mlp = {"fc1": "intermediate.dense", "fc2": "output.dense"}
    scales = []
    if kind == "dinov2":
        theirs = {"norm1": "norm1", "norm2": "norm2"}
        mlp = {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}
        if config.gated_mlp:
            mlp = {"fc1": "mlp.weights_in", "fc2": "mlp.weights_out"}
        scales = [
            Rule(f"{block}layer_scale{n}.lambda1", f"blocks.{{i}}.ls{n}.gamma") for n in (1, 2)
        ]
    heads = {"head": "classifier"}
    if config.distilled:
        heads = {"head": "cls_classifier", "head_dist": "distillation_classifier"}
    qkv = tuple(f"{block}attention.attention.{part}.{{kind}}" for part in ("query", "key", "value"))
    whole = {
        "patch_embed.proj": "embeddings.patch_embeddings.projection",
        **{f"blocks.{{i}}.{ours}": block + name for ours, name in theirs.items()},
        "blocks.{i}.attn.proj": f"{block}attention.output.dense",
        **{f"blocks.{{i}}.mlp.{ours}": block + name for ours, name in mlp.items()},
        "norm": "layernorm",
        "pre_logits.fc": "pooler.dense",
        **heads,
    }
    return [
        Rule("embeddings.cls_token", "cls_token"),
        Rule("embeddings.distillation_token", "dist_token"),
        Rule("embeddings.register_tokens", "reg_token"),
        Rule("embeddings.position_embeddings", "pos_embed", same, with_class_row(config)),
        Rule(qkv, "blocks.{i}.attn.qkv.{kind}", _stacked, _thirds),
        *scales,
        *(Rule(f"{name}.{{kind}}", f"{ours}.{{kind}}") for ours, name in whole.items()),
    ]


def read_config(config: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, Any]:
    """What the JSON files beside a transformers model say.

    Args:
        config: `config.json`.
        processor: `preprocessor_config.json`, empty where there is none.

    Returns:
        Any of ``numerics`` and ``preprocessing`` (dicts of fields), ``labels``, ``image_size``.
    """
    said: dict[str, Any] = {"numerics": {}, "preprocessing": _pictures(processor)}
    if config.get("model_type") in MODEL_TYPES:
        if config.get("hidden_act") in ACTIVATIONS and not config.get("use_swiglu_ffn"):
            said["numerics"]["activation"] = ACTIVATIONS[config["hidden_act"]]
        if isinstance(config.get("layer_norm_eps"), float):
            said["numerics"]["norm_eps"] = config["layer_norm_eps"]
    elif config.get("model_type") in ONE_EPS:
        if config.get("hidden_act") in ACTIVATIONS:
            said["numerics"]["activation"] = ACTIVATIONS[config["hidden_act"]]
        if isinstance(config.get("layer_norm_eps"), float):
            for name in ("norm_eps", "embed_norm_eps"):
                said["numerics"][name] = config["layer_norm_eps"]
    size = config.get("image_size") or _picture_size(processor)
    if isinstance(size, (int, list)):
        said["image_size"] = height_width(size if isinstance(size, int) else tuple(size))
    labels = config.get("id2label")
    if isinstance(labels, Mapping) and {str(i) for i in range(len(labels))} == {*map(str, labels)}:
        by_number = {int(number): str(label) for number, label in labels.items()}
        names = [by_number[i] for i in range(len(by_number))]
        if names != [f"LABEL_{i}" for i in range(len(names))]:  # what stands where nobody said
            said["labels"] = names
    return said


def _pictures(processor: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `Preprocessing` from a `preprocessor_config.json`."""
    said: dict[str, Any] = {}
    for ours, name in (("mean", "image_mean"), ("std", "image_std")):
        if isinstance(processor.get(name), list):
            said[ours] = tuple(processor[name])
    resample = processor.get("resample")
    if isinstance(resample, int) and 0 <= resample < len(RESAMPLE):
        said["interpolation"] = RESAMPLE[resample]
    size, cropped = processor.get("size"), processor.get("crop_size")
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else size
    if processor.get("do_center_crop") and isinstance(edge, int):
        side = cropped.get("height") if isinstance(cropped, Mapping) else cropped
        if isinstance(side, int) and 0 < side <= edge:
            said |= {"fit": "crop", "crop": side / edge}
    elif size is not None:
        said |= {"fit": "squash", "crop": 1.0}
    return said


def _picture_size(processor: Mapping[str, Any]) -> Any:
    """The sides of what goes into the network, for a model whose config has none."""
    size = processor.get("crop_size" if processor.get("do_center_crop") else "size")
    if isinstance(size, Mapping):
        size = [size.get("height"), size.get("width")]
    return size if isinstance(size, int) or (size and all(size)) else None


def _kind(tensors: Mapping[str, Tensor]) -> str:
    if any(name.endswith("layer_scale1.lambda1") for name in tensors):
        return "dinov2"
    if any(name.startswith("decoder.") for name in tensors):
        return "mae"
    return "deit" if any(name.endswith("distillation_token") for name in tensors) else "vit"


def _stacked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.cat([query, key, value])


def _thirds(qkv: Tensor) -> tuple[Tensor, ...]:
    return qkv.chunk(3)
