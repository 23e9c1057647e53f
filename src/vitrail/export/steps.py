"""The rewriting steps of folding: each makes a model cheaper and leaves its logits as they were.

Every step changes the model that it is given, so `fold` hands it a copy, and each is exact in real
arithmetic: what differs is rounding. Weights are multiplied in float64 and then rounded once. What
a step finds no place for (a norm before a padded convolution, whose border knows no shift) stays.
"""

import copy
import dataclasses
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.export.portable import PooledAttention, PortablePerformer, RelativeAttention
from vitrail.kit.errors import Error
from vitrail.models.base import ImageClassifier, height_width
from vitrail.models.botnet import AttentionBottleneck, MapAttention
from vitrail.models.cvt import ConvolutionalAttention, CvT, CvTBlock, DepthwiseProjection
from vitrail.models.parts import (
    Attention,
    AttentionPool,
    Block,
    LayerScale,
    ScaledAttention,
    attend,
)
from vitrail.models.pvt import PyramidVisionTransformer
from vitrail.models.pvt_v2 import PyramidVisionTransformerV2
from vitrail.models.pyramid import PyramidBlock, ReducedAttention
from vitrail.models.resnet import Bottleneck, ResNet
from vitrail.models.standardize import StandardizedConv2d, pad_same, standardized
from vitrail.models.t2t import T2TViT, TokenAttention, TokenPerformer, TokenTransformer
from vitrail.models.tape import Tape
from vitrail.models.vit import VisionTransformer

Weighted = nn.Linear | nn.Conv2d


# The algebra of one layer


@torch.no_grad()
def scale_inputs(layer: Weighted, scale: Tensor, shift: Tensor) -> None:
    """Make a layer do to x what it did to scale * x + shift.

    Args:
        layer: a linear layer, or an ungrouped convolution without padding.
        scale, shift: one number for each input feature or channel.
    """
    weight = layer.weight.double()
    along = [1, -1] + [1] * (weight.ndim - 2)
    added = (weight * shift.double().view(along)).flatten(1).sum(1)
    _set(layer, weight * scale.double().view(along), added + _bias(layer))


@torch.no_grad()
def scale_outputs(layer: Weighted, scale: Tensor, shift: Tensor | None = None) -> None:
    """Make a layer give scale * y + shift where it gave y; one number for each output."""
    weight, bias = layer.weight.double(), _bias(layer) * scale.double()
    along = [-1] + [1] * (weight.ndim - 1)
    bias = bias if shift is None else bias + shift.double()
    _set(layer, weight * scale.double().view(along), bias, keep_none=shift is None)


def _bias(layer: Weighted) -> Tensor:
    if layer.bias is None:
        return torch.zeros(len(layer.weight), dtype=torch.float64, device=layer.weight.device)
    return layer.bias.double()


def _set(layer: Weighted, weight: Tensor, bias: Tensor, keep_none: bool = False) -> None:
    dtype = layer.weight.dtype
    layer.weight = nn.Parameter(weight.to(dtype))
    if layer.bias is not None or not keep_none:
        layer.bias = nn.Parameter(bias.to(dtype))


# Batch norms and standardised weights


def batch_norms(model: nn.Module) -> None:
    """Batch norms into the convolutions before them, or into the values of the attention there.

    Attention weights add up to 1 and so do those of an average, so a scale and shift of what comes
    out is one of the values that go in (BoTNet).
    """
    for part in list(model.modules()):
        if isinstance(part, Bottleneck):
            _absorb_batch_norm(part.conv1, part, "bn1")
            if isinstance(part, AttentionBottleneck):
                _absorb_into_values(part)
            elif isinstance(part.conv2, nn.Conv2d):
                _absorb_batch_norm(part.conv2, part, "bn2")
            _absorb_batch_norm(part.conv3, part, "bn3")
            if len(part.downsample):
                _absorb_batch_norm(part.downsample[0], part.downsample, "1")
        elif isinstance(part, ResNet):
            _absorb_batch_norm(part.conv1, part, "bn1")
        elif isinstance(part, DepthwiseProjection):
            _absorb_batch_norm(part.conv, part, "bn")


def _absorb_batch_norm(conv: nn.Module, owner: nn.Module, name: str) -> None:
    norm = owner.get_submodule(name)
    if isinstance(norm, nn.BatchNorm2d) and isinstance(conv, nn.Conv2d):
        scale_outputs(conv, *_affine_of(norm))
        setattr(owner, name, nn.Identity())


def _absorb_into_values(block: AttentionBottleneck) -> None:
    if isinstance(block.bn2, nn.BatchNorm2d):
        scale, shift = _affine_of(block.bn2)
        rest = 2 * len(scale)  # queries and keys come first
        scale_outputs(
            block.attn.qkv,
            torch.cat([scale.new_ones(rest), scale]),
            torch.cat([shift.new_zeros(rest), shift]),
        )
        setattr(block, "bn2", nn.Identity())  # noqa: B010


