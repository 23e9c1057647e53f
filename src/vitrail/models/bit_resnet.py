"""BiT's ResNet-v2 (Kolesnikov et al., "Big Transfer (BiT)", 2020): GroupNorm, standardised weights.

What is special here: pre-activation blocks whose projecting shortcut starts from the normed input;
a stem without norm or activation, whose max-pooling sees an explicit border of zeros (its values
may be negative, so that is not the usual border of -inf); a head that is a 1x1 convolution.
State-dict names are timm's, numerics too by default (weight eps 1e-8; BiT's own code has 1e-10).
Fresh heads are zero, as in BiT's code; the other filters' scale is without effect.
Any picture size and aspect ratio works: nothing depends on it.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.kit.errors import Error
from vitrail.models.base import FeatureMaps, ImageClassifier, Size
from vitrail.models.parts import DropPath, lecun_normal_
from vitrail.models.stages import (
    Stage,
    check_stages,
    drop_path_rates,
    stage_stride,
    stage_strides,
)
from vitrail.models.standardize import (
    GROUPS,
    Projection,
    StandardizedConv2d,
    apply_standardization,
    check_eps_on,
    group_norm,
    numerics_of,
)
from vitrail.models.tape import Tape, inside, record


@dataclass(frozen=True, kw_only=True)
class BiTConfig:
    """A BiT ResNet-v2, whole: with the weights it is the model.

    Args:
        depths: blocks in each stage.
        widths: channels that leave each stage; a block is a quarter as wide inside.
        stem_width: channels of the 7x7 convolution.
        num_classes: k; 0 for no head.
        image_size: pixels, or (height, width): the size that it is used at.
        drop_path: stochastic depth, the last block's rate; it grows from 0 along the depth.
        standardize_eps, standardize_eps_on, group_norm_eps: the numerics; ``variance`` is
            sqrt(variance + eps), ``deviation`` is deviation + eps.
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    stem_width: int = 64
    num_classes: int = 1000
    image_size: Size = 224
    in_channels: int = 3
    drop_path: float = 0.0
    standardize_eps: float = 1e-8
    standardize_eps_on: str = "variance"
    group_norm_eps: float = 1e-5

    def __post_init__(self):
        check_stages(self, multiple_of=4 * GROUPS)
        if self.stem_width % GROUPS:
            raise Error(f"stem_width must be a multiple of {GROUPS}, not {self.stem_width}")
        check_eps_on(self.standardize_eps_on)


class PreActivationBottleneck(nn.Module):
    """Norms and activations before the 1x1, 3x3 and 1x1 convolutions; nothing after the sum."""

    def __init__(self, config: BiTConfig, channels: tuple[int, int], stride: int, drop_path: float):
        super().__init__()
        outside, inner = channels[1], channels[1] // 4
        eps, how = config.group_norm_eps, numerics_of(config)
        self.norm1 = group_norm(channels[0], eps)
        self.conv1 = StandardizedConv2d((channels[0], inner), 1, **how)
        self.norm2 = group_norm(inner, eps)
        self.conv2 = StandardizedConv2d((inner, inner), 3, stride, **how)
        self.norm3 = group_norm(inner, eps)
        self.conv3 = StandardizedConv2d((inner, outside), 1, **how)
        self.drop_path = DropPath(drop_path)
        changes = stride != 1 or channels[0] != outside
        self.downsample = Projection(channels, stride, **how) if changes else nn.Identity()

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """[b c h w] to [b c' h' w']; records ``out``."""
        whole = tape is not None
        if isinstance(self.downsample, Projection):
            normed = F.relu(self.norm1(x), inplace=True)
            shortcut = self.downsample(normed)
            x = self.drop_path.around(normed, self.branch, shortcut=shortcut, whole=whole)
        else:
            x = self.drop_path.around(
                x, lambda kept: self.branch(F.relu(self.norm1(kept), inplace=True)), whole=whole
            )
        return record(tape, "out", x)

    def branch(self, normed: Tensor) -> Tensor:
        """What is added to the shortcut, from the normed and rectified input."""
        inner = self.conv2(F.relu(self.norm2(self.conv1(normed)), inplace=True))
        return self.conv3(F.relu(self.norm3(inner), inplace=True))


