"""CvT: Introducing Convolutions to Vision Transformers (Wu et al., 2021).

Stages of fewer and wider tokens: each begins with an overlapping convolution, and in each block
queries, keys and values come from depthwise convolutions, keys and values with a stride, so that
attention is [n queries, fewer keys]. The class token joins in the last stage and is not convolved.
There are no positions. Attention is scaled by the full width, not by that of a head, and the
activation is the quick GELU: the authors' files were trained so (microsoft/CvT
lib/models/cls_cvt.py), and names are theirs. What the paper's ablations and its architecture
search vary is in the config: the embedding, positions, linear projections, and a key-value stride
and an MLP ratio of its own for every block.
"""

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.kit.errors import Error
from vitrail.kit.grid import RESIZES, resize_table
from vitrail.models.base import FeatureMaps, ImageClassifier, Size, check_fields, height_width
from vitrail.models.parts import ACTIVATIONS, DropPath, Mlp, ScaledAttention, attend
from vitrail.models.tape import Tape, inside, record

Grid = tuple[int, int]

# kernel, stride and padding of the first stage's embedding, and of the others'
EMBEDDINGS = {"convolution": ((7, 4, 2), (3, 2, 1)), "patch": ((4, 4, 0), (2, 2, 0))}
CHOICES = {
    "embedding": tuple(EMBEDDINGS),
    "position": ("none", "every", "first", "last"),
    "position_resize": tuple(RESIZES),
    "pool": ("token", "mean"),
    "activation": tuple(ACTIVATIONS),
    "attention_scale": ("head", "width"),
}
PROJECTIONS = ("convolution", "linear")


