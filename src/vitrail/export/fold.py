"""Folding: a model as a module from bytes to logits, with all that is constant computed once.

`fold(model)` takes uint8 pictures [b h w c] at one size and gives the model's logits, to rounding.
The normalisation of the pixels lies in the patch embedding where that does not overlap a border
(plain ViT, PVT), else before the stem. What else is folded is in `steps` and `reading`; a family
that they do not know is simply normalised in front. The model itself is left alone.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from vitrail.export import steps
from vitrail.export.reading import last_block
from vitrail.kit.errors import Error
from vitrail.kit.preprocess import Preprocessing
from vitrail.models.base import ImageClassifier, height_width
from vitrail.models.cvt import CvT
from vitrail.models.hybrid import HybridStem, HybridTransformer
from vitrail.models.positions import offset_keys
from vitrail.models.pvt import PyramidVisionTransformer
from vitrail.models.tape import Tape, inside
from vitrail.models.vit import VisionTransformer

LUMA = (0.299, 0.587, 0.114)  # as `Preprocessing.normalize` has it


def fold(
    model: ImageClassifier,
    size: int | tuple[int, int] | None = None,
    transformer: "Callable[..., FoldedTransformer] | None" = None,
) -> "Folded | FoldedTransformer":
    """A module from uint8 pictures [b h w c] to logits [b k], equal to the model's to rounding.

    Like the model it takes a `Tape`: of the names of the model's it knows those of attention.

    That is to 1e-5 of the largest logit in float32, and the model's own ``preprocessing`` says how
    pixels are normalised. The module is in evaluation mode and of the model's precision.

    Args:
        model: any model of the zoo; it is not changed.
        size: pixels, or (height, width), of the pictures; None takes the model's own.
        transformer: makes the module of a plain ViT or hybrid; None for `FoldedTransformer`.

    Raises:
        Error: a size that the model cannot take, or a model whose channels are not the pictures'.
    """
    own = height_width(model.image_size if size is None else size)
    if isinstance(model, VisionTransformer):
        model.config.grid_of(own)  # says which sizes there are
    copied = steps.at_size(model, own).eval()
    pixels = pixel_scale(model.preprocessing, model.config.in_channels)
    steps.standardized_weights(copied)
    steps.batch_norms(copied)
    steps.layer_norms(copied)
    steps.layer_scales(copied)
    steps.query_scales(copied)
    steps.joined_projections(copied)
    last_block(copied)
    steps.portable_parts(copied, own)
    if isinstance(copied, VisionTransformer):
        make = transformer or FoldedTransformer
        folded: Folded | FoldedTransformer = make(copied, own, pixels)
    else:
        folded = Folded(copied, own, pixels)
    for parameter in folded.parameters():
        parameter.requires_grad_(False)
    return folded.eval()


def pixel_scale(preprocessing: Preprocessing, channels: int) -> tuple[Tensor, Tensor]:
    """Normalisation as one affine map: (matrix [c 3], shift [c]), float64.

    Raises:
        Error: a model of some other number of channels than 1 and 3.
    """
    if len(preprocessing.mean) != channels or channels not in (1, 3):
        raise Error(
            f"a model of {channels} channels whose preprocessing has {len(preprocessing.mean)} "
            "cannot be fed with pictures: only models of 1 and 3 channels are folded"
        )
    std = torch.tensor(preprocessing.std, dtype=torch.float64)
    shift = -torch.tensor(preprocessing.mean, dtype=torch.float64) / std
    colours = torch.eye(3).double() if channels == 3 else torch.tensor([LUMA], dtype=torch.float64)
    return colours / (255 * std[:, None]), shift


class Normalise(nn.Module):
    """uint8 [b h w 3] to float [b c h w], normalised; without numbers, only turned."""

    def __init__(self, pixels: tuple[Tensor, Tensor] | None, like: Tensor):
        super().__init__()
        self.grey = pixels is not None and len(pixels[1]) == 1
        if pixels is not None:
            matrix, shift = (part.to(like) for part in pixels)
            self.register_buffer("scale", matrix if self.grey else matrix.diagonal())
            self.register_buffer("shift", shift)
        self.plain, self.dtype = pixels is None, like.dtype

    scale: Tensor
    shift: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        floats = images.to(self.dtype)
        if self.grey:
            floats = (floats * self.scale).sum(-1, keepdim=True) + self.shift
        elif not self.plain:
            floats = floats * self.scale + self.shift
        return floats.permute(0, 3, 1, 2)


class Folded(nn.Module):
    """A folded model of any family but the plain ViT's: its own forward after `Normalise`.

    Attributes:
        size: (height, width) of its pictures.
    """

    def __init__(
        self, model: ImageClassifier, size: tuple[int, int], pixels: tuple[Tensor, Tensor]
    ):
        super().__init__()
        self.size, like = size, next(model.parameters())
        stem = _unpadded_stem(model)
        if stem is not None and stem.in_channels == 3:
            steps.scale_inputs(
                stem, pixels[0].diagonal().to(like.device), pixels[1].to(like.device)
            )
            self.normalise = Normalise(None, like)
        else:
            self.normalise = Normalise(pixels, like)
        self.model = model

    def forward(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        """uint8 [b h w 3] to logits [b k]."""
        return self.model(self.normalise(images), tape)


class FoldedTransformer(nn.Module):
    """A folded plain ViT or hybrid: tokens, blocks, head.

    The projection of a plain ViT is one matrix on the pixels of a patch as they lie in memory,
    so that no picture is turned; its bias and the positions are one table.

    Attributes:
        size: (height, width) of its pictures.
    """

    def __init__(
        self, model: VisionTransformer, size: tuple[int, int], pixels: tuple[Tensor, Tensor]
    ):
        super().__init__()
        self.size, c = size, model.config
        self.grid = c.grid_of(size)
        with torch.no_grad():
            self._bake_tables(model)
        like = next(model.parameters())
        if isinstance(model, HybridTransformer):
            self.patches: nn.Module = HybridPatches(model, Normalise(pixels, like))
        else:
            self.patches = PixelPatches(model, self.grid, pixels)
        self.norm_pre, self.blocks = model.norm_pre, model.blocks
        self.norm, self.fc_norm, self.pre_logits = model.norm, model.fc_norm, model.pre_logits
        self.pool, self.prefix, self.distilled = c.pool, c.prefix, c.distilled
        if c.pool == "map":
            self.attn_pool = model.attn_pool
        self.head = model.head
        if c.distilled:
            self.head_dist = model.head_dist

    blocks: nn.ModuleList
    tokens: Tensor
    table: Tensor
    again: Tensor | None
    keys: Tensor | None

    def _bake_tables(self, model: VisionTransformer) -> None:
        c = model.config
        where = model.positions(self.grid)
        table = torch.zeros(1, c.prefix + self.grid[0] * self.grid[1], c.width).to(
            next(model.parameters())
        )
        if where is not None:
            table = table + where[0]
        names = [name for name in ("cls_token", "dist_token", "reg_token") if hasattr(model, name)]
        tokens = torch.cat([getattr(model, name) for name in names], 1) if names else table[:, :0]
        bias = model.patch_embed.proj.bias
        patches = table[:, c.prefix :]
        self.register_buffer("tokens", tokens + table[:, : c.prefix])
        self.register_buffer("table", patches if bias is None else patches + bias)
        again = where if c.position_at != "input" else None
        self.register_buffer("again", again)
        self.register_buffer("keys", offset_keys(c, model.tables, self.grid))

    def forward(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        """uint8 [b h w 3] to logits [b k]; records ``blocks.{i}.attention`` and the pooling's."""
        x = self.patches(images) + self.table
        if self.prefix:
            x = torch.cat([self.tokens.expand(x.shape[0], -1, -1), x], dim=1)
        x = self.norm_pre(x)
        for i, block in enumerate(self.blocks):
            if i and self.again is not None:
                x = x + self.again[i % len(self.again)]
            rest = () if self.keys is None else (self.keys[i % len(self.keys)],)
            x = block(x, inside(tape, f"blocks.{i}"), *rest)
        return self.read(self.norm(x), tape)

    def read(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """Encoded tokens [b n d] to logits [b k]."""
        if self.distilled:
            return (self.head(x[:, 0]) + self.head_dist(x[:, 1])) / 2
        if self.pool == "token":
            x = x[:, 0]
        elif self.pool == "mean":
            x = x[:, self.prefix :].mean(dim=1)
        elif self.pool == "token_mean":
            x = torch.cat([x[:, 0], x[:, self.prefix :].mean(dim=1)], dim=-1)
        elif self.pool == "map":
            x = self.attn_pool(x[:, self.prefix :], inside(tape, "pool"))
        return self.head(self.pre_logits(self.fc_norm(x)))


class PixelPatches(nn.Module):
    """Patches of bytes to tokens [b n d] by one matrix; the bias stands in the model's table."""

    def __init__(
        self, model: VisionTransformer, grid: tuple[int, int], pixels: tuple[Tensor, Tensor]
    ):
        super().__init__()
        kernel = model.patch_embed.proj.weight.detach()  # [d c p q]
        matrix, shift = (part.to(kernel.device) for part in pixels)
        weight = torch.einsum("dcpq,ck->dpqk", kernel.double(), matrix)
        bias = torch.einsum("dcpq,c->d", kernel.double(), shift)
        self.proj = nn.Linear(weight[0].numel(), len(weight), dtype=kernel.dtype)
        self.proj.weight = nn.Parameter(weight.flatten(1).to(kernel.dtype))
        self.proj.bias = nn.Parameter(bias.to(kernel.dtype))
        self.grid, self.side = grid, model.config.patch_size

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [b h w 3] to [b n d]."""
        (rows, columns), p = self.grid, self.side
        cut = images.reshape(-1, rows, p, columns, p, 3).permute(0, 1, 3, 2, 4, 5)
        flat = cut.reshape(-1, rows * columns, p * p * 3)
        return self.proj(flat.to(self.proj.weight.dtype))


class HybridPatches(nn.Module):
    """A ResNet and the projection of its map, whose bias stands in the model's table."""

    def __init__(self, model: HybridTransformer, normalise: Normalise):
        super().__init__()
        self.normalise = normalise
        backbone = model.backbone
        self.stem = backbone if isinstance(backbone, HybridStem) else backbone.stem
        stages = [] if isinstance(backbone, HybridStem) else list(backbone.stages)
        blocks = [block for stage in stages for block in stage.get_submodule("blocks").children()]
        self.blocks = nn.ModuleList(blocks)
        self.proj = model.patch_embed.proj
        self.proj.bias = None

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [b h w 3] to [b n d]."""
        x = self.stem(self.normalise(images))
        for block in self.blocks:
            x = block(x)
        return functional.conv2d(x, self.proj.weight, None, self.proj.stride).flatten(2).mT


def _unpadded_stem(model: ImageClassifier) -> nn.Conv2d | None:
    """The convolution that sees the pictures, where it has no border."""
    if isinstance(model, PyramidVisionTransformer):
        stem = model.get_submodule("patch_embed1.proj")
        assert isinstance(stem, nn.Conv2d)
        return stem
    if isinstance(model, CvT) and model.config.embedding == "patch":
        return model.stages[0].patch_embed.proj
    return None
