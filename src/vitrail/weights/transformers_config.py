"""transformers' `config.json`, read and written: which of our models is it, and the other way.

A kind is a table of fields, theirs beside ours. A file holds only what differs from transformers'
defaults, so the defaults stand here too. What a model has beyond a kind is found by reading back
what was written (`weights/convert.py`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vitrail.models.base import square_or_pair
from vitrail.weights.pvt import NUMERICS as PVT_NUMERICS
from vitrail.weights.timm import STANDARDIZED_NUMERICS
from vitrail.weights.timm_resnets import RESNET_NUMERICS
from vitrail.weights.transformers_vit import ACTIVATIONS

Config = Mapping[str, Any]
WRITTEN_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}


@dataclass(frozen=True)
class Kind:
    """One of transformers' model types.

    Args:
        family: our family.
        classes: transformers' class with a head, and the one without; the same where its bare
            network has not all that ours has before the head.
        prefix: before the names of the tensors, where there is a head.
        fields: their name to ours and their default.
        fixed: fields of ours that are never otherwise there.
        read: what else follows from their config, as fields of ours.
        write: what else follows from our config, as fields of theirs.
    """

    family: str
    classes: tuple[str, str]
    prefix: str
    fields: Mapping[str, tuple[str, Any]]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    read: Callable[[Config], dict[str, Any]] = lambda config: {}
    write: Callable[[Any], dict[str, Any]] = lambda config: {}


def describe(config: Config) -> tuple[str, dict[str, Any]] | None:
    """Our family and config fields for a transformers `config.json`.

    Returns:
        None where the type of model is not one of `KINDS`, or has parts that ours has not. The
        number of classes is not among the fields: the weights say it.
    """
    kind = KINDS.get(str(config.get("model_type")))
    if kind is None:
        return None
    fields = {ours: config.get(name, usual) for name, (ours, usual) in kind.fields.items()}
    try:
        fields |= {**kind.fixed, **kind.read(config)}
        fields = {name: _plain(value) for name, value in fields.items()}
        if "image_size" in fields:
            fields["image_size"] = square_or_pair(fields["image_size"])
        if "activation" in fields and "activation" not in kind.fixed:
            fields["activation"] = ACTIVATIONS[fields["activation"]]
    except (KeyError, TypeError, ValueError, IndexError):
        return None
    return kind.family, fields


def written(kind: Kind, model_type: str, config: Any, labels: Sequence[str] | None) -> dict:
    """transformers' `config.json` for a config of ours."""
    said: dict[str, Any] = {"model_type": model_type, "architectures": [kind.classes[0]]}
    if not config.num_classes:
        said["architectures"] = [kind.classes[1]]
    for name, (ours, _) in kind.fields.items():
        value = getattr(config, ours)
        if ours == "activation":
            value = WRITTEN_ACTIVATIONS[value]
        said[name] = list(value) if isinstance(value, tuple) else value
    said |= kind.write(config)
    if config.num_classes or kind.classes[0] == kind.classes[1]:
        names = labels or [f"LABEL_{number}" for number in range(config.num_classes)]
        said["id2label"] = {str(number): name for number, name in enumerate(names)}
        said["label2id"] = {name: number for number, name in enumerate(names)}
    return {**said, "dtype": "float32"}


def kind_of(config: Any, family: str) -> str | None:
    """The type of model that transformers would have for a config of ours, by what it is most."""
    if family == "vit":
        if config.distilled:
            return "deit"
        if config.layer_scale is not None:
            return "dinov2_with_registers" if config.registers else "dinov2"
        return "vit"
    return next((name for name, kind in KINDS.items() if kind.family == family), None)


def _plain(value: Any) -> Any:
    return tuple(_plain(item) for item in value) if isinstance(value, (list, tuple)) else value


def _collapsed(values: Any) -> Any:
    """One value where all stages have the same."""
    values = _plain(values)
    return values[0] if len(set(values)) == 1 else values


# The plain ViT's kinds

_VIT = {
    "hidden_size": ("width", 768),
    "num_hidden_layers": ("depth", 12),
    "num_attention_heads": ("heads", 12),
    "image_size": ("image_size", 224),
    "num_channels": ("in_channels", 3),
    "qkv_bias": ("qkv_bias", True),
}
_WITH_MLP = {
    **_VIT,
    "patch_size": ("patch_size", 16),
    "intermediate_size": ("mlp_width", 3072),
    "hidden_act": ("activation", "gelu"),
    "layer_norm_eps": ("norm_eps", 1e-12),
}
_DINOV2 = {**_VIT, "layer_norm_eps": ("norm_eps", 1e-6)}


