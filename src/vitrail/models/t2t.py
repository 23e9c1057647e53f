"""T2T-ViT: Tokens-to-Token ViT (Yuan et al., 2021).

Patches are not cut: three times the picture is unfolded into overlapping windows (7 pixels every
4, then twice 3 every 2), and between the unfoldings the tokens attend to each other in 64 numbers
each, by a Performer (attention through 32 fixed random features) or by a plain Transformer. The
residual of these two blocks comes from the values, because the widths differ. (For comparison,
plain patches can be projected instead.) Then a deep and narrow ViT, whose positions are a fixed
table of sines. Names and numerics are the authors' (yitu-opensource/T2T-ViT); their released files
were trained with attention scaled by the full width, while their code trains a new model with the
usual scale: `attention_scale`.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.kit.errors import Error
from vitrail.models.base import FeatureMaps, ImageClassifier, Size, check_fields, height_width
from vitrail.models.parts import ACTIVATIONS, Block, attend
from vitrail.models.tape import Tape, inside, record

Grid = tuple[int, int]

# kernel, stride and padding of the three unfoldings, or of the one into patches
OVERLAPPING = ((7, 4, 2), (3, 2, 1), (3, 2, 1))
UNFOLDINGS = {"performer": OVERLAPPING, "transformer": OVERLAPPING, "patches": ((16, 16, 0),)}
CHOICES = {
    "tokens": tuple(UNFOLDINGS),
    "activation": tuple(ACTIVATIONS),
    "attention_scale": ("head", "width"),
}


@dataclass(frozen=True, kw_only=True)
class T2TConfig:
    """A T2T-ViT, whole: with the weights it is the model. The defaults are T2T-ViT-14.

    Args:
        depth, width, heads, mlp_width: of the backbone.
        tokens: how the tokens attend to each other between the unfoldings, ``performer`` or
            ``transformer`` (the T2T-ViT_t models); or ``patches`` of 16 pixels, without any of it.
        token_width: their width there.
        token_dropout: a Performer's dropout, after its projection and its MLP.
        num_classes: k; 0 for no head.
        image_size: pixels, or (height, width); any.
        drop_path: stochastic depth of the backbone's last block; it grows from 0 along the depth.
        dropout: after the positions, the attention's projection and both layers of the MLP.
        activation: of the backbone; between the unfoldings it is the exact GELU.
        norm_eps: of all LayerNorms.
        attention_scale: of the backbone: ``head``, or ``width`` as the released files need.
    """

    depth: int = 14
    width: int = 384
    heads: int = 6
    mlp_width: int = 1152
    tokens: str = "performer"
    token_width: int = 64
    token_dropout: float = 0.1
    num_classes: int = 1000
    image_size: Size = 224
    in_channels: int = 3
    qkv_bias: bool = False
    drop_path: float = 0.0
    dropout: float = 0.0
    activation: str = "gelu"
    norm_eps: float = 1e-5
    attention_scale: str = "head"

    def __post_init__(self):
        check_fields(
            self,
            CHOICES,
            positive=("depth", "width", "heads", "mlp_width", "token_width"),
            shares=("dropout", "token_dropout", "drop_path"),
        )
        if self.width % self.heads:
            raise Error(f"{self.heads} heads do not divide a width of {self.width}")
        self.grids()

    @property
    def pool(self) -> str:
        """What the head reads: the class token, always."""
        return "token"

    def grid_of(self, size: Grid) -> Grid:
        """(rows, columns) of the tokens that the blocks see, for pictures of a size."""
        return self.grids(size)[-1]

    def grids(self, size: Grid | None = None) -> list[Grid]:
        """(rows, columns) after each unfolding of pictures of a size, ``image_size`` by default.

        Raises:
            Error: the pictures are too small to leave anything.
        """
        size = height_width(self.image_size) if size is None else size
        grids, sides = [], list(size)
        for kernel, stride, padding in UNFOLDINGS[self.tokens]:
            sides = [(side + 2 * padding - kernel) // stride + 1 for side in sides]
            if min(sides) < 1:
                least = kernel if self.tokens == "patches" else 3
                raise Error(
                    f"pictures of {size[0]}x{size[1]} are too small: {least} pixels are the least"
                )
            grids.append((sides[0], sides[1]))
        return grids

    @property
    def splits(self) -> list[int]:
        """The width of the tokens after each unfolding."""
        unfoldings = UNFOLDINGS[self.tokens]
        channels = [self.in_channels, *[self.token_width] * (len(unfoldings) - 1)]
        return [c * kernel**2 for c, (kernel, _, _) in zip(channels, unfoldings, strict=True)]


class TokenPerformer(nn.Module):
    """A block of linear attention by positive random features (models/token_performer.py).

    exp(query . key) is the mean over random w of phi(query) phi(key), where
    phi(z) = exp(w . z - |z|^2 / 2): so keys and values meet before the queries do, and the work
    grows with the tokens, not with their square. There is no attention map to record.
    """

    def __init__(self, width: int, inner: int, dropout: float, norm_eps: float):
        super().__init__()
        self.inner = inner
        self.kqv = nn.Linear(width, 3 * inner)  # keys come first
        self.dp = nn.Dropout(dropout)
        self.proj = nn.Linear(inner, inner)
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.norm2 = nn.LayerNorm(inner, eps=norm_eps)
        self.mlp = nn.Sequential(
            nn.Linear(inner, inner), nn.GELU(), nn.Linear(inner, inner), nn.Dropout(dropout)
        )
        features = max(1, inner // 2)
        self.w = nn.Parameter(torch.empty(features, inner), requires_grad=False)

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """[b n d] to [b n e]; records ``out``."""
        key, query, value = self.kqv(self.norm1(x)).chunk(3, dim=-1)
        y = self.attend(query, key, value).to(value.dtype)
        x = value + self.dp(self.proj(y))
        return record(tape, "out", x + self.mlp(self.norm2(x)))

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Linear attention over [b n e], in float32 or better: half precision overflows here."""
        device = query.device.type
        mixed = device != "meta" and torch.is_autocast_enabled(device)
        with torch.autocast(device, enabled=False) if mixed else nullcontext():
            query, key = self.phi(query), self.phi(key)
            value = _at_least_float32(value)
            seen = query @ key.sum(dim=1, keepdim=True).transpose(1, 2)  # [b n 1]
            return query @ (key.transpose(1, 2) @ value) / (seen + 1e-8)

    def phi(self, z: Tensor) -> Tensor:
        """Positive random features, [b n e] to [b n m]."""
        z = _at_least_float32(z)
        w = self.w.detach().to(z.dtype)
        half_square = z.square().sum(dim=-1, keepdim=True) / 2
        return torch.exp(z @ w.T - half_square) / math.sqrt(len(w))


