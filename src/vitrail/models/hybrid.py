"""Hybrids: a ResNet's map instead of patches of pixels, then a plain ViT (ViT paper, section 3.1).

What is special here: the ResNet is the post-activation one with GroupNorm and standardised weights
of vit_jax/models_resnet.py (not BiT's), its strided layers pad as TensorFlow's SAME does (one more
pixel after than before), and a "patch" is one position of the map. Two ways to make the map (paper,
section 4.1): (i) all four stages of a ResNet, a token for 32x32 pixels; (ii) three stages with the
fourth one's blocks moved into the third, a token for 16x16 and four times as many. R+Ti/16 has the
stem alone and patches of 8x8 positions: whatever its name says, a token for 32x32 pixels.
State-dict names are timm's, numerics too by default: weight eps 1e-8 on the variance and GroupNorm
eps 1e-5, where the JAX code has 1e-5 on the deviation and 1e-6.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.kit.errors import Error
from vitrail.kit.grid import check_divides
from vitrail.models.base import FeatureMaps
from vitrail.models.parts import lecun_normal_
from vitrail.models.stages import Stage, check_stages, stage_stride
from vitrail.models.standardize import (
    GROUPS,
    Projection,
    StandardizedConv2d,
    apply_standardization,
    check_eps_on,
    group_norm,
    numerics_of,
    pad_same,
)
from vitrail.models.tape import Tape, inside, record
from vitrail.models.vit import PatchEmbed, VisionTransformer, ViTConfig


@dataclass(frozen=True, kw_only=True)
class HybridConfig(ViTConfig):
    """A hybrid, whole: a plain ViT's fields, of which ``patch_size`` counts positions of the map.

    Args:
        depths: blocks in each of the ResNet's stages; none for the stem alone.
        widths: channels that leave each stage; a block is a quarter as wide inside.
        stem_width: channels of the 7x7 convolution.
        standardize_eps, standardize_eps_on, group_norm_eps: the ResNet's numerics; ``variance``
            is sqrt(variance + eps), ``deviation`` is deviation + eps.
        The rest: as for `ViTConfig`.
    """

    patch_size: int = 1
    depths: tuple[int, ...] = (3, 4, 9)
    widths: tuple[int, ...] = (256, 512, 1024)
    stem_width: int = 64
    standardize_eps: float = 1e-8
    standardize_eps_on: str = "variance"
    group_norm_eps: float = 1e-5

    def __post_init__(self):
        check_stages(self, multiple_of=4 * GROUPS)
        if self.stem_width % GROUPS:
            raise Error(f"stem_width must be a multiple of {GROUPS}, not {self.stem_width}")
        check_eps_on(self.standardize_eps_on)
        super().__post_init__()

    @property
    def map_stride(self) -> int:
        """Pixels from one position of the ResNet's map to the next."""
        return 4 * 2 ** max(0, len(self.depths) - 1)

    @property
    def map_width(self) -> int:
        """Channels of the ResNet's map."""
        return self.widths[-1] if self.widths else self.stem_width

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of tokens; a map of an odd size rounds up, as SAME padding does.

        Raises:
            Error: patches of several positions do not divide the picture.
        """
        if self.patch_size > 1:
            check_divides(size, self.stride)
        return -(-size[0] // self.stride), -(-size[1] // self.stride)

    @property
    def stride(self) -> int:
        """Pixels from one token to the next."""
        return self.map_stride * self.patch_size


class HybridBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each with a GroupNorm, around a shortcut; ReLU at the end."""

    def __init__(self, config: HybridConfig, channels: tuple[int, int], stride: int):
        super().__init__()
        outside, inner = channels[1], channels[1] // 4
        eps = config.group_norm_eps
        how: dict[str, Any] = {**numerics_of(config), "same": True}
        self.conv1 = StandardizedConv2d((channels[0], inner), 1, **how)
        self.norm1 = group_norm(inner, eps)
        self.conv2 = StandardizedConv2d((inner, inner), 3, stride, **how)
        self.norm2 = group_norm(inner, eps)
        self.conv3 = StandardizedConv2d((inner, outside), 1, **how)
        self.norm3 = group_norm(outside, eps)
        changes = stride != 1 or channels[0] != outside
        self.downsample = (
            Projection(channels, stride, group_norm(outside, eps), **how)
            if changes
            else nn.Identity()
        )

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """[b c h w] to [b c' h' w']; records ``out``."""
        inner = F.relu(self.norm1(self.conv1(x)), inplace=True)
        inner = F.relu(self.norm2(self.conv2(inner)), inplace=True)
        inner = self.norm3(self.conv3(inner))
        return record(tape, "out", F.relu(inner + self.downsample(x), inplace=True))


