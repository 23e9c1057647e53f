"""torchvision's files of the plain ViT (torchvision models/vision_transformer.py).

q, k and v are one matrix as in ours; the head is `heads.head` even where nothing stands before it.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.kit.preprocess import IMAGENET_MEAN, IMAGENET_STD
from vitrail.models.vit import ViTConfig
from vitrail.weights.rules import Reading, Rule

NUMERICS = {
    "activation": "gelu",
    "norm_eps": 1e-6,
    "attention_scale": "head",
    "position_resize": "bicubic_corners",
}
_BLOCK = "encoder.layers.encoder_layer_{i}."
RULES = [
    Rule("class_token", "cls_token"),
    Rule("conv_proj.{kind}", "patch_embed.proj.{kind}"),
    Rule("encoder.pos_embedding", "pos_embed"),
    Rule(_BLOCK + "ln_1.{kind}", "blocks.{i}.norm1.{kind}"),
    Rule(_BLOCK + "self_attention.in_proj_{kind}", "blocks.{i}.attn.qkv.{kind}"),
    Rule(_BLOCK + "self_attention.out_proj.{kind}", "blocks.{i}.attn.proj.{kind}"),
    Rule(_BLOCK + "ln_2.{kind}", "blocks.{i}.norm2.{kind}"),
    Rule(_BLOCK + "mlp.0.{kind}", "blocks.{i}.mlp.fc1.{kind}"),
    Rule(_BLOCK + "mlp.3.{kind}", "blocks.{i}.mlp.fc2.{kind}"),
    Rule(_BLOCK + "mlp.linear_1.{kind}", "blocks.{i}.mlp.fc1.{kind}"),  # before version 0.12
    Rule(_BLOCK + "mlp.linear_2.{kind}", "blocks.{i}.mlp.fc2.{kind}"),
    Rule("encoder.ln.{kind}", "norm.{kind}"),
    Rule("heads.pre_logits.{kind}", "pre_logits.fc.{kind}"),
    Rule("heads.head.{kind}", "head.{kind}"),
]


def recognise(tensors: Mapping[str, Tensor], config: Any) -> Reading | None:
    """What a torchvision file of the plain ViT holds; None where this is none, or another model."""
    if not {"conv_proj.weight", "class_token"} <= {*tensors} or type(config) is not ViTConfig:
        return None
    return Reading(
        family="torchvision",
        rules=RULES,
        tensors=tensors,
        droppable=("pre_logits", "cls_token", "head"),
        numerics=NUMERICS,
        resize="bicubic_corners",
        resize_kept=config.position_resize,
        preprocessing={
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "interpolation": "bilinear",
            "fit": "crop",
            "crop": 0.875,  # resize 256, crop 224: the weights of ViT_B_16_Weights.IMAGENET1K_V1
        },
    )
