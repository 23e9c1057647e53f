"""Writing down a model: one line a layer, and a method for each kind that families share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

# How many tensors of its input's size an activation function keeps beyond the next layer's input.
KEPT_BY_ACTIVATION = {"gelu": 1, "gelu_tanh": 1, "quick_gelu": 1, "relu": 0, "silu": 1}


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
        full: those of them that stay as wide as the weights under 16-bit autocast.
        copied: whether it computes with a copy of its weights, such as standardised filters, which
            is kept once for the whole batch.
    """

    name: str
    shape: tuple[int, ...]
    parameters: int = 0
    macs: int = 0
    activations: int = 0
    full: int = 0
    copied: bool = False


def keeping(layers: Sequence[Layer], lean: Sequence[Layer]) -> list[Layer]:
    """The layers with what the ``lean`` ones, of fewer tokens, keep for the backward pass.

    A last block of which one token is read computes no more than that; its line, like the papers',
    counts all.
    """
    return [
        replace(one, activations=less.activations, full=less.full)
        for one, less in zip(layers, lean, strict=True)
    ]


class Anatomy(list[Layer]):
    """Layers being written down, with a method for each kind that families share."""

    def add(self, name: str, shape: tuple[int, ...], **counts: Any) -> None:
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
        copied: bool = False,
    ) -> None:
        """A square convolution from and to so many ``channels``, giving (*grid, channels[1])."""
        weights = channels[0] * channels[1] * kernel**2
        self.add(
            name,
            (*grid, channels[1]),
            parameters=weights + channels[1] * bias,
            macs=weights * prod(grid),
            activations=kept,
            copied=copied,
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
        self.add(name, (*tokens, width), parameters=2 * width, activations=kept, full=kept)

    def group_norm(self, name: str, grid: tuple[int, int], width: int, groups: int) -> None:
        """A GroupNorm of a map; a mean and a deviation for each group."""
        kept = prod(grid) * width + 2 * groups
        self.add(name, (*grid, width), parameters=2 * width, activations=kept, full=kept)

    def batch_norm(self, name: str, grid: tuple[int, int], width: int) -> None:
        """A BatchNorm of a map, whose statistics are the batch's."""
        kept = prod(grid) * width
        self.add(name, (*grid, width), parameters=2 * width, activations=kept)

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
        gated: bool = False,
    ) -> None:
        """Linear, activation, linear, on tokens of ``widths`` (outside, inside); `parts.Mlp`."""
        width, hidden = widths
        outside, inside = prod(tokens) * width, prod(tokens) * hidden
        kept = inside * (1 + KEPT_BY_ACTIVATION[activation]) + dropout * (inside + outside)
        kept += 2 * inside * gated  # the gate once it is activated, and what it lets through
        self.linear(f"{name}.fc1", tokens, width, hidden * (1 + gated), kept=outside)
        self.linear(f"{name}.fc2", tokens, hidden, width, kept=kept)
