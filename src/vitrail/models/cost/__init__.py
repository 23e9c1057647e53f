"""What a model costs: parameters, multiply-adds, and what a training step keeps for its way back.

Everything is counted from the configuration, layer by layer, so nothing is run and a model on the
meta device will do. Each family has a function that writes down its layers, in a file of its own
(`FAMILIES`); the models know nothing of it. Names are those of the state dict where a layer has
parameters and those of the tape where it has none.

Multiply-adds are those of the matrix products (convolutions, linear layers, both products of
attention); softmax, norms, activations, biases and residual sums are not counted, as in the
papers' "FLOPs". A training step costs three forward passes of two operations a multiply-add:
6 x MACs x images is the papers' compute (ViT paper, Table 6, to 0.3 %).

Activations are the elements that autograd keeps of one image's forward pass for the backward pass,
all parameters being trained and attention fused:
    linear, convolution     its input
    LayerNorm               its input, and 2 numbers (mean, deviation) a token
    GroupNorm, BatchNorm    its input (GroupNorm: and 2 numbers a group)
    max-pooling             its input, and 8 bytes for each place found
    attention               queries, keys, values, its output, and 1 number a head and query
    activation function     its input (relu: its output, which is the next layer's input and
                            already counted there)
    LayerScale              its input
    dropout, where used     a mask of its input's size
    residual sum, position  nothing
Where two layers keep one tensor it is counted once. Multiply by the batch size and by the bytes
of an element (4, or 2 under 16-bit autocast for all but the LayerNorms' inputs).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vitrail.kit.errors import Error
from vitrail.models.base import ImageClassifier, ModelConfig, Size, height_width
from vitrail.models.bit_resnet import BiTConfig
from vitrail.models.botnet import BoTNetConfig
from vitrail.models.cost.anatomy import Anatomy, Layer
from vitrail.models.cost.bit_resnet import bit_layers
from vitrail.models.cost.botnet import botnet_layers
from vitrail.models.cost.cvt import cvt_layers
from vitrail.models.cost.hybrid import hybrid_layers
from vitrail.models.cost.pvt import pvt_layers, pvt_v2_layers
from vitrail.models.cost.resnet import resnet_layers
from vitrail.models.cost.t2t import t2t_layers
from vitrail.models.cost.vit import vit_layers
from vitrail.models.cvt import CvTConfig
from vitrail.models.hybrid import HybridConfig
from vitrail.models.pvt import PVTConfig
from vitrail.models.pvt_v2 import PVTv2Config
from vitrail.models.resnet import ResNetConfig
from vitrail.models.t2t import T2TConfig
from vitrail.models.vit import ViTConfig

__all__ = ["Anatomy", "Cost", "Layer", "cost"]

FAMILIES: dict[type, Callable[[Any, tuple[int, int]], list[Layer]]] = {
    ViTConfig: vit_layers,
    HybridConfig: hybrid_layers,
    ResNetConfig: resnet_layers,
    BiTConfig: bit_layers,
    CvTConfig: cvt_layers,
    T2TConfig: t2t_layers,
    PVTConfig: pvt_layers,
    BoTNetConfig: botnet_layers,
    PVTv2Config: pvt_v2_layers,
}


@dataclass(frozen=True)
class Cost:
    """The layers of a model in the order of the forward pass, and their sums for one image."""

    layers: list[Layer]

    @property
    def parameters(self) -> int:
        """The model's trainable numbers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        """Multiply-adds of one image's forward pass."""
        return sum(layer.macs for layer in self.layers)

    @property
    def activations(self) -> int:
        """Elements kept of one image's forward pass for the backward pass."""
        return sum(layer.activations for layer in self.layers)


def cost(model: ImageClassifier | ModelConfig, image_size: Size | None = None) -> Cost:
    """What one image costs, by the formulas at the head of this module.

    Args:
        model: a model of the zoo, on any device, or its config.
        image_size: pixels, or (height, width), of the picture; None for the model's own. The
            parameters stay those of the model as it is, whose position table is resized on the way.

    Raises:
        Error: the model cannot take pictures of that size, or its family has no formula.
    """
    config = model.config if isinstance(model, ImageClassifier) else model
    if type(config) not in FAMILIES:
        raise Error(f"there is no cost formula for {type(config).__name__}")
    size = height_width(config.image_size if image_size is None else image_size)
    return Cost(FAMILIES[type(config)](config, size))