def _affine_of(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """What a batch norm does in evaluation, as (scale, shift), float64."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt() * norm.weight.double()
    return scale, norm.bias.double() - norm.running_mean.double() * scale


class PaddedConv2d(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding, which may have one pixel more after."""

    def forward(self, input: Tensor) -> Tensor:
        """[b i h w] to [b o h' w']."""
        padded = pad_same(input, self.kernel_size[0], self.stride[0])
        return functional.conv2d(padded, self.weight, self.bias, self.stride)


@torch.no_grad()
def standardized_weights(model: nn.Module) -> None:
    """Filters that are standardised on the way (BiT, hybrids), standardised once and for all."""
    for owner, name, part in _children(model, StandardizedConv2d):
        kind = PaddedConv2d if part.pads_itself else nn.Conv2d
        kernel, stride = part.kernel_size[0], part.stride[0]
        padding = 0 if part.pads_itself else kernel // 2
        channels = (part.in_channels, part.out_channels)
        plain = kind(*channels, kernel, stride, padding, bias=False, dtype=part.weight.dtype)
        weight = standardized(part.weight.double(), part.eps, part.eps_on)
        plain.weight = nn.Parameter(weight.to(part.weight.dtype))
        setattr(owner, name, plain)


# Layer norms


def layer_norms(model: nn.Module) -> None:
    """Scale and shift of LayerNorms into whatever is linear behind them.

    Before a padded convolution (CvT's projections, PVT v2's embeddings) and where the residual
    stream itself is normed there is no such layer, and the norm keeps them.
    """
    for part in list(model.modules()):
        if isinstance(part, Block):
            _absorb_layer_norm(part, "norm1", part.attn.qkv)
            _absorb_layer_norm(part, "norm2", part.mlp.fc1)
        elif isinstance(part, CvTBlock):
            attn = part.attn
            if isinstance(attn, ConvolutionalAttention) and not attn.convolved:
                _absorb_layer_norm(part, "norm1", attn.proj_q, attn.proj_k, attn.proj_v)
            _absorb_layer_norm(part, "norm2", part.mlp.fc1)
        elif isinstance(part, PyramidBlock):
            _absorb_pyramid(part)
        elif isinstance(part, AttentionPool):
            _absorb_layer_norm(part, "norm", part.mlp.fc1)
        elif isinstance(part, TokenPerformer):
            _absorb_layer_norm(part, "norm1", part.kqv)
            _absorb_layer_norm(part, "norm2", part.mlp[0])
        elif isinstance(part, TokenTransformer):
            _absorb_layer_norm(part, "norm1", part.attn.qkv)
            _absorb_layer_norm(part, "norm2", part.mlp[0])
    if isinstance(model, ImageClassifier):
        _absorb_last_norm(model)


def _absorb_pyramid(block: PyramidBlock) -> None:
    attn = block.attn
    # The reduction's convolution has no padding, and pooling is a mean, which a shift passes.
    _absorb_layer_norm(block, "norm1", attn.q, attn.sr if attn.reduces else attn.kv)
    if attn.reduces and not attn.linear:  # the linear form has a GELU in between
        _absorb_layer_norm(attn, "norm", attn.kv)
    _absorb_layer_norm(block, "norm2", block.mlp.fc1)


def _absorb_last_norm(model: ImageClassifier) -> None:
    """The norm before the head; averages over tokens in between do not mind."""
    if isinstance(model, VisionTransformer):
        reader = model.pre_logits[0] if len(model.pre_logits) else model.head
        readers = (model.head, model.head_dist) if model.config.distilled else (reader,)
        _absorb_layer_norm(model, "fc_norm", *readers)
        pooled = (model.attn_pool.kv,) if model.config.pool == "map" else readers
        _absorb_layer_norm(model, "norm", *pooled)
    elif isinstance(model, CvT | T2TViT | PyramidVisionTransformer):
        _absorb_layer_norm(model, "norm", model.head)
    elif isinstance(model, PyramidVisionTransformerV2):
        _absorb_layer_norm(model.stages[-1], "norm", model.head)


def _absorb_layer_norm(owner: nn.Module, name: str, *readers: nn.Module) -> None:
    norm = owner.get_submodule(name)
    plain = all(isinstance(reader, Weighted) for reader in readers)
    if not isinstance(norm, nn.LayerNorm) or norm.weight is None or not plain:
        return
    for reader in readers:
        assert isinstance(reader, Weighted)
        # What is read may be several normed vectors side by side ("token_mean").
        several = reader.weight.shape[1] // len(norm.weight)
        scale_inputs(reader, norm.weight.repeat(several), norm.bias.repeat(several))
    bare = nn.LayerNorm(list(norm.normalized_shape), norm.eps, elementwise_affine=False)
    setattr(owner, name, bare.to(norm.weight.device))


# Attention


@torch.no_grad()
def query_scales(model: nn.Module) -> None:
    """The factor on query-key products into the layer that makes the queries."""
    for part in model.modules():
        if isinstance(part, Attention | TokenAttention | MapAttention):
            _scale_queries(part.qkv, part.scale)
            part.scale = 1.0
        elif isinstance(part, ConvolutionalAttention):
            _scale_queries(part.proj_q, part.scale, 1)
            part.scale = 1.0
        elif isinstance(part, ReducedAttention | AttentionPool):
            _scale_queries(part.q, part.scale, 1)
            part.scale = 1.0


def _scale_queries(layer: Weighted, scale: float, share: int = 3) -> None:
    """Scale the first of ``share`` parts of a layer's outputs."""
    factors = torch.ones(len(layer.weight), dtype=torch.float64, device=layer.weight.device)
    factors[: len(factors) // share] = scale
    scale_outputs(layer, factors)


class JoinedAttention(ScaledAttention):
    """Attention over a map's tokens with q, k and v in one matrix."""

    convolved = False

    def __init__(self, attention: ConvolutionalAttention | ReducedAttention, qkv: nn.Linear):
        super().__init__(attention.width, attention.heads, "head")
        self.scale = attention.scale
        self.qkv, self.proj = qkv, attention.proj

    def forward(self, x: Tensor, *where: object) -> Tensor:
        """[b n d] to [b n d]; records ``attention`` [b h n n], and looks at no grid.

        A CvT gives the grid and the tape, a pyramid the tape and the grid.
        """
        tape = next((part for part in where if isinstance(part, Tape)), None)
        b, n, d = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv.unbind(0)
        mixed = attend(query, key, value, self.scale, tape)
        return self.proj(mixed.transpose(1, 2).reshape(b, n, d))


def joined_projections(model: nn.Module) -> None:
    """Queries, keys and values of the same tokens, where they are several layers, in one matrix."""
    for owner, name, part in _children(model, ConvolutionalAttention):
        if not part.convolved:
            qkv = _stacked(part.proj_q, part.proj_k, part.proj_v)
            setattr(owner, name, JoinedAttention(part, qkv))
    for owner, name, part in _children(model, ReducedAttention):
        if not part.reduces:
            setattr(owner, name, JoinedAttention(part, _stacked(part.q, part.kv)))


@torch.no_grad()
def _stacked(*layers: nn.Linear) -> nn.Linear:
    weight = torch.cat([layer.weight for layer in layers])
    bias = layers[0].bias is not None
    joined = nn.Linear(weight.shape[1], len(weight), bias=bias, dtype=weight.dtype)
    joined.weight = nn.Parameter(weight)
    if bias:
        joined.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]))
    return joined


