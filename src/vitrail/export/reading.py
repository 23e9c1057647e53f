"""The last block where only the class token is read, and pooling by a learned query.

What is special here: with one query, neither keys nor values need to be made. With W_k and W_v
the projections of a head, q . (W_k x) is (W_k' q) . x, and the weighted mean of W_v x is W_v of
the weighted mean of x. A bias of the keys adds the same to every logit, which softmax does not
see; one of the values comes through as it is, for the weights add up to 1. So the block costs h
products of a token with a vector instead of two matrices: nearly all of its arithmetic is saved.
The query's scale must be in its weights by then (`steps.query_scales`).
"""

import torch
from torch import Tensor, nn

from vitrail.models.cvt import ConvolutionalAttention, CvT, CvTBlock
from vitrail.models.parts import Attention, AttentionPool, Block
from vitrail.models.pvt import PyramidVisionTransformer
from vitrail.models.pyramid import PyramidBlock, ReducedAttention
from vitrail.models.t2t import T2TViT
from vitrail.models.tape import Tape, record
from vitrail.models.vit import VisionTransformer


class Reader(nn.Module):
    """Attention of few queries over tokens, without keys or values; see the module's head.

    Args:
        key: the layer that would make the keys, [d d].
        value: the layer that would make the values, [d d].
        heads: h.
    """

    def __init__(self, key: nn.Linear, value: nn.Linear, heads: int):
        super().__init__()
        # [h e d]: from a head's query to a query among tokens; [h d e]: from a mean to its value
        self.key = nn.Parameter(key.weight.detach().unflatten(0, (heads, -1)).contiguous())
        of_heads = value.weight.detach().unflatten(0, (heads, -1))
        self.value = nn.Parameter(of_heads.transpose(1, 2).contiguous())
        self.bias = None if value.bias is None else nn.Parameter(value.bias.detach().clone())
        self.heads = heads

    def forward(
        self, query: Tensor, keyed: Tensor, valued: Tensor, tape: Tape | None = None
    ) -> Tensor:
        """Queries [b k d], and what keys and values are made of, [b n d] each, to [b k d].

        Records ``attention`` [b h k n].
        """
        b, k, _ = query.shape
        split = query.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [b h k e]
        among = (split @ self.key).flatten(1, 2)  # the queries among tokens, [b h*k d]
        weights = (among @ keyed.transpose(1, 2)).softmax(dim=-1)
        record(tape, "attention", weights.reshape(b, self.heads, k, -1))
        means = (weights @ valued).reshape(b, self.heads, k, -1)
        mixed = (means @ self.value).transpose(1, 2).flatten(2)
        return mixed if self.bias is None else mixed + self.bias


class LastBlock(nn.Module):
    """A pre-norm block that is computed for its first tokens only.

    Args:
        block: the block; its parts are taken over.
        keep: for how many tokens.
        query: makes the queries of the tokens that are kept.
        reader: attends.
    """

    def __init__(self, block: nn.Module, keep: int, query: nn.Linear, reader: Reader):
        super().__init__()
        self.norm1, self.norm2 = block.get_submodule("norm1"), block.get_submodule("norm2")
        self.mlp = block.get_submodule("mlp")
        self.ls1: nn.Module = getattr(block, "ls1", nn.Identity())
        self.ls2: nn.Module = getattr(block, "ls2", nn.Identity())
        self.query, self.reader = query, reader
        self.proj = block.get_submodule("attn.proj")
        self.keep = keep

    def forward(self, x: Tensor, tape: Tape | None = None, *where: object) -> Tensor:
        """[b n d] to [b keep d]; records ``attention`` [b h keep n].

        The grid that others need is not looked at.
        """
        normed = self.norm1(x)
        keyed, valued = self.sources(normed, *where)
        mixed = self.proj(self.reader(self.query(normed[:, : self.keep]), keyed, valued, tape))
        x = x[:, : self.keep] + self.ls1(mixed)
        return x + self.ls2(self.mlp(self.norm2(x)))

    def sources(self, x: Tensor, *where: object) -> tuple[Tensor, Tensor]:
        """Normed tokens [b n d] to what keys and values are made of."""
        return x, x


