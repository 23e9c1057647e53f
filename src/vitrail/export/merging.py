"""Token merging (Bolya et al., "Token Merging: Your ViT But Faster", 2023, arXiv 2210.09461).

After each block's attention the r pairs of patches whose keys are most alike become one token each,
their mean by size; the MLP and all blocks after see fewer tokens, and attention counts a token as
often as it has patches in it (section 3, "proportional attention"). Pairs are found as the authors
do (facebookresearch/ToMe, tome/merge.py): every second token may go, each into the one of the
others that it resembles most. Class, distillation and register tokens take no part.
This is not exact: it is an option of the export with a line of its own in the gate.

What is special here: shapes are fixed but for the batch, and what is picked and summed is picked
and summed by products with matrices of 0 and 1, small beside a block, which every runtime has and
computes exactly, where scattering is slow or missing.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.export.fold import Folded, FoldedTransformer, fold
from vitrail.export.reading import LastBlock, Reader
from vitrail.kit.errors import Error
from vitrail.models.base import ImageClassifier
from vitrail.models.parts import Attention, Block
from vitrail.models.tape import Tape
from vitrail.models.vit import VisionTransformer

POOLS = ("token", "mean", "token_mean")


def fold_merging(
    model: ImageClassifier, tokens: int, size: int | tuple[int, int] | None = None
) -> Folded | FoldedTransformer:
    """`fold`, with so many tokens merged in each block; with none it is `fold` itself.

    Args:
        model: a plain ViT or hybrid that pools by class token or mean, its positions added once.
        tokens: r of the paper. A block merges at most half of the patches that it has.
        size: as for `fold`.

    Raises:
        Error: a model whose tokens cannot be merged, or more than half of its patches at once.
    """
    if tokens == 0:
        return fold(model, size)
    if not isinstance(model, VisionTransformer):
        raise Error(
            f"tokens can be merged in plain ViTs and hybrids only, not in a {type(model).__name__}"
        )
    c = model.config
    if c.pool not in POOLS:
        raise Error(f"tokens cannot be merged where the pooling is {c.pool!r}")
    if c.position == "relative" or c.position_at != "input":
        raise Error(
            "tokens cannot be merged where every layer adds positions: merged ones have none"
        )
    make: Callable[..., FoldedTransformer] = partial(MergingTransformer, tokens=tokens)
    return fold(model, size, make)


class MergingTransformer(FoldedTransformer):
    """A folded plain ViT whose blocks merge tokens.

    Attributes:
        merged: how many tokens each block merges.
        left: how many patches there are at the end.
    """

    def __init__(
        self,
        model: VisionTransformer,
        size: tuple[int, int],
        pixels: tuple[Tensor, Tensor],
        tokens: int,
    ):
        super().__init__(model, size, pixels)
        self.patch_count = self.left = self.grid[0] * self.grid[1]
        if not 0 < tokens <= self.left // 2:
            raise Error(
                f"a block can merge from 0 to half of the {self.left} patches of this model, not "
                f"{tokens} tokens"
            )
        self.merged: list[int] = []
        for block in self.blocks:
            # The last block, where it is computed for the class token only, has none to merge.
            self.merged.append(min(tokens, self.left // 2) if isinstance(block, Block) else 0)
            self.left -= self.merged[-1]

    def forward(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        """uint8 [b h w 3] to logits [b k]; records nothing, for merged tokens have no places."""
        x = self.patches(images) + self.table
        if self.prefix:
            x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), x], dim=1)
        x, sizes = self.norm_pre(x), None
        for block, count in zip(self.blocks, self.merged, strict=True):
            x, sizes = self.through(block, x, sizes, count)
        x = self.norm(x)
        if sizes is not None and self.pool != "token":  # a mean over patches, not over tokens
            share = sizes * (self.left / self.patch_count)
            x = torch.cat([x[:, : self.prefix], x[:, self.prefix :] * share], dim=1)
        return self.read(x)

    def through(
        self, block: nn.Module, x: Tensor, sizes: Tensor | None, count: int
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens [b prefix+n d] and sizes of the n [b n 1] (None: all 1) through a block."""
        # On the logits of attention: a token of s patches counts as s tokens.
        bias = None if sizes is None else functional.pad(sizes.mT.log(), (self.prefix, 0))
        if isinstance(block, LastBlock):
            return last(block, x, bias), sizes
        assert isinstance(block, Block)
        mixed, keys = attended(block.attn, block.norm1(x), bias)
        x = x + block.ls1(mixed)
        if count:
            n = x.shape[1] - self.prefix
            if sizes is None:
                sizes = torch.ones_like(x[:, :n, :1])
            patches, sizes = merge(
                x[:, self.prefix :], sizes, keys[:, self.prefix :], count, self.prefix % 2
            )
            x = torch.cat([x[:, : self.prefix], patches], dim=1)
        return x + block.ls2(block.mlp(block.norm2(x))), sizes