class BiTStem(nn.Module):
    """The 7x7 convolution, a border of zeros, and max-pooling without one of its own."""

    def __init__(self, config: BiTConfig):
        super().__init__()
        channels = (config.in_channels, config.stem_width)
        self.conv = StandardizedConv2d(channels, 7, 2, **numerics_of(config))

    def forward(self, images: Tensor) -> Tensor:
        """[b c h w] to [b c' h/4 w/4]."""
        return F.max_pool2d(F.pad(self.conv(images), (1, 1, 1, 1)), 3, 2)


class ConvolutionHead(nn.Module):
    """A classifier that is stored as a 1x1 convolution."""

    def __init__(self, width: int, num_classes: int):
        super().__init__()
        self.fc = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[b d] to [b k]."""
        return F.linear(x, self.fc.weight.flatten(1), self.fc.bias)


class BiTResNet(ImageClassifier):
    """A BiT ResNet-v2. See `BiTConfig` and the module's head.

    Records, per forward: ``stem`` [b c h/4 w/4], ``stages.{s}.blocks.{j}.out`` [b c h w],
    ``pooled`` [b d], ``logits`` [b k].
    """

    config: BiTConfig
    head_name = "head.fc"

    def __init__(self, config: BiTConfig):
        super().__init__(config)
        c = config
        self.stem = BiTStem(c)
        channels, rates, stages = c.stem_width, drop_path_rates(c.drop_path, c.depths), []
        for stage, (depth, width) in enumerate(zip(c.depths, c.widths, strict=True)):
            blocks: list[nn.Module] = []
            for index in range(depth):
                stride, rate = stage_stride(stage, index), rates[stage][index]
                blocks.append(PreActivationBottleneck(c, (channels, width), stride, rate))
                channels = width
            stages.append(Stage(blocks))
        self.stages = nn.ModuleList(stages)
        self.norm = group_norm(channels, c.group_norm_eps)
        self.head = ConvolutionHead(channels, c.num_classes) if c.num_classes else nn.Identity()
        self.layers = sum(c.depths) + 1
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as Flax does by default, which Google's convolutions are; the head is zero."""
        for part in self.modules():
            if isinstance(part, StandardizedConv2d):
                lecun_normal_(part.weight, part.weight[0].numel())
            elif isinstance(part, nn.GroupNorm):
                part.reset_parameters()
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def apply_numerics(self) -> None:
        """Make convolutions and GroupNorms compute as the config says."""
        apply_standardization(self, self.config)

    def features(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        """Images float [b c h w] to [b d], the mean of the last map after its norm."""
        return record(tape, "pooled", self.maps(images, tape, last=True)[-1].mean(dim=(2, 3)))

    def maps(self, images: Tensor, tape: Tape | None = None, last: bool = False) -> list[Tensor]:
        """Images float [b c h w] to what leaves each stage, the last of them normed and rectified.

        The others are as they leave, without activation: so the next stage takes them. With
        ``last`` there is the last alone.
        """
        x, maps = record(tape, "stem", self.stem(images)), []
        for stage, part in enumerate(self.stages):
            for index, block in enumerate(part.get_submodule("blocks").children()):
                x = self.through(block, x, inside(tape, f"stages.{stage}.blocks.{index}"))
            maps = [x] if last else [*maps, x]  # an earlier map is memory that nobody needs
        maps[-1] = F.relu(self.norm(x), inplace=True)
        return maps

    def feature_maps(self, images: Tensor) -> FeatureMaps:
        """Images float [b c h w] to one map a stage (see `maps`), at strides 4, 8, 16, 32."""
        return FeatureMaps(self.maps(images), stage_strides(self.config.depths))

    def depth_of(self, parameter: str) -> int:
        """0 for the stem, i+1 for block i counted through all stages, `layers` for the rest."""
        parts = parameter.split(".")
        if parts[0] != "stages":
            return 0 if parts[0] == "stem" else self.layers
        return sum(self.config.depths[: int(parts[1])]) + int(parts[3]) + 1


DEPTHS = {
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}
# The released ones, and those that the ViT paper alone compares with (50x2, 152x1, 200x3).
NAMES = ("50x1", "50x2", "50x3", "101x1", "101x3", "152x1", "152x2", "152x4", "200x3")


def variant(name: str) -> dict[str, int | tuple[int, ...]]:
    """The config fields of ``50x1``: depth, and the factor on all widths."""
    depth, _, factor = name.partition("x")
    widths = tuple(width * int(factor) for width in (256, 512, 1024, 2048))
    return {"depths": DEPTHS[int(depth)], "widths": widths, "stem_width": 64 * int(factor)}
