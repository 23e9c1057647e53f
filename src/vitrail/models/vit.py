"""The Vision Transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021).

One class is every plain ViT by configuration: the paper's (class token, learned positions), the
"better plain" one (mean pooling, fixed sin-cos positions), big_vision's and SigLIP's (attention
pooling), DeiT's (distillation token), DeiT-III's (LayerScale), DINOv2's (registers, SwiGLU) and
CLIP's image tower (a norm before the blocks). Weights are named as in timm, numerics default to
timm's (exact GELU, eps 1e-6), initialisation is Google's (vit_jax/models_vit.py): the paper's own,
and not the same as torch's defaults.
Any picture size and aspect ratio that the patch divides works at run time: a learned position
table is resized on the way, a fixed one is computed again.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from vitrail.kit.errors import Error
from vitrail.kit.grid import RESIZES, check_divides
from vitrail.models import positions
from vitrail.models.base import (
    FeatureMaps,
    ImageClassifier,
    Size,
    check_fields,
    height_width,
)
from vitrail.models.parts import (
    ACTIVATIONS,
    Attention,
    AttentionPool,
    Block,
    LayerScale,
    Mlp,
    lecun_normal_,
    xavier_qkv_,
)
from vitrail.models.positions import FIXED_TABLES
from vitrail.models.tape import Tape, inside, record

CHOICES = {
    "pool": ("token", "mean", "map", "none", "token_mean"),
    "position": positions.POSITIONS,
    "position_at": positions.PLACES,
    "position_resize": tuple(RESIZES),
    "activation": tuple(ACTIVATIONS),
    "attention_scale": ("head", "width"),
    "drop_path_rule": ("linear", "constant"),
}


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """A plain ViT, whole: with the weights it is the model.

    Args:
        patch_size, depth, width, heads, mlp_width: P, L, D, H and M of the paper's Table 1.
        num_classes: k; 0 for no head.
        image_size: pixels, or (height, width); the patch must divide it.
        pool: ``token`` reads the class token, ``mean`` averages the patches, ``token_mean`` puts
            the two side by side (DINOv2's linear head: features [b 2d]), ``map`` is attention
            pooling over the patches, ``none`` gives every token to the head (logits [b n k]).
        class_token: whether there is one; None means where the pooling reads it.
        distilled: a distillation token after the class token, with a head of its own (DeiT). The
            logits are the mean of both heads; a tape has each of them.
        registers: extra tokens before the patches (DINOv2).
        position: ``learned`` (the paper's), ``learned2d``, ``relative``, ``sincos2d`` (big_vision),
            ``sincos2d_mae`` or ``none``; see `models.positions`.
        position_at: a table is added at the ``input``, or at the beginning of every layer:
            ``layers`` learns one for each, ``layers_shared`` one for all. Relative keys always lie
            in the layers: each has its own, except where they are shared.
        position_on_prefix: whether class token and registers have rows in the table (the paper),
            or join the sequence after positions are added (big_vision, DeiT-III).
        position_resize: how the table is fitted to another grid, one of `kit.grid.RESIZES`.
        pre_norm: a LayerNorm before the first block, and patches projected without bias (CLIP).
        norm_after_pool: the final LayerNorm stands after mean pooling (timm's ``fc_norm``, MAE
            fine-tuning) instead of before it.
        layer_scale: LayerScale's initial value; None for none.
        gated_mlp: the MLP has a gate (`parts.Mlp`); with the activation ``silu`` it is DINOv2's
            SwiGLU. ``mlp_width`` is that of the gate and of what it lets through.
        pre_logits: a tanh layer before the head, as the original ImageNet-21k files have.
        dropout: after the positions, the attention's projection and both layers of the MLP.
        drop_path: stochastic depth, the last block's rate; ``drop_path_rule`` says whether it
            grows from 0 along the depth (``linear``) or is the same everywhere (``constant``).
        activation, norm_eps, attention_scale: the numerics, which differ between publishers.
    """

    patch_size: int = 16
    depth: int = 12
    width: int = 768
    heads: int = 12
    mlp_width: int = 3072
    num_classes: int = 1000
    image_size: Size = 224
    in_channels: int = 3
    pool: str = "token"
    class_token: bool | None = None
    distilled: bool = False
    registers: int = 0
    position: str = "learned"
    position_at: str = "input"
    position_on_prefix: bool = True
    position_resize: str = "bicubic_antialias"
    pre_norm: bool = False
    norm_after_pool: bool = False
    qkv_bias: bool = True
    layer_scale: float | None = None
    gated_mlp: bool = False
    pre_logits: bool = False
    dropout: float = 0.0
    drop_path: float = 0.0
    drop_path_rule: str = "linear"
    activation: str = "gelu"
    norm_eps: float = 1e-6
    attention_scale: str = "head"

    def __post_init__(self):
        check_fields(
            self,
            CHOICES,
            positive=("patch_size", "depth", "width", "heads", "mlp_width"),
            shares=("dropout", "drop_path"),
        )
        if self.width % self.heads:
            raise Error(f"{self.heads} heads do not divide a width of {self.width}")
        if self.registers < 0:
            raise Error("registers cannot be negative")
        if self.pool in ("token", "token_mean") and self.class_token is False:
            raise Error(
                f"pool {self.pool!r} reads the class token: do not set class_token to False"
            )
        if self.distilled and (self.pool != "token" or self.norm_after_pool or self.pre_logits):
            raise Error(
                "a distilled model reads its two tokens by itself: leave pool at 'token', and "
                "norm_after_pool and pre_logits at False"
            )
        if self.position == "learned2d" and self.width % 2:
            raise Error(f"position 'learned2d' needs an even width, not {self.width}")
        self.grid_of(height_width(self.image_size))

    @property
    def has_class_token(self) -> bool:
        """Whether the sequence begins with a class token."""
        read = self.pool in ("token", "token_mean")
        return read if self.class_token is None else self.class_token

    @property
    def prefix(self) -> int:
        """How many tokens stand before the patches."""
        return int(self.has_class_token) + int(self.distilled) + self.registers

    @property
    def position_rows(self) -> int:
        """How many tokens before the patches have rows of their own in a table of positions."""
        return self.prefix if self.position_on_prefix else 0

    @property
    def read_rows(self) -> int | None:
        """How many of the last block's tokens are read, the first ones; None: all of them."""
        return {"token": 2 if self.distilled else 1}.get(self.pool)

    @property
    def features_width(self) -> int:
        """How many numbers the head sees."""
        return 2 * self.width if self.pool == "token_mean" else self.width

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of patches at ``image_size``."""
        return self.grid_of(height_width(self.image_size))

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of patches in a picture of (height, width) pixels.

        Raises:
            Error: the patch does not divide it.
        """
        check_divides(size, self.patch_size)
        return size[0] // self.patch_size, size[1] // self.patch_size

    @property
    def stride(self) -> int:
        """Pixels from one patch to the next."""
        return self.patch_size


class PatchEmbed(nn.Module):
    """Linear projection of patches, as a convolution whose stride is its kernel."""

    def __init__(self, patch_size: int, in_channels: int, width: int, bias: bool = True):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch_size, patch_size, bias=bias)

    def forward(self, images: Tensor) -> Tensor:
        """[b c h w] to [b d rows columns]."""
        return self.proj(images)


class VisionTransformer(ImageClassifier):
    """A plain ViT. See `ViTConfig` for the choices and the module's head for the conventions.

    Records, per forward: ``patches`` [b n d] (before positions), ``embedded`` [b prefix+n d],
    ``blocks.{i}.attention`` [b h t t], ``blocks.{i}.mlp.hidden``, ``blocks.{i}.out`` [b t d],
    ``normed``, ``pool.attention`` (attention pooling), ``pooled`` [b d], ``logits`` [b k]; a
    distilled model also ``class_logits`` and ``distillation_logits``, whose mean they are.
    """

    config: ViTConfig

    def __init__(self, config: ViTConfig):
        super().__init__(config)
        c = config
        self.patch_embed = self.make_patch_embed()
        if c.has_class_token:
            self.cls_token = nn.Parameter(torch.zeros(1, 1, c.width))
        if c.distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, c.width))
        if c.registers:
            self.reg_token = nn.Parameter(torch.zeros(1, c.registers, c.width))
        for name, shape in positions.table_shapes(c).items():
            table = torch.zeros(shape)
            if c.position in FIXED_TABLES:
                self.register_buffer(name, table)
            else:
                self.register_parameter(name, nn.Parameter(table))
        self.pos_drop = nn.Dropout(c.dropout)
        self.norm_pre = nn.LayerNorm(c.width, eps=c.norm_eps) if c.pre_norm else nn.Identity()
        steps = max(1, c.depth - 1)
        rates = [
            c.drop_path * (i / steps if c.drop_path_rule == "linear" else 1) for i in range(c.depth)
        ]
        self.blocks = nn.ModuleList(
            Block(
                c.width,
                c.heads,
                c.mlp_width,
                qkv_bias=c.qkv_bias,
                attention_scale=c.attention_scale,
                activation=c.activation,
                gated_mlp=c.gated_mlp,
                norm_eps=c.norm_eps,
                dropout=c.dropout,
                drop_path=rate,
                layer_scale=c.layer_scale,
            )
            for rate in rates
        )
        normed = c.features_width if c.norm_after_pool else c.width
        before, after = nn.Identity(), nn.LayerNorm(normed, eps=c.norm_eps)
        if not c.norm_after_pool:
            before, after = after, before
        self.norm, self.fc_norm = before, after
        if c.pool == "map":
            self.attn_pool = AttentionPool(c.width, c.heads, c.mlp_width, c.activation, c.norm_eps)
        self.pre_logits = nn.Sequential()
        if c.pre_logits:
            self.pre_logits.add_module("fc", nn.Linear(c.features_width, c.features_width))
            self.pre_logits.add_module("act", nn.Tanh())

        def head() -> nn.Module:
            return nn.Linear(c.features_width, c.num_classes) if c.num_classes else nn.Identity()

        self.head = head()
        if c.distilled:
            self.head_dist = head()
        self.layers = c.depth + 1
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as Google's code does (vit_jax/models_vit.py; big_vision models/vit.py)."""
        c = self.config
        projection = self.patch_embed.proj
        lecun_normal_(projection.weight, projection.weight[0].numel())
        if projection.bias is not None:
            nn.init.zeros_(projection.bias)
        for name, parameter in self.named_parameters(recurse=False):
            if name == "cls_token":
                nn.init.zeros_(parameter)
            else:  # positions, registers and the distillation token
                nn.init.normal_(parameter, std=0.02)
        if c.position in FIXED_TABLES:
            self.tables["pos_embed"].copy_(positions.fixed_table(c, c.grid))
        for part in self.modules():
            if isinstance(part, nn.LayerNorm):
                part.reset_parameters()
            elif isinstance(part, LayerScale):
                nn.init.constant_(part.gamma, part.value)
            elif isinstance(part, Attention):
                xavier_qkv_(part.qkv.weight)
                nn.init.xavier_uniform_(part.proj.weight)
                nn.init.zeros_(part.proj.bias)
                if part.qkv.bias is not None:
                    nn.init.zeros_(part.qkv.bias)
            elif isinstance(part, Mlp):
                for linear in (part.fc1, part.fc2):
                    nn.init.xavier_uniform_(linear.weight)
                    nn.init.normal_(linear.bias, std=1e-6)
            elif isinstance(part, AttentionPool):
                nn.init.xavier_uniform_(part.latent[0])
                nn.init.xavier_uniform_(part.q.weight)
                nn.init.xavier_uniform_(part.proj.weight)
                xavier_qkv_(part.kv.weight)
                for linear in (part.q, part.kv, part.proj):
                    nn.init.zeros_(linear.bias)
        for part in self.pre_logits:
            if isinstance(part, nn.Linear):
                lecun_normal_(part.weight, part.in_features)
                nn.init.zeros_(part.bias)
        for head in (self.head, getattr(self, "head_dist", None)):
            if isinstance(head, nn.Linear):
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)

    def forward(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        """Images float [b c h w] to logits [b k]; of a distilled model the mean of both heads."""
        if not self.config.distilled:
            return super().forward(images, tape)
        x = self.read(images, tape)
        record(tape, "pooled", self.pool(x))
        by_class = record(tape, "class_logits", self.head(x[:, 0]))
        by_teacher = record(tape, "distillation_logits", self.head_dist(x[:, 1]))
        return record(tape, "logits", (by_class + by_teacher) / 2)

    def features(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        """Images float [b c h w] to what the head sees: [b d], [b 2d] or [b n d] (`pool`).

        Those of a distilled model are the mean of what its two heads see, as in timm.
        """
        pooled = self.pool(self.read(images, tape), tape)
        return self.pre_logits(record(tape, "pooled", pooled))

    def read(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        """What `encode` gives, as far as `pool` looks at it: [b prefix+n d], or [b 1 d] or [b 2 d].

        Where that is the class token (and the distillation token) alone, the last block computes
        no other, unless a tape wants them.
        """
        c = self.config
        rows = c.read_rows
        if tape is not None:
            last = tape.at(f"blocks.{c.depth - 1}")
            if tape.wants("normed") or any(map(last.wants, Block.RECORDS)):
                rows = None
        return self.transform(self.project(images, tape), tape, rows)

    def encode(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        """Images float [b c h w] to the last block's tokens [b prefix+n d], normed if it is."""
        return self.transform(self.project(images, tape), tape)

    def transform(
        self, picture: Tensor, tape: Tape | None = None, rows: int | None = None
    ) -> Tensor:
        """Projected patches [b d rows columns] to what `encode` gives, [b prefix+n d].

        With ``rows`` to the first so many of it.
        """
        c, grid = self.config, (picture.shape[-2], picture.shape[-1])
        x = self.norm_pre(self.embed(picture, tape))
        again = self.positions(grid) if c.position_at != "input" else None
        keys = positions.offset_keys(c, self.tables, grid)
        for i, block in enumerate(self.blocks):
            if i and again is not None:
                x = x + again[i % len(again)]
            offset_keys = None if keys is None else keys[i % len(keys)]
            wanted = rows if i == c.depth - 1 else None
            x = self.through(block, x, inside(tape, f"blocks.{i}"), offset_keys, wanted)
        return record(tape, "normed", self.norm(x))

    def embed(self, picture: Tensor, tape: Tape | None = None) -> Tensor:
        """Projected patches [b d rows columns] to tokens [b prefix+n d] with their positions."""
        grid = (picture.shape[-2], picture.shape[-1])
        x = record(tape, "patches", rearrange(picture, "b d h w -> b (h w) d"))
        names = [name for name in ("cls_token", "dist_token", "reg_token") if hasattr(self, name)]
        prefix = [getattr(self, name).expand(x.shape[0], -1, -1) for name in names]
        x = torch.cat([*prefix, x], dim=1) if prefix else x
        where = self.positions(grid)
        if where is not None:
            x = x + where[0]
        return record(tape, "embedded", self.pos_drop(x))

    def make_patch_embed(self) -> PatchEmbed:
        """What makes patches of a picture; its ``proj`` is the projection to the width."""
        c = self.config
        return PatchEmbed(c.patch_size, c.in_channels, c.width, bias=not c.pre_norm)

    def project(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        """Images float [b c h w] to projected patches [b d rows columns]."""
        self.config.grid_of((images.shape[-2], images.shape[-1]))
        return self.patch_embed(images)

    @property
    def tables(self) -> dict[str, Tensor]:
        """The tables of positions by name."""
        return {name: getattr(self, name) for name in positions.table_shapes(self.config)}

    def positions(self, grid: tuple[int, int]) -> Tensor | None:
        """What is added to the tokens of a grid of patches: see `models.positions.added`."""
        return positions.added(self.config, self.tables, grid)

    def pool(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """Encoded tokens [b prefix+n d] to [b d] ([b 2d] for ``token_mean``, [b n d] for none)."""
        c = self.config
        if c.distilled:
            pooled = (x[:, 0] + x[:, 1]) / 2
        elif c.pool == "token":
            pooled = x[:, 0]
        elif c.pool == "mean":
            pooled = x[:, c.prefix :].mean(dim=1)
        elif c.pool == "token_mean":
            pooled = torch.cat([x[:, 0], x[:, c.prefix :].mean(dim=1)], dim=-1)
        elif c.pool == "map":
            pooled = self.attn_pool(x[:, c.prefix :], inside(tape, "pool"))
        else:
            pooled = x
        return self.fc_norm(pooled)

    def feature_maps(self, images: Tensor) -> FeatureMaps:
        """Images float [b c h w] to one map [b d rows columns], its stride the patch size."""
        return FeatureMaps([self.refine(self.project(images))], [self.config.stride])

    def refine(self, picture: Tensor) -> Tensor:
        """Projected patches [b d rows columns] to the last block's, [b d rows columns]."""
        tokens = self.transform(picture)[:, self.config.prefix :]
        return rearrange(tokens, "b (h w) d -> b d h w", h=picture.shape[-2])

    def depth_of(self, parameter: str) -> int:
        """0 for the embeddings, i+1 for block i, depth+1 for the rest (MAE's layer-wise rates)."""
        if parameter.startswith("blocks."):
            return int(parameter.split(".")[1]) + 1
        embeddings = ("patch_embed.", "cls_token", "dist_token", "reg_token", "pos_embed")
        return 0 if parameter.startswith((*embeddings, "norm_pre.")) else self.layers

    def refit(self, name: str, tensor: Tensor) -> tuple[Tensor, str] | None:
        """Fit a 2-D or relative table of positions of another size, as at run time."""
        return positions.refit(self.config, name, tensor)


SIZES: dict[str, dict[str, int]] = {
    # depth, width, heads, MLP width: the ViT paper's Table 1 (B, L, H), DeiT and AugReg (Ti, S),
    # big_vision models/vit.py (the rest)
    "nano": {"depth": 4, "width": 96, "heads": 3, "mlp_width": 192},  # Vitrail's own: the demo
    "mu": {"depth": 1, "width": 32, "heads": 2, "mlp_width": 128},
    "tiny": {"depth": 12, "width": 192, "heads": 3, "mlp_width": 768},
    "small": {"depth": 12, "width": 384, "heads": 6, "mlp_width": 1536},
    "medium": {"depth": 12, "width": 512, "heads": 8, "mlp_width": 2048},
    "base": {"depth": 12, "width": 768, "heads": 12, "mlp_width": 3072},
    "large": {"depth": 24, "width": 1024, "heads": 16, "mlp_width": 4096},
    "so400m": {"depth": 27, "width": 1152, "heads": 16, "mlp_width": 4304},
    "huge": {"depth": 32, "width": 1280, "heads": 16, "mlp_width": 5120},
    "giant": {"depth": 40, "width": 1408, "heads": 16, "mlp_width": 6144},
    "giantopt": {"depth": 40, "width": 1536, "heads": 16, "mlp_width": 6144},
    "gigantic": {"depth": 48, "width": 1664, "heads": 16, "mlp_width": 8192},
    "giganticopt": {"depth": 48, "width": 1536, "heads": 16, "mlp_width": 8192},
    "enormous": {"depth": 56, "width": 1792, "heads": 16, "mlp_width": 15360},
}
