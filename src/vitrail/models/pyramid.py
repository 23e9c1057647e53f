"""What PVT and PVT v2 share: a pyramid of stages whose attention is reduced.

Keys and values come from a reduced map, so that attention is paid between n tokens and m reduced
ones: a strided convolution reduces it, or in PVT v2's linear form a pooling to 7x7 whatever the
picture. There are two eps: one for the norms of blocks and stages, one for those inside embeddings
and reductions, where the authors left torch's default.
"""

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vitrail.kit.errors import Error
from vitrail.models.base import FeatureMaps, ImageClassifier, Size, check_fields, height_width
from vitrail.models.parts import ACTIVATIONS, DropPath, Mlp, ScaledAttention, attend
from vitrail.models.stages import drop_path_rates, stage_strides
from vitrail.models.tape import Tape, inside, record

Grid = tuple[int, int]
POOLED = 7  # the side to which linear attention pools keys and values
CHOICES = {"activation": tuple(ACTIVATIONS), "attention_scale": ("head", "width")}


@dataclass(frozen=True, kw_only=True)
class PyramidConfig:
    """What both pyramids have.

    Args:
        depths, widths, heads, mlp_ratios, reductions: per stage; ``reductions`` is by how much a
            side of the map shrinks before keys and values are made (the papers' R).
        num_classes: k; 0 for no head.
        image_size: pixels, or (height, width), that the position tables are made for.
        dropout: after the positions, the attention's projection and both layers of the MLP.
        drop_path: stochastic depth, the last block's rate, growing from 0 along all blocks.
        activation, attention_scale: as in the plain ViT.
        norm_eps: of the norms in blocks and after stages.
        embed_norm_eps: of the norms after patch embeddings and after reductions.
    """

    depths: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 320, 512)
    heads: tuple[int, ...] = (1, 2, 5, 8)
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    reductions: tuple[int, ...] = (8, 4, 2, 1)
    num_classes: int = 1000
    image_size: Size = 224
    in_channels: int = 3
    qkv_bias: bool = True
    dropout: float = 0.0
    drop_path: float = 0.0
    activation: str = "gelu"
    attention_scale: str = "head"
    norm_eps: float = 1e-6
    embed_norm_eps: float = 1e-5

    def __post_init__(self):
        for name in ("depths", "widths", "heads", "mlp_ratios", "reductions"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            if len(values) != len(self.depths) or not values:
                raise Error(f"{name} has {len(values)} stages and depths has {len(self.depths)}")
            if not all(isinstance(v, int) and v > 0 for v in values):
                raise Error(f"{name} are whole numbers from 1, not {values}")
        check_fields(self, CHOICES, shares=("dropout", "drop_path"))
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % heads:
                raise Error(f"{heads} heads do not divide a width of {width}")
        self.grids(height_width(self.image_size))

    @property
    def strides(self) -> list[int]:
        """Each stage's stride in input pixels: 4, 8, 16, 32."""
        return stage_strides(self.depths)

    def grids(self, size: tuple[int, int]) -> list[Grid]:
        """Each stage's (rows, columns) for pictures of a size (height, width).

        Raises:
            Error: a stage's map would be smaller than its reduction.
        """
        need = max(
            self._least(stride, reduction)
            for stride, reduction in zip(self.strides, self.reductions, strict=True)
        )
        if min(size) < need:
            raise Error(f"image size {size[0]}x{size[1]} is too small: use at least {need}x{need}")
        return [(self._side(size[0], s), self._side(size[1], s)) for s in self.strides]

    def _side(self, pixels: int, stride: int) -> int:
        """How many patches fit: what is left over at the border is not seen."""
        return pixels // stride

    def _least(self, stride: int, reduction: int) -> int:
        return stride * reduction


class ReducedAttention(ScaledAttention):
    """Attention whose keys and values come from a reduced map ("spatial reduction").

    Args:
        width, heads: d and h.
        reduction: kernel and stride of the convolution that reduces; 1 for none.
        qkv_bias: whether the q, k and v projections have biases.
        linear: pool to 7x7 instead, then convolution, norm and GELU.
        dropout: after the output projection.
    """

    def __init__(
        self, width: int, heads: int, reduction: int, qkv_bias: bool, linear: bool, dropout: float
    ):
        super().__init__(width, heads, "head")
        self.linear = linear
        self.q = nn.Linear(width, width, bias=qkv_bias)
        self.kv = nn.Linear(width, 2 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)
        self.reduces = linear or reduction > 1
        if self.reduces:
            kernel = 1 if linear else reduction
            self.sr = nn.Conv2d(width, width, kernel, kernel)
            self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, tape: Tape | None, grid: Grid) -> Tensor:
        """[b n d] on a grid to [b n d]; records ``attention`` [b h n m]."""
        b, n, d = x.shape
        seen = self.reduced(x, grid) if self.reduces else x
        query = self.q(x).reshape(b, n, self.heads, -1).transpose(1, 2)
        pairs = self.kv(seen).reshape(b, seen.shape[1], 2, self.heads, d // self.heads)
        key, value = pairs.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attend(query, key, value, self.scale, tape)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).reshape(b, n, d)))

    def reduced(self, x: Tensor, grid: Grid) -> Tensor:
        """[b n d] on a grid to the tokens that keys and values are made of, [b m d]."""
        picture = to_map(x, grid)
        if self.linear:
            picture = F.adaptive_avg_pool2d(picture, POOLED)
        x = self.norm(to_tokens(self.sr(picture)))
        return F.gelu(x) if self.linear else x