class LastConvolutionalBlock(LastBlock):
    """`LastBlock` for CvT: keys and values are of convolved tokens, which the class token skips."""

    def __init__(self, block: CvTBlock, keep: int, query: nn.Linear, reader: Reader):
        super().__init__(block, keep, query, reader)
        self.conv_proj_k, self.conv_proj_v = block.attn.conv_proj_k, block.attn.conv_proj_v

    def forward(self, x: Tensor, tape: Tape | None = None, *where: object) -> Tensor:
        """[b 1+n d], the tape and the grid of the n to [b 1+n d], of which n are as they came.

        The caller makes a map of them, which nobody reads.
        """
        return torch.cat([super().forward(x, tape, *where), x[:, self.keep :]], dim=1)

    def sources(self, x: Tensor, *where: object) -> tuple[Tensor, Tensor]:
        """Normed tokens [b 1+n d] to the convolved ones of keys and of values."""
        (grid,) = where
        return self.conv_proj_k(x, grid), self.conv_proj_v(x, grid)


class LastPyramidBlock(LastBlock):
    """`LastBlock` for PVT, whose caller makes a map of the other tokens too."""

    def forward(self, x: Tensor, tape: Tape | None = None, *where: object) -> Tensor:
        """[b 1+n d] to the same shape; n are as they came."""
        return torch.cat([super().forward(x, tape, *where), x[:, self.keep :]], dim=1)


class PoolByQuery(nn.Module):
    """Attention pooling whose one query, being learned, is a constant among the tokens."""

    def __init__(self, pool: AttentionPool):
        super().__init__()
        key, value = _halves(pool.kv, 2)
        self.reader = Reader(key, value, pool.heads)
        with torch.no_grad():
            latent = pool.q(pool.latent).unflatten(-1, (pool.heads, -1)).transpose(1, 2)
            query = (latent @ self.reader.key * pool.scale).flatten(1, 2)
        self.query = nn.Parameter(query)  # [1 h d]
        self.proj, self.norm, self.mlp = pool.proj, pool.norm, pool.mlp

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """[b n d] to [b d]; records ``attention`` [b h 1 n]."""
        b = x.shape[0]
        weights = (x @ self.query[0].T).softmax(dim=1).transpose(1, 2)  # [b h n]
        record(tape, "attention", weights[:, :, None])
        means = weights @ x
        mixed = (means[:, :, None] @ self.reader.value).reshape(b, 1, -1)
        pooled = self.proj(mixed if self.reader.bias is None else mixed + self.reader.bias)
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]


def last_block(model: nn.Module) -> None:
    """The last block for the class token only, where nothing else of it is read.

    A distilled model reads two tokens. Relative positions and averages keep the whole block.
    """
    if isinstance(model, VisionTransformer):
        c = model.config
        if c.pool == "map":
            setattr(model, "attn_pool", PoolByQuery(model.attn_pool))  # noqa: B010
        elif c.pool == "token" and c.position != "relative":
            _replace_last(model.blocks, 1 + c.distilled)
    elif isinstance(model, T2TViT):
        _replace_last(model.blocks, 1)
    elif isinstance(model, CvT) and model.config.pool == "token":
        _replace_last(model.stages[-1].blocks, 1)
    elif isinstance(model, PyramidVisionTransformer):
        _replace_last(model.blocks_of(len(model.config.depths) - 1), 1)


def _replace_last(blocks: nn.ModuleList, keep: int) -> None:
    block = blocks[-1]
    if isinstance(block, Block):
        assert isinstance(block.attn, Attention)
        query, key, value = _halves(block.attn.qkv, 3)
        blocks[-1] = LastBlock(block, keep, query, Reader(key, value, block.attn.heads))
    elif isinstance(block, PyramidBlock):
        attn = block.attn
        if isinstance(attn, ReducedAttention):
            query, (key, value) = attn.q, _halves(attn.kv, 2)
        else:
            query, key, value = _halves(attn.qkv, 3)
        blocks[-1] = LastPyramidBlock(block, keep, query, Reader(key, value, attn.heads))
    elif isinstance(block, CvTBlock):
        attn = block.attn
        if isinstance(attn, ConvolutionalAttention):
            layers, kind = (attn.proj_q, attn.proj_k, attn.proj_v), LastConvolutionalBlock
            if not attn.convolved:
                kind = LastPyramidBlock
        else:
            layers, kind = _halves(attn.qkv, 3), LastPyramidBlock
        query, key, value = layers
        blocks[-1] = kind(block, keep, query, Reader(key, value, attn.heads))


def _halves(layer: nn.Linear, parts: int) -> list[nn.Linear]:
    """A layer of stacked outputs as its parts."""
    weights = layer.weight.detach().chunk(parts)
    biases = [None] * parts if layer.bias is None else layer.bias.detach().chunk(parts)
    made = []
    for weight, bias in zip(weights, biases, strict=True):
        part = nn.Linear(weight.shape[1], len(weight), bias=bias is not None, dtype=weight.dtype)
        part.weight = nn.Parameter(weight.clone())
        if bias is not None:
            part.bias = nn.Parameter(bias.clone())
        made.append(part)
    return made