class TokenAttention(nn.Module):
    """Attention of one head from width d to width e, whose residual is its values.

    The scale is that of the width d, as in the authors' code, whatever the backbone's is.
    """

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.scale = width**-0.5
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.proj = nn.Linear(inner, inner)

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """[b n d] to [b n e]; records ``attention`` [b 1 n n]."""
        query, key, value = self.qkv(x)[:, None].chunk(3, dim=-1)
        mixed = attend(query, key, value, self.scale, tape)
        return (value + self.proj(mixed))[:, 0]


class TokenTransformer(nn.Module):
    """A plain block from width d to width e (models/token_transformer.py)."""

    def __init__(self, width: int, inner: int, norm_eps: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = TokenAttention(width, inner)
        self.norm2 = nn.LayerNorm(inner, eps=norm_eps)
        self.mlp = nn.Sequential()
        self.mlp.add_module("fc1", nn.Linear(inner, inner))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("fc2", nn.Linear(inner, inner))

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """[b n d] to [b n e]; records ``attention`` and ``out``."""
        x = self.attn(self.norm1(x), tape)
        return record(tape, "out", x + self.mlp(self.norm2(x)))


class TokensToToken(nn.Module):
    """What the module holds; the model runs it."""

    def __init__(self, config: T2TConfig):
        super().__init__()
        c = config

        def block(width: int) -> nn.Module:
            if c.tokens == "transformer":
                return TokenTransformer(width, c.token_width, c.norm_eps)
            return TokenPerformer(width, c.token_width, c.token_dropout, c.norm_eps)

        *between, last = c.splits
        for i, width in enumerate(between, 1):
            self.add_module(f"attention{i}", block(width))
        self.project = nn.Linear(last, c.width)

    @property
    def blocks(self) -> list[nn.Module]:
        """What stands between the unfoldings, in order."""
        return [part for part in self.children() if part is not self.project]


class T2TViT(ImageClassifier):
    """A T2T-ViT. See `T2TConfig` for the choices and the module's head for what is special.

    Records, per forward: ``tokens.{i}.attention`` [b 1 n n] (of Transformers, not of Performers),
    ``tokens.{i}.out`` [b n e], ``patches`` [b n d] (before positions), ``embedded`` [b 1+n d],
    ``blocks.{i}.attention`` [b h t t], ``blocks.{i}.mlp.hidden``, ``blocks.{i}.out`` [b t d],
    ``normed``, ``pooled`` [b d], ``logits`` [b k].
    """

    config: T2TConfig

    def __init__(self, config: T2TConfig):
        super().__init__(config)
        c = config
        self.tokens_to_token = TokensToToken(c)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.width))
        rows, columns = c.grids()[-1]
        self.register_buffer("pos_embed", torch.zeros(1, 1 + rows * columns, c.width))
        self.pos_drop = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(
            Block(
                c.width,
                c.heads,
                c.mlp_width,
                qkv_bias=c.qkv_bias,
                attention_scale=c.attention_scale,
                activation=c.activation,
                norm_eps=c.norm_eps,
                dropout=c.dropout,
                drop_path=c.drop_path * i / max(1, c.depth - 1),
            )
            for i in range(c.depth)
        )
        self.norm = nn.LayerNorm(c.width, eps=c.norm_eps)
        self.head = nn.Linear(c.width, c.num_classes) if c.num_classes else nn.Identity()
        self.layers = c.depth + 1
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as the authors do (models/t2t_vit.py, token_performer.py)."""
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.pos_embed.copy_(sinusoids(self.pos_embed.shape[1], self.config.width))
        for part in self.modules():
            if isinstance(part, nn.LayerNorm):
                part.reset_parameters()
            elif isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
            elif isinstance(part, TokenPerformer):
                # orthogonal by hand: nn.init.orthogonal_ fails on the meta device
                if not part.w.is_meta:
                    nn.init.orthogonal_(part.w)
                part.w.mul_(math.sqrt(len(part.w)))

    def features(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        """Images float [b c h w] to [b d], what the head sees."""
        rows = 1 if tape is None else None  # nobody sees the last block's other tokens
        return record(tape, "pooled", self.encode(images, tape, rows)[:, 0])

    def encode(self, images: Tensor, tape: Tape | None = None, rows: int | None = None) -> Tensor:
        """Images float [b c h w] to the last block's tokens [b 1+n d], normed.

        With ``rows`` to the first so many of them.
        """
        patches = record(tape, "patches", self.tokenize(images, tape))
        x = torch.cat([self.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        x = record(tape, "embedded", self.pos_drop(x + self.positions(x.shape[1])))
        for i, block in enumerate(self.blocks):
            wanted = rows if i == len(self.blocks) - 1 else None
            x = self.through(block, x, inside(tape, f"blocks.{i}"), None, wanted)
        return record(tape, "normed", self.norm(x))

    def tokenize(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        """Images float [b c h w] to tokens [b n d] without positions."""
        part, picture = self.tokens_to_token, images
        grids = self.config.grids((images.shape[-2], images.shape[-1]))
        *between, last = UNFOLDINGS[self.config.tokens]
        for i, (block, unfolding) in enumerate(zip(part.blocks, between, strict=True)):
            x = self.through(block, unfold(picture, unfolding), inside(tape, f"tokens.{i}"))
            picture = x.transpose(1, 2).unflatten(2, grids[i])
        return part.project(unfold(picture, last))

    def positions(self, tokens: int) -> Tensor:
        """The fixed table for so many tokens, [1 tokens d]."""
        if tokens == self.pos_embed.shape[1]:
            return self.pos_embed
        return sinusoids(tokens, self.config.width).to(self.pos_embed)

    def feature_maps(self, images: Tensor) -> FeatureMaps:
        """Images float [b c h w] to one map [b d rows columns] of stride 16."""
        grid = self.config.grids((images.shape[-2], images.shape[-1]))[-1]
        tokens = self.encode(images)[:, 1:]
        return FeatureMaps([tokens.transpose(1, 2).unflatten(2, grid)], [16])

    def refit(self, name: str, tensor: Tensor) -> tuple[Tensor, str] | None:
        """The fixed table of another size is computed again, if it is that of the formula."""
        width = self.config.width
        if name != "pos_embed" or tensor.ndim != 3 or tensor.shape[::2] != (1, width):
            return None
        old, new = tensor.shape[1], self.pos_embed.shape[1]
        if not is_sinusoids(tensor):
            return None
        return sinusoids(new, width), f"{old} rows -> {new} rows, computed"

    def depth_of(self, parameter: str) -> int:
        """0 for the tokens, i+1 for block i, depth+1 for the rest."""
        if parameter.startswith("blocks."):
            return int(parameter.split(".")[1]) + 1
        embeddings = ("tokens_to_token.", "cls_token", "pos_embed")
        return 0 if parameter.startswith(embeddings) else self.layers


def unfold(picture: Tensor, unfolding: tuple[int, int, int]) -> Tensor:
    """Cut [b c h w] into windows [b n c*kernel*kernel], channels first."""
    kernel, stride, padding = unfolding
    return F.unfold(picture, kernel, stride=stride, padding=padding).transpose(1, 2)


def sinusoids(rows: int, width: int) -> Tensor:
    """The fixed table of Transformers: float32 [1 rows d], sines and cosines in turn.

    Row i, column j: of i / 10000^(2 floor(j/2) / d). Row 0 is the class token's
    (models/transformer_block.py get_sinusoid_encoding).
    """
    column = torch.arange(width, dtype=torch.float64)
    rates = 10000.0 ** (-2 * (column // 2) / width)
    angles = torch.arange(rows, dtype=torch.float64)[:, None] * rates
    return torch.where(column % 2 == 0, angles.sin(), angles.cos()).float()[None]


def is_sinusoids(table: Tensor) -> bool:
    """Whether a table [1 rows d] is that of the formula, as 16 bits hold it or better."""
    computed = sinusoids(table.shape[1], table.shape[2])
    return torch.allclose(table.float().cpu(), computed, rtol=0, atol=4e-3)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _size(depth: int, width: int, heads: int, ratio: int) -> dict[str, Any]:
    return {"depth": depth, "width": width, "heads": heads, "mlp_width": ratio * width}


SIZES: dict[str, dict[str, Any]] = {
    # models/t2t_vit.py
    "7": _size(7, 256, 4, 2),
    "10": _size(10, 256, 4, 2),
    "12": _size(12, 256, 4, 2),
    "14": _size(14, 384, 6, 3),
    "19": _size(19, 448, 7, 3),
    "24": _size(24, 512, 8, 3),
    **{
        f"t_{depth}": {**_size(depth, width, heads, 3), "tokens": "transformer"}
        for depth, width, heads in ((14, 384, 6), (19, 448, 7), (24, 512, 8))
    },
}
