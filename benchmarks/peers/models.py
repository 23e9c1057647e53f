"""The same architectures in timm and in transformers, each at its best.

Attention is fused wherever the library has it fused (timm everywhere but in BoTNet's, transformers
where its class offers `sdpa`); what a model came out with is said by `attention_of`.
"""

from typing import Any

import tests.reference.torchvision_stub  # noqa: F401  (before timm)
from torch import Tensor, nn

from vitrail.models.base import ImageClassifier, height_width
from vitrail.models.zoo import describe
from vitrail.weights.transformers_config import KINDS, kind_of, written

NONE = {"t2t": "neither timm nor transformers has T2T-ViT: there is no peer to time"}


def from_timm(model: ImageClassifier, name: str) -> nn.Module:
    """timm's model of the same name and sizes."""
    import timm

    if describe(model)["family"] == "botnet":
        return _botnet(model)
    more: dict[str, Any] = {}
    if name.startswith(("vit_", "deit")) and "_r" not in name.split("_patch")[0]:
        more["img_size"] = model.image_size
    theirs = timm.create_model(name, num_classes=model.num_classes, **more)
    for part in theirs.modules():
        if getattr(part, "fused_attn", True) is False:
            raise RuntimeError(f"timm does not fuse {type(part).__name__}")
    return theirs


def _botnet(model: ImageClassifier) -> nn.Module:
    """BoTNet-50 out of timm's own blocks: it has the parts of the paper's model, not the model.

    As many parameters as ours; timm does not scale the queries before the positions, and ends the
    projected shortcut without an activation.
    """
    from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg

    c = model.config
    kinds = ["bottle"] * (len(c.depths) - 1) + ["self_attn"]
    strides = [1, 2, 2, 2]
    config = ByoModelCfg(
        blocks=tuple(
            ByoBlockCfg(type=kind, d=depth, c=width, s=stride, gs=0, br=0.25)
            for kind, depth, width, stride in zip(kinds, c.depths, c.widths, strides, strict=True)
        ),
        stem_chs=64,
        stem_type="7x7",
        stem_pool="maxpool",
        act_layer="relu",
        fixed_input_size=True,
        self_attn_layer="bottleneck",
        self_attn_kwargs={"num_heads": c.heads, "dim_head": c.widths[-1] // 4 // c.heads},
    )
    size = height_width(model.image_size)
    return ByobNet(config, num_classes=model.num_classes, img_size=size)


def from_transformers(model: ImageClassifier, name: str) -> nn.Module:
    """transformers' model of the same configuration, as `vitrail convert --to hf` describes it."""
    import transformers

    kind = kind_of(model.config, describe(model)["family"])
    if kind is None:
        raise RuntimeError(f"transformers has no {name}")
    said = written(KINDS[kind], kind, model.config, None)
    said.pop("dtype")
    config = transformers.AutoConfig.for_model(said.pop("model_type"), **said)
    auto = getattr(transformers, said["architectures"][0])
    try:
        theirs = auto._from_config(config, attn_implementation="sdpa")
    except ValueError:  # its class has no fused attention
        theirs = auto._from_config(config, attn_implementation="eager")
    return Logits(theirs)


class Logits(nn.Module):
    """transformers' output objects as plain logits."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def attention_of(model: nn.Module) -> str:
    """How a peer computes attention."""
    if isinstance(model, Logits):
        return str(model.model.config._attn_implementation)
    kinds = {part.fused_attn for part in model.modules() if hasattr(part, "fused_attn")}
    return "fused" if kinds == {True} else "not fused" if kinds else "own"


PEERS = {"timm": from_timm, "transformers": from_transformers}
