"""The plain ResNet with batch norm (He et al., "Deep Residual Learning", 2016).

What is special here: it is the baseline that BoTNet puts attention into, so a block's middle
convolution and its shortcut are methods of their own (`Bottleneck.mix`, `Bottleneck.shortcut`) and
`ResNet.make_block` decides which block stands where. The stride is on the 3x3 convolution, as in
timm and torchvision (the paper had it on the first 1x1); state-dict names are theirs, so the head
is ``fc``. The last batch norm of every residual branch begins at zero (Goyal et al., 2017).
Any picture size and aspect ratio works: nothing depends on it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitrail.kit.errors import Error, did_you_mean
from vitrail.models.base import FeatureMaps, ImageClassifier, Size
from vitrail.models.parts import ACTIVATIONS, DropPath
from vitrail.models.stages import check_stages, drop_path_rates, stage_stride, stage_strides
from vitrail.models.tape import Tape, inside, record


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """A plain ResNet of bottleneck blocks, whole: with the weights it is the model.

    Args:
        depths: blocks in each stage.
        widths: channels that leave each stage; a block is a quarter as wide inside.
        stem_width: channels of the 7x7 convolution.
        num_classes: k; 0 for no head.
        image_size: pixels, or (height, width): the size that it is used at.
        drop_path: stochastic depth, the last block's rate; it grows from 0 along the depth.
        activation, norm_eps: the numerics; the eps is that of the batch norms.
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    stem_width: int = 64
    num_classes: int = 1000
    image_size: Size = 224
    in_channels: int = 3
    drop_path: float = 0.0
    activation: str = "relu"
    norm_eps: float = 1e-5

    def __post_init__(self):
        check_stages(self, multiple_of=4)
        if self.activation not in ACTIVATIONS:
            near = (
                did_you_mean(self.activation, ACTIVATIONS) or f"; one of {', '.join(ACTIVATIONS)}"
            )
            raise Error(f"activation cannot be {self.activation!r}{near}")