@dataclass(frozen=True, kw_only=True)
class CvTConfig:
    """A CvT, whole: with the weights it is the model. The defaults are CvT-13.

    Args:
        depths, widths, heads: blocks, d and h of each stage; as many stages as there are.
        mlp_ratios: the MLP's inner width over d: one number, or one for each stage, or in a
            stage's place one for each of its blocks.
        kv_strides: the stride of the convolutions of keys and values, in the same form.
        projections: ``convolution`` or ``linear`` (no convolution, and no stride), one or one
            for each stage.
        num_classes: k; 0 for no head.
        image_size: pixels, or (height, width); any.
        embedding: ``convolution`` overlaps (7 pixels every 4, then 3 every 2); ``patch`` does not
            (4 every 4, then 2 every 2), as in the paper's ablation.
        position: which stages add a learned table: ``none`` (the paper), ``every``, ``first`` or
            ``last``.
        position_resize: how the tables are fitted to another grid, one of `kit.grid.RESIZES`.
        pool: ``token`` reads the last stage's class token; ``mean`` has none and averages.
        drop_path: stochastic depth of the last block of the last stage; it grows from 0 along
            that stage, and the other stages have none.
        dropout: after the embedding, the attention's projection and both layers of the MLP.
        activation, norm_eps, attention_scale: the numerics, which differ between publishers.
    """

    depths: tuple = (1, 2, 10)
    widths: tuple = (64, 192, 384)
    heads: tuple = (1, 3, 6)
    mlp_ratios: float | tuple = 4.0
    kv_strides: int | tuple = 2
    projections: str | tuple = "convolution"
    num_classes: int = 1000
    image_size: Size = 224
    in_channels: int = 3
    embedding: str = "convolution"
    position: str = "none"
    position_resize: str = "bilinear_corners"
    pool: str = "token"
    qkv_bias: bool = True
    drop_path: float = 0.0
    dropout: float = 0.0
    activation: str = "quick_gelu"
    norm_eps: float = 1e-5
    attention_scale: str = "width"

    def __post_init__(self):
        for name in ("depths", "widths", "heads", "mlp_ratios", "kv_strides", "projections"):
            object.__setattr__(self, name, _nested(getattr(self, name)))
        check_fields(self, CHOICES, shares=("dropout", "drop_path"))
        self._check_stages()
        self.grids()

    def _check_stages(self) -> None:
        stages = len(self.depths)
        for name in ("depths", "widths", "heads"):
            values = getattr(self, name)
            if not values or len(values) != stages:
                raise Error(f"{name} has {len(values)} stages and depths {stages}")
            if not all(isinstance(value, int) and value > 0 for value in values):
                raise Error(f"{name} holds whole numbers from 1 up, not {values}")
        for width, heads in zip(self.widths, self.heads, strict=True):
            if width % heads:
                raise Error(f"{heads} heads do not divide a width of {width}")
        for name in ("mlp_ratios", "kv_strides", "projections"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != stages:
                raise Error(f"{name} has {len(value)} stages and depths {stages}")
        for stage, depth in enumerate(self.depths):
            for name in ("mlp_ratios", "kv_strides"):
                value = self.of_stage(name, stage)
                if isinstance(value, tuple) and len(value) != depth:
                    raise Error(f"{name} of stage {stage} has {len(value)} blocks, not {depth}")
            if self.of_stage("projections", stage) not in PROJECTIONS:
                raise Error(f"projections are {' or '.join(PROJECTIONS)}, not {self.projections!r}")
            for block in range(depth):
                stride = self.of_block("kv_strides", stage, block)
                if not isinstance(stride, int) or stride < 1:
                    raise Error(f"kv_strides are whole numbers from 1 up, not {stride!r}")
                if self.hidden(stage, block) < 1:
                    raise Error(f"mlp_ratios leave nothing of a width of {self.widths[stage]}")

    def of_stage(self, name: str, stage: int) -> Any:
        """What a stage has of a field that may be one for all, or one for each."""
        value = getattr(self, name)
        return value[stage] if isinstance(value, tuple) else value

    def of_block(self, name: str, stage: int, block: int) -> Any:
        """What a block has of a field that may be one for all, for each stage, or for each."""
        value = self.of_stage(name, stage)
        return value[block] if isinstance(value, tuple) else value

    def hidden(self, stage: int, block: int) -> int:
        """The inner width of a block's MLP."""
        return int(self.widths[stage] * self.of_block("mlp_ratios", stage, block))

    def kernel(self, stage: int) -> tuple[int, int, int]:
        """Kernel, stride and padding of a stage's embedding."""
        return EMBEDDINGS[self.embedding][min(stage, 1)]

    def prefix(self, stage: int) -> int:
        """How many tokens stand before a stage's map: the last stage's class token."""
        return int(self.pool == "token" and stage == len(self.depths) - 1)

    def has_position(self, stage: int) -> bool:
        """Whether a stage adds a table."""
        last = len(self.depths) - 1
        return {"every": True, "first": stage == 0, "last": stage == last}.get(self.position, False)

    def grids(self, size: Grid | None = None) -> list[Grid]:
        """(rows, columns) of each stage's map for pictures of a size, ``image_size`` by default.

        Raises:
            Error: the pictures are too small to leave anything.
        """
        size = height_width(self.image_size) if size is None else size
        grids, sides = [], list(size)
        for stage in range(len(self.depths)):
            kernel, stride, padding = self.kernel(stage)
            sides = [(side + 2 * padding - kernel) // stride + 1 for side in sides]
            if min(sides) < 1:
                raise Error(f"pictures of {size[0]}x{size[1]} are too small for {stage + 1} stages")
            grids.append((sides[0], sides[1]))
        return grids


def _nested(value: Any) -> Any:
    """Lists as tuples, at any depth."""
    return tuple(map(_nested, value)) if isinstance(value, (list, tuple)) else value


class ConvolutionalEmbedding(nn.Module):
    """A convolution to fewer and wider tokens, then LayerNorm."""

    def __init__(self, channels: int, width: int, kernel: tuple[int, int, int], norm_eps: float):
        super().__init__()
        self.proj = nn.Conv2d(channels, width, *kernel)
        self.norm = nn.LayerNorm(width, eps=norm_eps)

    def forward(self, picture: Tensor) -> tuple[Tensor, Grid]:
        """[b c h w] to [b n d], and the grid of the n."""
        picture = self.proj(picture.contiguous())  # faster than a convolution of strided tokens
        grid = (picture.shape[-2], picture.shape[-1])
        return self.norm(_tokens(picture)), grid


class DepthwiseProjection(nn.Module):
    """A depthwise convolution of three by three, then batch norm."""

    def __init__(self, width: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """[b prefix+n d] to [b prefix+m d]; what stands before the grid's n passes as it is."""
        prefix = x.shape[1] - grid[0] * grid[1]
        tokens = _tokens(self.bn(self.conv(_picture(x, grid))))
        return torch.cat([x[:, :prefix], tokens], dim=1) if prefix else tokens


class ConvolutionalAttention(ScaledAttention):
    """Attention whose queries, keys and values are convolved before they are projected.

    Args:
        width, heads, scale: as for `ScaledAttention`.
        kv_stride: of the convolutions of keys and values; 0 for no convolutions at all.
    """

    def __init__(
        self, width: int, heads: int, scale: str, kv_stride: int, qkv_bias: bool, dropout: float
    ):
        super().__init__(width, heads, scale)
        if kv_stride:
            self.conv_proj_q = DepthwiseProjection(width, 1)
            self.conv_proj_k = DepthwiseProjection(width, kv_stride)
            self.conv_proj_v = DepthwiseProjection(width, kv_stride)
        self.convolved = kv_stride > 0
        self.proj_q = nn.Linear(width, width, bias=qkv_bias)
        self.proj_k = nn.Linear(width, width, bias=qkv_bias)
        self.proj_v = nn.Linear(width, width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.proj_drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, grid: Grid, tape: Tape | None = None) -> Tensor:
        """[b n d] to [b n d]; records ``attention`` [b h n m]."""
        query = key = value = x
        if self.convolved:
            query, key = self.conv_proj_q(x, grid), self.conv_proj_k(x, grid)
            value = self.conv_proj_v(x, grid)
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [b h n e]
            for projected in (self.proj_q(query), self.proj_k(key), self.proj_v(value))
        )
        mixed = attend(query, key, value, self.scale, tape)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


class CvTBlock(nn.Module):
    """A pre-norm Transformer block with convolutional attention; block ``block`` of ``stage``."""

    def __init__(self, config: CvTConfig, stage: int, block: int, drop_path: float):
        super().__init__()
        c, width = config, config.widths[stage]
        convolved = c.of_stage("projections", stage) == "convolution"
        stride = c.of_block("kv_strides", stage, block) if convolved else 0
        self.norm1 = nn.LayerNorm(width, eps=c.norm_eps)
        self.attn = ConvolutionalAttention(
            width, c.heads[stage], c.attention_scale, stride, c.qkv_bias, c.dropout
        )
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width, eps=c.norm_eps)
        self.mlp = Mlp(width, c.hidden(stage, block), c.activation, c.dropout)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor, tape: Tape | None, grid: Grid) -> Tensor:
        """[b n d] to [b n d]; records ``attention``, ``mlp.hidden`` and ``out``."""
        # Batch norm in the projections: its statistics are those of all samples, dropped or not.
        whole = tape is not None
        x = self.drop_path1.around(
            x,
            lambda kept: self.attn(self.norm1(kept), grid, tape),
            whole=whole or self.attn.convolved,
        )
        x = self.drop_path2.around(
            x, lambda kept: self.mlp(self.norm2(kept), inside(tape, "mlp")), whole=whole
        )
        return record(tape, "out", x)