def attended(attn: Attention, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Normed tokens [b n d] to what attention makes of them, and the heads' mean keys [b n d/h].

    ``bias`` [b 1 n] is added to the logits.
    """
    query, key, value = (
        attn.qkv(x).unflatten(-1, (3, attn.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    )
    mask = None if bias is None else bias[:, None]
    mixed = functional.scaled_dot_product_attention(query, key, value, mask, scale=attn.scale)
    return attn.proj(mixed.transpose(1, 2).flatten(2)), key.mean(1)


def last(block: LastBlock, x: Tensor, bias: Tensor | None) -> Tensor:
    """`LastBlock` with a bias [b 1 n] on the logits of attention: [b n d] to [b keep d]."""
    normed = block.norm1(x)
    mixed = block.proj(_read(block.reader, block.query(normed[:, : block.keep]), normed, bias))
    x = x[:, : block.keep] + block.ls1(mixed)
    return x + block.ls2(block.mlp(block.norm2(x)))


def _read(reader: Reader, query: Tensor, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """`Reader` of queries [b k d] over tokens [b n d], to [b k d]."""
    b, k, _ = query.shape
    split = query.unflatten(-1, (reader.heads, -1)).transpose(1, 2)
    logits = (split @ reader.key).flatten(1, 2) @ tokens.mT  # [b h*k n]
    weights = (logits if bias is None else logits + bias).softmax(dim=-1)
    means = (weights @ tokens).reshape(b, reader.heads, k, -1)
    mixed = (means @ reader.value).transpose(1, 2).flatten(2)
    return mixed if reader.bias is None else mixed + reader.bias


def merge(
    x: Tensor, sizes: Tensor, keys: Tensor, count: int, first: int = 0
) -> tuple[Tensor, Tensor]:
    """Merge the ``count`` pairs of tokens whose keys are most alike.

    Args:
        x: [b n d].
        sizes: patches in each token, [b n 1].
        keys: what likeness is measured on (its cosine), [b n e].
        count: r, at most n // 2.
        first: 0 or 1: the first of the tokens that may go, which are every second one.

    Returns:
        Tokens [b n-r d] and their sizes [b n-r 1]: first those that might have gone and did not,
        in their order, then the others.
    """
    going, staying = slice(first, None, 2), slice(1 - first, None, 2)
    alike = keys / keys.norm(dim=-1, keepdim=True)
    likeness, partner = (alike[:, going] @ alike[:, staying].mT).max(dim=-1)  # [b going]
    chosen = likeness.topk(count, dim=-1).indices  # [b r]
    picked = _places(chosen, likeness.shape[1], x.dtype)  # [b r going]
    onto = _places(partner.gather(1, chosen), keys[:, staying].shape[1], x.dtype)
    # In ascending order: those that are gone come last, behind every other place.
    order = torch.arange(likeness.shape[1], device=x.device) + picked.sum(1) * (2 * keys.shape[1])
    kept = order.topk(likeness.shape[1] - count, dim=-1, largest=False, sorted=True).indices
    kept = _places(kept, likeness.shape[1], x.dtype)
    x_going, x_staying = x[:, going], x[:, staying]
    size_going, size_staying = sizes[:, going], sizes[:, staying]
    grown = size_staying + onto.mT @ (picked @ size_going)
    moved = onto.mT @ (picked @ (x_going * size_going))
    merged = (x_staying * size_staying + moved) / grown
    return (
        torch.cat([kept @ x_going, merged], dim=1),
        torch.cat([kept @ size_going, grown], dim=1),
    )


def _places(indices: Tensor, among: int, dtype: torch.dtype) -> Tensor:
    """Indices [b r] as rows of 0 and one 1, [b r among]."""
    return (indices[:, :, None] == torch.arange(among, device=indices.device)).to(dtype)