def norm2d(width: int, eps: float) -> nn.BatchNorm2d:
    """The family's norm."""
    return nn.BatchNorm2d(width, eps=eps)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions, each with a batch norm, around a shortcut.

    A subclass puts something else into the middle by overriding `mix` (and leaving ``conv2``
    out), or another shortcut by overriding `shortcut`. Attribute names are the state-dict names.

    Args:
        channels: (in, out); the block is out/4 wide inside.
        stride: of the middle and of the shortcut.
        drop_path: this block's rate of stochastic depth.
        activation, norm_eps: as for `ResNetConfig`.
    """

    def __init__(
        self,
        channels: tuple[int, int],
        stride: int = 1,
        *,
        drop_path: float = 0.0,
        activation: str = "relu",
        norm_eps: float = 1e-5,
    ):
        super().__init__()
        outside, inner = channels[1], channels[1] // 4
        self.conv1 = nn.Conv2d(channels[0], inner, 1, bias=False)
        self.bn1 = norm2d(inner, norm_eps)
        self.conv2: nn.Module = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = norm2d(inner, norm_eps)
        self.conv3 = nn.Conv2d(inner, outside, 1, bias=False)
        self.bn3 = norm2d(outside, norm_eps)
        self.act = activation2d(activation)
        self.drop_path = DropPath(drop_path)
        self.downsample = nn.Sequential()
        if stride != 1 or channels[0] != outside:
            self.downsample.append(nn.Conv2d(channels[0], outside, 1, stride, bias=False))
            self.downsample.append(norm2d(outside, norm_eps))

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """[b c h w] to [b c' h' w']; records ``out``."""
        inner = self.act(self.bn1(self.conv1(x)))
        inner = self.act(self.bn2(self.mix(inner, tape)))
        # Masked, not skipped: batch norm's statistics are those of all samples.
        inner = self.drop_path(self.bn3(self.conv3(inner)))
        return record(tape, "out", self.act(inner + self.shortcut(x)))

    def mix(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """What mixes positions, at the block's inner width; carries the stride."""
        return self.conv2(x)

    def shortcut(self, x: Tensor) -> Tensor:
        """The block's input, or its projection where the shape changes."""
        return self.downsample(x)


def activation2d(name: str) -> nn.Module:
    """An activation for norms' outputs, in place where there is such a form: less memory."""
    return nn.ReLU(inplace=True) if name == "relu" else ACTIVATIONS[name]()


class ResNet(ImageClassifier):
    """A plain ResNet. See `ResNetConfig` and the module's head.

    Records, per forward: ``stem`` [b c h/4 w/4], ``stages.{s}.blocks.{j}.out`` [b c h w],
    ``pooled`` [b d], ``logits`` [b k].
    """

    config: ResNetConfig
    head_name = "fc"

    def __init__(self, config: ResNetConfig):
        super().__init__(config)
        c = config
        self.conv1 = nn.Conv2d(c.in_channels, c.stem_width, 7, 2, 3, bias=False)
        self.bn1 = norm2d(c.stem_width, c.norm_eps)
        self.act1 = activation2d(c.activation)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        channels, rates = c.stem_width, drop_path_rates(c.drop_path, c.depths)
        for stage, (depth, width) in enumerate(zip(c.depths, c.widths, strict=True)):
            blocks = nn.Sequential()
            for index in range(depth):
                blocks.append(self.make_block(stage, index, (channels, width), rates[stage][index]))
                channels = width
            self.add_module(f"layer{stage + 1}", blocks)
        self.fc = nn.Linear(channels, c.num_classes) if c.num_classes else nn.Identity()
        self.layers = sum(c.depths) + 1
        self.reset_parameters()

    def make_block(
        self, stage: int, index: int, channels: tuple[int, int], drop_path: float
    ) -> nn.Module:
        """Block ``index`` of ``stage`` (both from 0), from and to so many channels."""
        c = self.config
        return Bottleneck(
            channels,
            stage_stride(stage, index),
            drop_path=drop_path,
            activation=c.activation,
            norm_eps=c.norm_eps,
        )

    @property
    def stages(self) -> list[nn.Module]:
        """The stages, ``layer1`` first."""
        return [self.get_submodule(f"layer{i + 1}") for i in range(len(self.config.depths))]

    def forward(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        """Normalised images float [b c h w] to logits [b k]; records ``logits``."""
        return record(tape, "logits", self.fc(self.features(images, tape)))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as He et al. (2015): normal of the fan out; the head as PyTorch's Linear."""
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(part, nn.BatchNorm2d | nn.Linear):
                part.reset_parameters()
        for part in self.modules():
            if isinstance(part, Bottleneck):
                nn.init.zeros_(part.bn3.weight)

    def apply_numerics(self) -> None:
        """Make activations and batch norms compute as the config says."""
        c = self.config
        self.act1 = activation2d(c.activation)
        for part in list(self.modules()):
            if isinstance(part, Bottleneck):
                part.act = activation2d(c.activation)
            elif isinstance(part, nn.BatchNorm2d):
                part.eps = c.norm_eps

    def features(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        """Images float [b c h w] to [b d], the mean of the last map."""
        return record(tape, "pooled", self.maps(images, tape, last=True)[-1].mean(dim=(2, 3)))

    def maps(self, images: Tensor, tape: Tape | None = None, last: bool = False) -> list[Tensor]:
        """Images float [b c h w] to what leaves each stage, [b c h w], or the ``last`` alone."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(images))))
        x, maps = record(tape, "stem", x), []
        for stage, blocks in enumerate(self.stages):
            for index, block in enumerate(blocks.children()):
                x = self.through(block, x, inside(tape, f"stages.{stage}.blocks.{index}"))
            maps = [x] if last else [*maps, x]  # an earlier map is memory that nobody needs
        return maps

    def feature_maps(self, images: Tensor) -> FeatureMaps:
        """Images float [b c h w] to what leaves each stage, at strides 4, 8, 16, 32."""
        return FeatureMaps(self.maps(images), stage_strides(self.config.depths))

    def depth_of(self, parameter: str) -> int:
        """0 for the stem, i+1 for block i counted through all stages, `layers` for the head."""
        part, _, rest = parameter.partition(".")
        if not part.startswith("layer"):
            return self.layers if part == "fc" else 0
        stage = int(part.removeprefix("layer")) - 1
        return sum(self.config.depths[:stage]) + int(rest.split(".")[0]) + 1


VARIANTS: dict[str, dict[str, tuple[int, ...]]] = {
    "resnet50": {"depths": (3, 4, 6, 3)},
    "resnet101": {"depths": (3, 4, 23, 3)},
    "resnet152": {"depths": (3, 8, 36, 3)},
}