class Stage(nn.Module):
    """What a stage holds; the model runs it."""

    def __init__(self, config: CvTConfig, stage: int):
        super().__init__()
        c, width = config, config.widths[stage]
        channels = c.widths[stage - 1] if stage else c.in_channels
        self.patch_embed = ConvolutionalEmbedding(channels, width, c.kernel(stage), c.norm_eps)
        if c.prefix(stage):
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if c.has_position(stage):
            rows = c.prefix(stage) + prod(c.grids()[stage])
            self.pos_embed = nn.Parameter(torch.zeros(1, rows, width))
        self.pos_drop = nn.Dropout(c.dropout)
        depth = c.depths[stage]
        last = c.drop_path if stage == len(c.depths) - 1 else 0.0
        rates = [last * block / max(1, depth - 1) for block in range(depth)]
        self.blocks = nn.ModuleList(CvTBlock(c, stage, j, rate) for j, rate in enumerate(rates))


class CvT(ImageClassifier):
    """A CvT. See `CvTConfig` for the choices and the module's head for what is special.

    Records, per forward: ``stages.{s}.patches`` [b n d] (before positions; the first also as
    ``patches``), ``stages.{s}.blocks.{j}.attention`` [b h t m], ``….mlp.hidden``, ``….out``
    [b t d], ``normed``, ``pooled`` [b d], ``logits`` [b k].
    """

    config: CvTConfig

    def __init__(self, config: CvTConfig):
        super().__init__(config)
        for stage in range(len(config.depths)):
            self.add_module(f"stage{stage}", Stage(config, stage))
        width = config.widths[-1]
        self.norm = nn.LayerNorm(width, eps=config.norm_eps)
        self.head = nn.Linear(width, config.num_classes) if config.num_classes else nn.Identity()
        self.layers = sum(config.depths) + 1
        self.reset_parameters()

    @property
    def stages(self) -> list[Stage]:
        """The stages in order."""
        return [part for part in self.children() if isinstance(part, Stage)]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as the authors do: convolutions and the head's bias as torch does."""
        for part in self.modules():
            if isinstance(part, (nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d, nn.Linear)):
                part.reset_parameters()
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None and part is not self.head:
                    nn.init.zeros_(part.bias)
        for name, parameter in self.named_parameters():
            if name.endswith(("cls_token", "pos_embed")):
                nn.init.trunc_normal_(parameter, std=0.02)

    def features(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        """Images float [b c h w] to [b d], what the head sees."""
        x, _ = self.encode(images, tape, last=True)[-1]
        normed = record(tape, "normed", self.norm(x))
        pooled = normed[:, 0] if self.config.pool == "token" else normed.mean(dim=1)
        return record(tape, "pooled", pooled)

    def encode(
        self, images: Tensor, tape: Tape | None = None, last: bool = False
    ) -> list[tuple[Tensor, Grid]]:
        """Images float [b c h w] to each stage's tokens [b prefix+n d] and the grid of the n.

        With ``last`` to the last stage's alone.
        """
        outputs, picture = [], images
        for s, stage in enumerate(self.stages):
            x, grid = stage.patch_embed(picture)
            record(inside(tape, f"stages.{s}"), "patches", x)
            if s == 0:
                record(tape, "patches", x)
            prefix = self.config.prefix(s)
            if prefix:
                x = torch.cat([stage.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
            if self.config.has_position(s):
                old = self.config.grids()[s]
                how = self.config.position_resize
                x = x + resize_table(stage.pos_embed, old, grid, how, prefix)
            x = stage.pos_drop(x)
            for j, block in enumerate(stage.blocks):
                x = self.through(block, x, inside(tape, f"stages.{s}.blocks.{j}"), grid)
            outputs = [(x, grid)] if last else [*outputs, (x, grid)]
            picture = _picture(x, grid)
        return outputs

    def feature_maps(self, images: Tensor) -> FeatureMaps:
        """Images float [b c h w] to a map [b d rows columns] a stage, with strides 4, 8, 16."""
        maps = [_picture(x, grid) for x, grid in self.encode(images)]
        return FeatureMaps(maps, [4 * 2**stage for stage in range(len(maps))])

    def refit(self, name: str, tensor: Tensor) -> tuple[Tensor, str] | None:
        """Resize a stage's position table, which is taken to be of a square grid."""
        stage = name.removeprefix("stage").partition(".")[0]
        if not name.endswith(".pos_embed") or tensor.ndim != 3 or not stage.isdigit():
            return None
        prefix, new = self.config.prefix(int(stage)), self.config.grids()[int(stage)]
        side = round(max(0, tensor.shape[1] - prefix) ** 0.5)
        alike = tensor.shape[0] == 1 and tensor.shape[2] == self.config.widths[int(stage)]
        if not alike or side == 0 or side**2 + prefix != tensor.shape[1]:
            return None
        how = self.config.position_resize
        done = f"{side}x{side} -> {new[0]}x{new[1]}, {how}"
        return resize_table(tensor, (side, side), new, how, prefix), done

    def depth_of(self, parameter: str) -> int:
        """0 for the first embedding, then a block's number; a later embedding is its next's."""
        stage, _, rest = parameter.removeprefix("stage").partition(".")
        if not stage.isdigit():
            return self.layers
        before = sum(self.config.depths[: int(stage)])
        if rest.startswith("blocks."):
            return before + int(rest.split(".")[1]) + 1
        return before + 1 if before else 0


def _picture(x: Tensor, grid: Grid) -> Tensor:
    """Tokens [b prefix+n d] to [b d h w], without what stands before the grid."""
    prefix = x.shape[1] - grid[0] * grid[1]
    return x[:, prefix:].transpose(1, 2).unflatten(2, grid)


def _tokens(picture: Tensor) -> Tensor:
    """[b d h w] to tokens [b n d]."""
    return picture.flatten(2).transpose(1, 2)


# DA-NAS gave a stride and a ratio to each of CvT-13's 13 blocks. Neither its outcome nor weights
# were published: this is the paper's sentence to the letter (stride and ratio 2 in the first and
# last stages, stride 1 and ratio 4 in the middle). The paper's 18M parameters cannot be that: half
# of the MLPs of ten blocks of width 384 are 5.9M, which leaves 14.1M. 18M needs ratio 4 in six or
# seven of these ten, and is then a choice that nobody knows.
NAS = {"kv_strides": (2, 1, 2), "mlp_ratios": (2.0, 4.0, 2.0)}
VARIANTS: dict[str, dict[str, Any]] = {
    # depths, widths, heads: the paper's Table 2 (and experiments/imagenet/cvt/*.yaml)
    "13": {"depths": (1, 2, 10), "widths": (64, 192, 384), "heads": (1, 3, 6)},
    "21": {"depths": (1, 4, 16), "widths": (64, 192, 384), "heads": (1, 3, 6)},
    "w24": {"depths": (2, 2, 20), "widths": (192, 768, 1024), "heads": (3, 12, 16)},
    "13_nas": {"depths": (1, 2, 10), "widths": (64, 192, 384), "heads": (1, 3, 6), **NAS},
}
SIZES = {"13": (224, 384), "13_nas": (224,), "21": (224, 384), "w24": (384,)}