class ConvMlp(nn.Module):
    """PVT v2's MLP: linear, depthwise 3x3 convolution, activation, linear.

    With ``linear`` attention a ReLU stands before the convolution, as the authors have it.
    """

    def __init__(self, width: int, hidden: int, linear: bool, dropout: float):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.relu = nn.ReLU() if linear else nn.Identity()
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act: nn.Module = nn.GELU()
        self.drop1 = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden, width)
        self.drop2 = nn.Dropout(dropout)

    def forward(self, x: Tensor, tape: Tape | None, grid: Grid) -> Tensor:
        """[b n d] on a grid to [b n d]; records ``hidden`` [b n m]."""
        picture = self.dwconv(to_map(self.relu(self.fc1(x)), grid))
        hidden = record(tape, "hidden", self.act(to_tokens(picture)))
        return self.drop2(self.fc2(self.drop1(hidden)))


class PyramidBlock(nn.Module):
    """A pre-norm block; ``convolved`` takes PVT v2's MLP instead of the plain one."""

    def __init__(
        self, c: PyramidConfig, stage: int, drop_path: float, *, convolved: bool, linear: bool
    ):
        super().__init__()
        width, hidden = c.widths[stage], c.widths[stage] * c.mlp_ratios[stage]
        self.norm1 = nn.LayerNorm(width)
        self.attn = ReducedAttention(
            width, c.heads[stage], c.reductions[stage], c.qkv_bias, linear, c.dropout
        )
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = (
            ConvMlp(width, hidden, linear, c.dropout)
            if convolved
            else Mlp(width, hidden, c.activation, c.dropout)
        )
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor, tape: Tape | None, grid: Grid) -> Tensor:
        """[b n d] on a grid to [b n d]; records ``attention``, ``mlp.hidden`` and ``out``."""
        whole = tape is not None
        x = self.drop_path1.around(
            x, lambda kept: self.attn(self.norm1(kept), tape, grid), whole=whole
        )
        where = (inside(tape, "mlp"), *[grid] * isinstance(self.mlp, ConvMlp))
        x = self.drop_path2.around(x, lambda kept: self.mlp(self.norm2(kept), *where), whole=whole)
        return record(tape, "out", x)