def layer_scales(model: nn.Module) -> None:
    """LayerScale into the layer before it."""
    for part in model.modules():
        if isinstance(part, Block):
            for name, layer in (("ls1", part.attn.proj), ("ls2", part.mlp.fc2)):
                factor = part.get_submodule(name)
                if isinstance(factor, LayerScale):
                    scale_outputs(layer, factor.gamma)
                    setattr(part, name, nn.Identity())


# What exporters get wrong


def portable_parts(model: nn.Module, size: tuple[int, int]) -> None:
    """What exporters do not carry over as it is, in other words; see `portable`."""
    for owner, name, part in _children(model, TokenPerformer):
        setattr(owner, name, PortablePerformer(part))
    if isinstance(model, VisionTransformer) and model.config.position == "relative":
        for owner, name, part in _children(model, Attention):
            setattr(owner, name, RelativeAttention(part))
    if isinstance(model, PyramidVisionTransformerV2) and model.config.linear:
        for stage, grid in enumerate(model.config.grids(size)):
            for owner, name, part in _children(model.blocks_of(stage), ReducedAttention):
                setattr(owner, name, PooledAttention(part, grid))


# Sizes


@torch.no_grad()
def at_size(model: ImageClassifier, size: tuple[int, int]) -> ImageClassifier:
    """A copy of a model for pictures of (height, width), its tables of positions resized.

    A plain ViT's stay as they are: `fold` bakes them with the patch embedding.

    Raises:
        Error: a table that the family cannot resize.
    """
    if size == height_width(model.image_size) or isinstance(model, VisionTransformer):
        return copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        fitted = type(model)(dataclasses.replace(model.config, image_size=size))
    fitted.apply_numerics()
    own, state = fitted.state_dict(), model.state_dict()
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            resized = fitted.refit(name, tensor)
            if isinstance(model, T2TViT):  # at any other size its table is the formula's
                resized = own[name], "computed"
            if resized is None:
                raise Error(f"{name} cannot be fitted to pictures of {size[0]}x{size[1]}")
            state[name] = resized[0]
    weight = next(model.parameters())
    fitted.to(weight.device, weight.dtype).load_state_dict(state)
    fitted.preprocessing, fitted.labels = model.preprocessing, model.labels
    return fitted.train(model.training)


Part = TypeVar("Part", bound=nn.Module)


def _children(model: nn.Module, kind: type[Part]) -> list[tuple[nn.Module, str, Part]]:
    """Every part of a kind with the module that holds it and its name there."""
    return [
        (owner, name, part)
        for owner in model.modules()
        for name, part in owner.named_children()
        if isinstance(part, kind)
    ]