def _read_dinov2(config: Config) -> dict[str, Any]:
    hidden = int(config.get("hidden_size", 768) * config.get("mlp_ratio", 4))
    gated = bool(config.get("use_swiglu_ffn", False))
    usual = 16 if config["model_type"] == "dinov2_with_registers" else 14
    activation = "silu" if gated else ACTIVATIONS[config.get("hidden_act", "gelu")]
    registers = 0
    if config["model_type"] == "dinov2_with_registers":
        registers = config.get("num_register_tokens", 4)
    return {
        "patch_size": config.get("patch_size", usual),
        "mlp_width": _gated_width(hidden) if gated else hidden,
        "gated_mlp": gated,
        "activation": activation,
        "layer_scale": float(config.get("layerscale_value", 1.0)),
        "registers": registers,
        "position_on_prefix": not registers,
        "pool": "token" if _headless(config) else "token_mean",
    }


def _headless(config: Config) -> bool:
    named = config.get("architectures") or [""]
    return str(named[0]).endswith("Model")


def _gated_width(hidden: int) -> int:
    """Two thirds, to the next multiple of 8 (modeling_dinov2.py Dinov2SwiGLUFFN)."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8


def _write_dinov2(config: Any) -> dict[str, Any]:
    widths = {ratio: ratio * config.width for ratio in range(1, 17)}
    if config.gated_mlp:
        widths = {ratio: _gated_width(hidden) for ratio, hidden in widths.items()}
    ratio = next((ratio for ratio, hidden in widths.items() if hidden == config.mlp_width), 4)
    said: dict[str, Any] = {
        "patch_size": config.patch_size,
        "mlp_ratio": ratio,
        "use_swiglu_ffn": config.gated_mlp,
        "layerscale_value": config.layer_scale,
    }
    if not config.gated_mlp:
        said["hidden_act"] = WRITTEN_ACTIVATIONS[config.activation]
    return {**said, "num_register_tokens": config.registers} if config.registers else said


# Networks of stages

_STAGES = {"depths": ("depths", (2, 2, 2, 2)), "num_channels": ("in_channels", 3)}
_PYRAMID = {
    **_STAGES,
    "num_attention_heads": ("heads", (1, 2, 5, 8)),
    "mlp_ratios": ("mlp_ratios", (8, 8, 4, 4)),
    "hidden_act": ("activation", "gelu"),
    "layer_norm_eps": ("norm_eps", 1e-6),
    "qkv_bias": ("qkv_bias", True),
    "image_size": ("image_size", 224),
}
_RESNET = {
    **_STAGES,
    "depths": ("depths", (3, 4, 6, 3)),
    "embedding_size": ("stem_width", 64),
}


def _same_eps(config: Config) -> dict[str, Any]:
    """Norms of embeddings and reductions have the eps of all the others."""
    return {"embed_norm_eps": config.get("layer_norm_eps", 1e-6)}


def _stages_of(config: Any) -> dict[str, Any]:
    return {"num_encoder_blocks": len(config.depths)}


def _stages_and_classes_of(config: Any) -> dict[str, Any]:
    return {**_stages_of(config), "num_labels": config.num_classes}  # PvtConfig has its own 1000


def _usual(config: Config, usual: Mapping[str, Any]) -> None:
    """Refuse what our model has no form of."""
    for name, value in usual.items():
        if _plain(config.get(name, value)) != value:
            raise ValueError(name)


def _read_cvt(config: Config) -> dict[str, Any]:
    stages = len(config.get("depth", (1, 2, 10)))
    usual = {
        "patch_sizes": (7, 3, 3),
        "patch_stride": (4, 2, 2),
        "patch_padding": (2, 1, 1),
        "qkv_projection_method": ("dw_bn",) * stages,
        "cls_token": (False,) * (stages - 1) + (True,),
    }
    _usual(config, usual)
    return {
        "mlp_ratios": _collapsed(config.get("mlp_ratio", (4.0,))),
        "kv_strides": _collapsed(config.get("stride_kv", (2,))),
        "qkv_bias": _collapsed(config.get("qkv_bias", (True,))),
    }


def _write_cvt(config: Any) -> dict[str, Any]:
    stages = range(len(config.depths))
    count = len(config.depths)
    return {
        "patch_sizes": [7, 3, 3, 3][:count],
        "patch_stride": [4, 2, 2, 2][:count],
        "patch_padding": [2, 1, 1, 1][:count],
        "mlp_ratio": [config.of_stage("mlp_ratios", stage) for stage in stages],
        "stride_kv": [config.of_stage("kv_strides", stage) for stage in stages],
        "qkv_bias": [config.qkv_bias] * count,
        "cls_token": [False] * (count - 1) + [True],
        "qkv_projection_method": ["dw_bn"] * count,
        **{name: [1] * count for name in ("padding_kv", "padding_q", "stride_q")},
        "kernel_qkv": [3] * count,
        **{name: [0.0] * count for name in ("attention_drop_rate", "drop_rate", "drop_path_rate")},
    }


def _read_bit(config: Config) -> dict[str, Any]:
    _usual(
        config,
        {
            "layer_type": "preactivation",
            "global_padding": None,
            "hidden_act": "relu",
            "embedding_dynamic_padding": False,
            "output_stride": 32,
            "num_groups": 32,
        },
    )
    widths = config.get("hidden_sizes", (256, 512, 1024, 2048))
    return {"widths": tuple(width * config.get("width_factor", 1) for width in widths)}


def _read_resnet(config: Config) -> dict[str, Any]:
    _usual(
        config,
        {
            "layer_type": "bottleneck",
            "downsample_in_bottleneck": False,
            "downsample_in_first_stage": False,
        },
    )
    return {}


KINDS: dict[str, Kind] = {
    "vit": Kind("vit", ("ViTForImageClassification", "ViTModel"), "vit.", _WITH_MLP),
    "deit": Kind(
        "vit",
        ("DeiTForImageClassificationWithTeacher", "DeiTModel"),
        "deit.",
        _WITH_MLP,
        fixed={"distilled": True},
    ),
    "dinov2": Kind(
        "vit",
        ("Dinov2ForImageClassification", "Dinov2Model"),
        "dinov2.",
        _DINOV2,
        read=_read_dinov2,
        write=_write_dinov2,
    ),
    "dinov2_with_registers": Kind(
        "vit",
        ("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersModel"),
        "dinov2_with_registers.",
        _DINOV2,
        read=_read_dinov2,
        write=_write_dinov2,
    ),
    "vit_mae": Kind("vit", ("ViTMAEForPreTraining", "ViTMAEModel"), "vit.", _WITH_MLP),
    "cvt": Kind(
        "cvt",
        ("CvtForImageClassification", "CvtForImageClassification"),
        "cvt.",
        {
            "depth": ("depths", (1, 2, 10)),
            "embed_dim": ("widths", (64, 192, 384)),
            "num_heads": ("heads", (1, 3, 6)),
            "num_channels": ("in_channels", 3),
        },
        fixed={"activation": "gelu"},
        read=_read_cvt,
        write=_write_cvt,
    ),
    "pvt": Kind(
        "pvt",
        ("PvtForImageClassification", "PvtModel"),
        "pvt.",
        {
            **_PYRAMID,
            "hidden_sizes": ("widths", (64, 128, 320, 512)),
            "sequence_reduction_ratios": ("reductions", (8, 4, 2, 1)),
        },
        fixed={"attention_scale": PVT_NUMERICS["attention_scale"]},
        read=_same_eps,
        write=_stages_and_classes_of,
    ),
    "pvt_v2": Kind(
        "pvt_v2",
        ("PvtV2ForImageClassification", "PvtV2Model"),
        "pvt_v2.",
        {
            **_PYRAMID,
            "hidden_sizes": ("widths", (32, 64, 160, 256)),
            "sr_ratios": ("reductions", (8, 4, 2, 1)),
            "linear_attention": ("linear", False),
        },
        fixed={"attention_scale": PVT_NUMERICS["attention_scale"]},
        read=_same_eps,
        write=_stages_of,
    ),
    "bit": Kind(
        "bit",
        ("BitForImageClassification", "BitModel"),
        "bit.",
        {**_RESNET, "hidden_sizes": ("widths", (256, 512, 1024, 2048))},
        fixed=STANDARDIZED_NUMERICS,
        read=_read_bit,
    ),
    "resnet": Kind(
        "resnet",
        ("ResNetForImageClassification", "ResNetModel"),
        "resnet.",
        {
            **_RESNET,
            "hidden_sizes": ("widths", (256, 512, 1024, 2048)),
            "hidden_act": ("activation", "relu"),
        },
        fixed={"norm_eps": RESNET_NUMERICS["norm_eps"]},
        read=_read_resnet,
    ),
}
