"""What a model costs: parameters, multiply-adds, and what a training step keeps for its way back.

Everything is counted from the configuration, layer by layer, so nothing is run and a model on the
meta device will do. Each family has one function here that writes down its layers (`FAMILIES`);
the models know nothing of it. Names are those of the state dict where a layer has parameters and
those of the tape where it has none.

Multiply-adds are those of the matrix products (convolutions, linear layers, both products of
attention); softmax, norms, activations, biases and residual sums are not counted, as in the
papers' "FLOPs". A training step costs three forward passes of two operations a multiply-add:
6 x MACs x images is the papers' compute (ViT paper, Table 6, to 0.3 %).

Activations are the elements that autograd keeps of one image's forward pass for the backward pass,
all parameters being trained and attention fused:
    linear, convolution     its input
    LayerNorm               its input, and 2 numbers (mean, deviation) a token
    attention               queries, keys, values, its output, and 1 number a head and query
    activation function     its input (quick_gelu: twice; relu: its output, which is the next
                            layer's input and already counted there)
    LayerScale              its input
    dropout, where used     a mask of its input's size
    residual sum, position  nothing
Where two layers keep one tensor it is counted once. Multiply by the batch size and by the bytes
of an element (4, or 2 under 16-bit autocast for all but the LayerNorms' inputs).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from vitrail.kit.errors import Error
from vitrail.kit.grid import check_divides
from vitrail.models.base import ImageClassifier, ModelConfig, Size, height_width
from vitrail.models.vit import ViTConfig

# How many tensors of its input's size an activation function keeps beyond the next layer's input.
KEPT_BY_ACTIVATION = {"gelu": 1, "gelu_tanh": 1, "quick_gelu": 2, "relu": 0, "silu": 1}


@dataclass(frozen=True)
class Layer:
    """One line of a model's anatomy, for one image.

    Attributes:
        name: as in the state dict, or as on the tape for a layer without parameters.
        shape: of what leaves the layer: (rows, columns, channels), (tokens, width), or for
            attention maps (heads, queries, keys).
        parameters: trainable numbers; fixed tables have none.
        macs: multiply-adds.
        activations: elements that the layer keeps for the backward pass.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int = 0
    macs: int = 0
    activations: int = 0


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


class Anatomy(list[Layer]):
    """Layers being written down, with a method for each kind that families share."""

    def add(self, name: str, shape: tuple[int, ...], **counts: int) -> None:
        """A layer that is its own kind; ``counts`` are fields of `Layer`."""
        self.append(Layer(name, shape, **counts))

    def convolution(
        self,
        name: str,
        channels: tuple[int, int],
        kernel: int,
        grid: tuple[int, int],
        kept: int,
        bias: bool = True,
    ) -> None:
        """A square convolution from and to so many ``channels``, giving (*grid, channels[1])."""
        weights = channels[0] * channels[1] * kernel**2
        self.add(
            name,
            (*grid, channels[1]),
            parameters=weights + channels[1] * bias,
            macs=weights * prod(grid),
            activations=kept,
        )

    def linear(
        self,
        name: str,
        tokens: tuple[int, ...],
        inner: int,
        outer: int,
        kept: int,
        bias: bool = True,
    ) -> None:
        """A linear layer on each of the ``tokens``; () for a single vector."""
        self.add(
            name,
            (*tokens, outer),
            parameters=inner * outer + outer * bias,
            macs=prod(tokens) * inner * outer,
            activations=kept,
        )

    def norm(self, name: str, tokens: tuple[int, ...], width: int) -> None:
        """A LayerNorm."""
        kept = prod(tokens) * (width + 2)
        self.add(name, (*tokens, width), parameters=2 * width, activations=kept)

    def attention(self, name: str, heads: int, queries: int, keys: int, width: int) -> None:
        """The two products of attention: queries with keys, weights with values."""
        kept = 2 * queries * width + 2 * keys * width + heads * queries
        self.add(name, (heads, queries, keys), macs=2 * queries * keys * width, activations=kept)

    def mlp(
        self,
        name: str,
        tokens: tuple[int, ...],
        widths: tuple[int, int],
        activation: str,
        dropout: bool = False,
    ) -> None:
        """Linear, activation, linear, on tokens of ``widths`` (outside, inside)."""
        width, hidden = widths
        outside, inside = prod(tokens) * width, prod(tokens) * hidden
        kept = inside * (1 + KEPT_BY_ACTIVATION[activation]) + dropout * (inside + outside)
        self.linear(f"{name}.fc1", tokens, width, hidden, kept=outside)
        self.linear(f"{name}.fc2", tokens, hidden, width, kept=kept)