class PatchEmbed(nn.Module):
    """A strided convolution and a norm, from a map to tokens.

    Args:
        overlap: PVT v2's: the kernel is twice the stride less 1, and pads; else the stride.
    """

    def __init__(self, in_channels: int, width: int, stride: int, *, overlap: bool):
        super().__init__()
        kernel = 2 * stride - 1 if overlap else stride
        self.proj = nn.Conv2d(in_channels, width, kernel, stride, kernel // 2 if overlap else 0)
        self.norm = nn.LayerNorm(width)

    def forward(self, picture: Tensor) -> Tensor:
        """[b c h w] to [b n d]."""
        # contiguous: faster than a convolution of strided tokens, and its weights are not copied
        return self.norm(to_tokens(self.proj(picture.contiguous())))


class Pyramid(ImageClassifier):
    """What both models do: stage after stage, from a map to tokens and back."""

    config: Any  # a PyramidConfig of the subclass's own kind
    convolved: ClassVar[bool]

    def __init__(self, config: PyramidConfig):
        super().__init__(config)
        self.layers = sum(config.depths) + 1

    def apply_numerics(self) -> None:
        """Make the built parts compute as the config says: eps, activation, attention scale."""
        c = self.config
        for name, part in self.named_modules():
            if isinstance(part, PatchEmbed):
                part.norm.eps = c.embed_norm_eps
            elif isinstance(part, ReducedAttention):
                part.rescale(c.attention_scale)
                if part.reduces:
                    part.norm.eps = c.embed_norm_eps
            elif isinstance(part, (Mlp, ConvMlp)):
                part.act = ACTIVATIONS[c.activation]()
            elif isinstance(part, nn.LayerNorm) and not re.search(r"embed|downsample|attn", name):
                part.eps = c.norm_eps

    def features(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        """Images float [b c h w] to [b d], what the head sees."""
        return record(tape, "pooled", self.pool(self.encode(images, tape, last=True)[0], tape))

    def encode(
        self, images: Tensor, tape: Tape | None = None, last: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Images float [b c h w] to the last stage's tokens [b n d] and every stage's map.

        With ``last`` there is the last map alone.
        """
        x, maps, picture = images, [], images
        for stage, grid in enumerate(self.config.grids((images.shape[-2], images.shape[-1]))):
            x = self.embed(stage, picture, grid, tape)
            for i, block in enumerate(self.blocks_of(stage)):
                x = self.through(block, x, inside(tape, f"stages.{stage}.blocks.{i}"), grid)
            x = self.finish(stage, x)
            picture = to_map(x[:, x.shape[1] - grid[0] * grid[1] :], grid)
            maps = [picture] if last else [*maps, picture]
        return x, maps

    def feature_maps(self, images: Tensor) -> FeatureMaps:
        """Images float [b c h w] to a map [b d rows columns] a stage, strides 4, 8, 16, 32.

        As in the authors' detection code, but that PVT's last stage keeps its class token while
        it computes: PVT's maps are not normed, PVT v2's are.
        """
        return FeatureMaps(self.encode(images)[1], self.config.strides)

    def depth_of(self, parameter: str) -> int:
        """0 for the first embedding, 1.. for the blocks of all stages, sum(depths)+1 for the head.

        A later stage's embedding lies with its first block, a stage's norm with its last.
        """
        found = self.place(parameter)
        if found is None:
            return self.layers
        stage, block = found
        before = sum(self.config.depths[:stage])
        return 0 if stage == 0 and block < 0 else before + 1 + max(block, 0)

    def place(self, parameter: str) -> tuple[int, int] | None:
        """A parameter's stage and block (-1: the embedding); None beyond the last stage."""
        raise NotImplementedError

    def blocks_of(self, stage: int) -> nn.ModuleList:
        """The blocks of a stage."""
        raise NotImplementedError

    def embed(self, stage: int, picture: Tensor, grid: Grid, tape: Tape | None) -> Tensor:
        """The map [b c h w] that a stage begins with to its tokens [b n d]."""
        raise NotImplementedError

    def finish(self, stage: int, x: Tensor) -> Tensor:
        """What is done to a stage's tokens after its blocks."""
        return x

    def pool(self, x: Tensor, tape: Tape | None) -> Tensor:
        """The last stage's tokens [b n d] to [b d]."""
        raise NotImplementedError

    def _blocks(self, stage: int, linear: bool = False) -> nn.ModuleList:
        c = self.config
        rates = drop_path_rates(c.drop_path, c.depths)[stage]
        return nn.ModuleList(
            PyramidBlock(c, stage, rate, convolved=self.convolved, linear=linear) for rate in rates
        )

    def _embedding(self, stage: int) -> PatchEmbed:
        c = self.config
        channels = c.widths[stage - 1] if stage else c.in_channels
        stride = 2 if stage else 4
        return PatchEmbed(channels, c.widths[stage], stride, overlap=self.convolved)

    def _head(self) -> nn.Module:
        c = self.config
        return nn.Linear(c.widths[-1], c.num_classes) if c.num_classes else nn.Identity()


def to_map(x: Tensor, grid: Grid) -> Tensor:
    """Tokens [b n d] to a map [b d rows columns]."""
    return rearrange(x, "b (h w) d -> b d h w", h=grid[0])


def to_tokens(picture: Tensor) -> Tensor:
    """A map [b d rows columns] to tokens [b n d]."""
    return rearrange(picture, "b d h w -> b (h w) d")


def reset_linear_and_norm(model: nn.Module) -> None:
    """Linear layers normal with 0.02 and without bias, norms as they begin: both authors' ways."""
    for part in model.modules():
        if isinstance(part, nn.LayerNorm):
            part.reset_parameters()
        elif isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
