"""transformers' files of the plain ResNet: torchvision's network under other names.

Only the bottleneck form with its stride in the 3x3 convolution, which `microsoft/resnet-50` and
its like have (transformers/models/resnet/modeling_resnet.py).
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vitrail.kit.preprocess import IMAGENET_MEAN, IMAGENET_STD
from vitrail.models.resnet import ResNetConfig
from vitrail.weights.rules import Reading, Rule
from vitrail.weights.timm_resnets import RESNET_NUMERICS

FIRST = "embedder.embedder.convolution.weight"
PREPROCESSING = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}


def recognise(tensors: Mapping[str, Tensor], config: Any) -> Reading | None:
    """What transformers' file of a ResNet holds; None where it is none, or for another model."""
    prefix = next((p for p in ("resnet.", "") if p + FIRST in tensors), None)
    if prefix is None or type(config) is not ResNetConfig:
        return None
    names = {name.removeprefix(prefix): name for name in tensors}
    return Reading(
        family="transformers",
        rules=rules(config),
        tensors={plain: tensors[name] for plain, name in names.items()},
        names=names,
        wrappers=[prefix] if prefix else [],
        droppable=("fc",),
        numerics=RESNET_NUMERICS,
        preprocessing=PREPROCESSING,
    )


def rules(config: ResNetConfig) -> list[Rule]:
    """The rules, without the prefix ``resnet.``; stages count from 0 there and from 1 here."""
    made = _convolution("embedder.embedder", "conv1", "bn1")
    for stage in range(len(config.depths)):
        block, own = f"encoder.stages.{stage}.layers.{{j}}", f"layer{stage + 1}.{{j}}"
        made += _convolution(f"{block}.shortcut", f"{own}.downsample.0", f"{own}.downsample.1")
        for number in (1, 2, 3):
            layer = f"{block}.layer.{number - 1}"
            made += _convolution(layer, f"{own}.conv{number}", f"{own}.bn{number}")
    return [*made, Rule("classifier.1.{kind}", "fc.{kind}")]


def _convolution(theirs: str, ours: str, norm: str) -> list[Rule]:
    return [
        Rule(f"{theirs}.convolution.weight", f"{ours}.weight"),
        Rule(f"{theirs}.normalization.{{kind}}", f"{norm}.{{kind}}"),
    ]