def vit_layers(config: ViTConfig, size: tuple[int, int]) -> list[Layer]:
    """The layers of a plain ViT for pictures of a size (height, width)."""
    c = config
    check_divides(size, c.patch_size)
    grid = (size[0] // c.patch_size, size[1] // c.patch_size)
    anatomy = Anatomy()
    anatomy.add("images", (*size, c.in_channels))
    pixels = prod(size) * c.in_channels
    anatomy.convolution("patch_embed.proj", (c.in_channels, c.width), c.patch_size, grid, pixels)
    anatomy.add("patches", (prod(grid), c.width))
    _vit_tokens(anatomy, c, prod(grid))
    tokens = (prod(grid) + c.prefix,)
    for i in range(c.depth):
        _vit_block(anatomy, c, f"blocks.{i}", tokens)
    _vit_head(anatomy, c, tokens)
    return list(anatomy)


def _vit_tokens(anatomy: Anatomy, c: ViTConfig, patches: int) -> None:
    """From patches to the sequence that enters the blocks."""

    def positions(tokens: int) -> None:
        if c.position != "none":
            learned = c.position == "learned"
            rows = prod(c.grid) + (c.prefix if c.position_on_prefix else 0)
            anatomy.add("pos_embed", (tokens, c.width), parameters=rows * c.width * learned)

    if not c.position_on_prefix:
        positions(patches)
    tokens = patches
    if c.has_class_token:
        tokens += 1
        anatomy.add("cls_token", (tokens, c.width), parameters=c.width)
    if c.registers:
        tokens += c.registers
        anatomy.add("reg_token", (tokens, c.width), parameters=c.registers * c.width)
    if c.position_on_prefix:
        positions(tokens)
    if c.dropout:
        anatomy.add("embedded", (tokens, c.width), activations=tokens * c.width)


def _vit_block(anatomy: Anatomy, c: ViTConfig, name: str, tokens: tuple[int]) -> None:
    """One block; everything has as many ``tokens``."""
    (n,) = tokens
    dropped = n * c.width if c.dropout else 0

    def scaled(which: str) -> None:
        if c.layer_scale is not None:
            kept = n * c.width
            anatomy.add(f"{name}.{which}", (n, c.width), parameters=c.width, activations=kept)

    anatomy.norm(f"{name}.norm1", tokens, c.width)
    anatomy.linear(
        f"{name}.attn.qkv", tokens, c.width, 3 * c.width, kept=n * c.width, bias=c.qkv_bias
    )
    anatomy.attention(f"{name}.attention", c.heads, n, n, c.width)
    anatomy.linear(f"{name}.attn.proj", tokens, c.width, c.width, kept=dropped)
    scaled("ls1")
    anatomy.norm(f"{name}.norm2", tokens, c.width)
    anatomy.mlp(f"{name}.mlp", tokens, (c.width, c.mlp_width), c.activation, c.dropout > 0)
    scaled("ls2")


def _vit_head(anatomy: Anatomy, c: ViTConfig, tokens: tuple[int]) -> None:
    """From the last block's tokens to the logits."""
    (n,) = tokens
    if not c.norm_after_pool:
        anatomy.norm("norm", tokens, c.width)
    if c.pool == "map":
        _attention_pool(anatomy, c, n - c.prefix)
    left = tokens if c.pool == "none" else ()
    if c.pool != "none":
        anatomy.add("pooled", (c.width,))
    if c.norm_after_pool:
        anatomy.norm("fc_norm", left, c.width)
    # The class token is a view of all tokens, which therefore are kept until it is used.
    viewed = c.pool == "token" and not c.norm_after_pool
    kept = n * c.width if viewed else prod(left) * c.width
    if c.pre_logits:
        anatomy.linear("pre_logits.fc", left, c.width, c.width, kept=kept)
        kept = prod(left) * c.width
    if c.num_classes:
        anatomy.linear("head", left, c.width, c.num_classes, kept=kept)


def _attention_pool(anatomy: Anatomy, c: ViTConfig, n: int) -> None:
    """Attention pooling over n patches; the query is the same for every image of a batch."""
    d, one = c.width, (1,)
    anatomy.add("attn_pool.latent", (1, d), parameters=d)
    anatomy.linear("attn_pool.q", one, d, d, kept=0)
    anatomy.linear("attn_pool.kv", (n,), d, 2 * d, kept=n * d)
    anatomy.attention("pool.attention", c.heads, 1, n, d)
    anatomy.linear("attn_pool.proj", one, d, d, kept=0)
    anatomy.norm("attn_pool.norm", one, d)
    anatomy.mlp("attn_pool.mlp", one, (d, c.mlp_width), c.activation)


FAMILIES: dict[type, Callable[[Any, tuple[int, int]], list[Layer]]] = {ViTConfig: vit_layers}