class HybridStem(nn.Module):
    """The 7x7 convolution, its norm and ReLU, and max-pooling."""

    def __init__(self, config: HybridConfig):
        super().__init__()
        channels = (config.in_channels, config.stem_width)
        self.conv = StandardizedConv2d(channels, 7, 2, same=True, **numerics_of(config))
        self.norm = group_norm(config.stem_width, config.group_norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        """[b c h w] to [b c' h/4 w/4], rounded up."""
        x = F.relu(self.norm(self.conv(images)), inplace=True)
        # After a ReLU a border of zeros does what one of -inf would.
        return F.max_pool2d(pad_same(x, 3, 2), 3, 2)


class HybridResNet(nn.Module):
    """The stem and the stages."""

    def __init__(self, config: HybridConfig):
        super().__init__()
        self.stem = HybridStem(config)
        channels, stages = config.stem_width, []
        for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True)):
            blocks: list[nn.Module] = []
            for index in range(depth):
                stride = stage_stride(stage, index)
                blocks.append(HybridBottleneck(config, (channels, width), stride))
                channels = width
            stages.append(Stage(blocks))
        self.stages = nn.ModuleList(stages)


class HybridEmbed(PatchEmbed):
    """A ResNet and the projection of its map; timm's names, which drop ``stem`` where it is all."""

    def __init__(self, config: HybridConfig):
        super().__init__(config.patch_size, config.map_width, config.width)
        self.backbone = HybridResNet(config) if config.depths else HybridStem(config)


class HybridTransformer(VisionTransformer):
    """A hybrid of ResNet and ViT. See `HybridConfig` and the module's head.

    Records what a `VisionTransformer` does, and before it ``stem`` [b c h/4 w/4] and
    ``stages.{s}.blocks.{j}.out`` [b c h w].
    """

    def make_patch_embed(self) -> HybridEmbed:
        """The ResNet and its projection."""
        return HybridEmbed(cast(HybridConfig, self.config))

    @property
    def backbone(self) -> HybridResNet | HybridStem:
        """The ResNet, or the stem where that is all."""
        return cast(HybridEmbed, self.patch_embed).backbone

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as vit_jax/models_resnet.py does; blocks begin as their shortcuts."""
        super().reset_parameters()
        for part in self.backbone.modules():
            if isinstance(part, StandardizedConv2d):
                lecun_normal_(part.weight, part.weight[0].numel())
            elif isinstance(part, nn.GroupNorm):
                part.reset_parameters()
        for part in self.backbone.modules():
            if isinstance(part, HybridBottleneck):
                nn.init.zeros_(part.norm3.weight)

    def apply_numerics(self) -> None:
        """Make convolutions and GroupNorms compute as the config says."""
        super().apply_numerics()
        apply_standardization(self.backbone, self.config)

    def maps(self, images: Tensor, tape: Tape | None = None, last: bool = False) -> list[Tensor]:
        """Images float [b c h w] to what leaves the stem and each stage, or the ``last`` alone."""
        self.config.grid_of((images.shape[-2], images.shape[-1]))
        backbone = self.backbone
        if isinstance(backbone, HybridStem):
            return [record(tape, "stem", backbone(images))]
        maps = [record(tape, "stem", backbone.stem(images))]
        for stage, part in enumerate(backbone.stages):
            x = maps[-1]
            for index, block in enumerate(part.get_submodule("blocks").children()):
                x = self.through(block, x, inside(tape, f"stages.{stage}.blocks.{index}"))
            maps = [x] if last else [*maps, x]  # an earlier map is memory that nobody needs
        return maps

    def project(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        """Images float [b c h w] to projected positions of the ResNet's map [b d rows columns]."""
        return self.patch_embed.proj(self.maps(images, tape, last=True)[-1])

    def feature_maps(self, images: Tensor) -> FeatureMaps:
        """Images float [b c h w] to the ResNet's stages but the last, and the Transformer's map."""
        maps = self.maps(images)
        last = self.refine(self.patch_embed.proj(maps[-1]))
        earlier = maps[1:-1]
        strides = [4 * 2**stage for stage in range(len(earlier))]
        return FeatureMaps([*earlier, last], [*strides, self.config.stride])


STAGE_WIDTHS = (256, 512, 1024, 2048)
VARIANTS: dict[str, tuple[str, tuple[int, ...], int]] = {
    # the ViT's size, the ResNet's blocks, the patch in positions of the map
    "vit_tiny_r_s16_p8": ("tiny", (), 8),
    "vit_small_r26_s32": ("small", (2, 2, 2, 2), 1),
    "vit_base_r26_s32": ("base", (2, 2, 2, 2), 1),
    "vit_base_r50_s16": ("base", (3, 4, 9), 1),
    "vit_base_r50_s32": ("base", (3, 4, 6, 3), 1),
    "vit_large_r50_s16": ("large", (3, 4, 9), 1),
    "vit_large_r50_s32": ("large", (3, 4, 6, 3), 1),
}
PAPER_NAMES = {
    # the papers' R50+ViT-B/16: ResNet, ViT, and pixels of a token as they count them
    "vit_tiny_r_s16_p8": ("R", "Ti", 16),
    "vit_small_r26_s32": ("R26", "S", 32),
    "vit_base_r26_s32": ("R26", "B", 32),
    "vit_base_r50_s16": ("R50", "B", 16),
    "vit_base_r50_s32": ("R50", "B", 32),
    "vit_large_r50_s16": ("R50", "L", 16),
    "vit_large_r50_s32": ("R50", "L", 32),
}
