"""BoTNet (Srinivas et al., "Bottleneck Transformers for Visual Recognition", arXiv 2101.11605).

A ResNet whose last stage has attention over the whole map in place of its 3x3 convolutions. What
is special here: queries are scaled before both of their products, with keys and with the tables of
relative positions (one a direction, shared by the heads); attention has no projection after it; in
a block of stride 2 the map is averaged after attention; and the projected shortcut of such a block
ends in an activation, as in the authors' published block. In the T-models convolution blocks have
squeeze-and-excitation and the activation is SiLU. The authors published no weights; names are the
ResNet's, with ``attn.{qkv,rel_height,rel_width}`` or ``attn.{abs_height,abs_width}`` in the place
of ``conv2`` and ``se.{fc1,fc2}``. Any picture size: tables are resized linearly along their axis.
With ``last_stage="convolution"`` it is the ResNet that BoTNet is compared with, weight for weight.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from vitrail.kit.errors import Error, did_you_mean
from vitrail.models.base import FeatureMaps, height_width
from vitrail.models.parts import attend
from vitrail.models.resnet import Bottleneck, ResNet, ResNetConfig
from vitrail.models.stages import stage_stride, stage_strides
from vitrail.models.tape import Tape, record

POSITIONS = ("relative", "absolute", "none")
LAST_STAGES = ("attention", "convolution")


@dataclass(frozen=True, kw_only=True)
class BoTNetConfig(ResNetConfig):
    """A BoTNet, whole; see `ResNetConfig` for the rest.

    Args:
        last_stage: whether it has ``attention``, or is a ResNet's by ``convolution`` too.
        heads: of the attention in the last stage.
        attention_stride: of the last stage: 2, or 1 for the paper's S1 variants.
        position: ``relative``, or the paper's ablations: ``absolute`` adds one table a direction
            to the keys, ``none`` leaves the content alone.
        squeeze: how wide squeeze-and-excitation is inside, as a share of the width that leaves a
            convolution block; 0 for none.
    """

    last_stage: str = "attention"
    heads: int = 4
    attention_stride: int = 2
    position: str = "relative"
    squeeze: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        for name, known in (("position", POSITIONS), ("last_stage", LAST_STAGES)):
            word = getattr(self, name)
            if word not in known:
                near = did_you_mean(word, known) or f"; one of {', '.join(known)}"
                raise Error(f"{name} cannot be {word!r}{near}")
        if self.heads < 1 or self.widths[-1] // 4 % self.heads:
            raise Error(f"{self.heads} heads do not divide a width of {self.widths[-1] // 4}")
        if self.attention_stride not in (1, 2):
            raise Error(f"attention_stride is 1 or 2, not {self.attention_stride}")
        if not 0 <= self.squeeze <= 1:
            raise Error(f"squeeze is a share from 0 to 1, not {self.squeeze}")
        if len(self.depths) < 2:
            raise Error("a BoTNet has a stage of convolutions before that of attention")

    def attends(self, stage: int) -> bool:
        """Whether a stage's blocks have attention."""
        return stage == len(self.depths) - 1 and self.last_stage == "attention"

    def stride(self, stage: int, index: int) -> int:
        """The stride of a block."""
        if stage == len(self.depths) - 1:
            return 1 if index else self.attention_stride
        return stage_stride(stage, index)

    def grids(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """The (rows, columns) over which each block of the last stage attends."""
        before = stage_strides(self.depths)[-2]
        rows, columns = (-(-side // before) for side in size)
        by = self.attention_stride
        after = (-(-rows // by), -(-columns // by))
        return [(rows, columns)] + [after] * (self.depths[-1] - 1)


class MapAttention(nn.Module):
    """Attention over all places of a map, with positions by row and by column.

    Args:
        width, heads: channels and h.
        grid: (rows, columns) that the tables are made for.
        position: one of `POSITIONS`.
    """

    def __init__(self, width: int, heads: int, grid: tuple[int, int], position: str):
        super().__init__()
        self.heads, self.position = heads, position
        inner = width // heads
        self.scale = inner**-0.5
        self.qkv = nn.Conv2d(width, 3 * width, 1, bias=False)
        rows, columns = grid
        if position == "relative":
            self.rel_height = nn.Parameter(torch.zeros(2 * rows - 1, inner))
            self.rel_width = nn.Parameter(torch.zeros(2 * columns - 1, inner))
        elif position == "absolute":
            self.abs_height = nn.Parameter(torch.zeros(rows, inner))
            self.abs_width = nn.Parameter(torch.zeros(columns, inner))

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """q, k and v normal with 0.01, tables with e**-0.5 (the authors' block, as intended)."""
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, std=0.01 if name == "qkv.weight" else self.scale)

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """[b c rows columns] to the same shape; records ``attention`` [b h n n]."""
        grid = (x.shape[-2], x.shape[-1])
        pattern = "b (three h e) x y -> three b h (x y) e"
        # Copied, because fused attention wants each place's numbers side by side.
        split = rearrange(self.qkv(x), pattern, three=3, h=self.heads).contiguous()
        query, key, value = split.unbind(0)
        if self.position == "absolute":
            key = key + self._absolute(grid)
        if self.position == "relative":
            mixed = self._attend(query, key, value, grid, tape)
        else:
            mixed = attend(query, key, value, self.scale, tape)
        return rearrange(mixed, "b h (x y) e -> b (h e) x y", x=grid[0])

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, grid: tuple[int, int], tape: Tape | None
    ) -> Tensor:
        """Attention over [b h n e] with relative positions beside the content."""
        positions = self._relative(query * self.scale, grid)
        if tape is None or not tape.wants("attention"):
            return F.scaled_dot_product_attention(
                query, key, value, attn_mask=positions, scale=self.scale
            )
        logits = query * self.scale @ key.transpose(-2, -1) + positions
        return record(tape, "attention", logits.softmax(dim=-1)) @ value

    def _relative(self, query: Tensor, grid: tuple[int, int]) -> Tensor:
        """What scaled queries [b h n e] say of relative places: [b h n n]."""
        rows, columns = grid
        picture = rearrange(query, "b h (x y) e -> b h x y e", x=rows)
        height, width = by_distance(self.rel_height, rows), by_distance(self.rel_width, columns)
        vertical = torch.einsum("bhxye,xie->bhxyi", picture, height)[..., :, None]
        horizontal = torch.einsum("bhxye,yje->bhxyj", picture, width)[..., None, :]
        return rearrange(vertical + horizontal, "b h x y i j -> b h (x y) (i j)")

    def _absolute(self, grid: tuple[int, int]) -> Tensor:
        """The tables' sum at every place, [n e]."""
        height, width = resized(self.abs_height, grid[0]), resized(self.abs_width, grid[1])
        return (height[:, None] + width).flatten(0, 1)


def by_distance(table: Tensor, length: int) -> Tensor:
    """A table of distances [2L-1 e] as [l l e]: entry (i, j) is that of j - i, resized to l."""
    places = torch.arange(length, device=table.device)
    return resized(table, 2 * length - 1)[places - places[:, None] + length - 1]


def resized(table: Tensor, rows: int) -> Tensor:
    """A table [r e] with another number of rows, interpolated linearly, centre upon centre."""
    if table.shape[0] == rows:
        return table
    work = table if table.dtype == torch.float64 else table.float()
    return F.interpolate(work.T[None], rows, mode="linear")[0].T.to(table.dtype)


class AttentionBottleneck(Bottleneck):
    """A bottleneck with attention in the middle; with stride 2 the map is averaged after it."""

    def __init__(
        self,
        channels: tuple[int, int],
        stride: int,
        heads: int,
        grid: tuple[int, int],
        position: str,
        **rest: Any,
    ):
        super().__init__(channels, stride, **rest)
        del self.conv2
        self.stride = stride
        self.attn = MapAttention(channels[1] // 4, heads, grid, position)

    def mix(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """[b c h w] to [b c h' w']; records ``attention`` [b h n n], n before the averaging."""
        x = self.attn(x, tape)
        # At an odd border the mean is over what is there, as TensorFlow's "same" pooling has it.
        return x if self.stride == 1 else F.avg_pool2d(x, 2, ceil_mode=True)

    def shortcut(self, x: Tensor) -> Tensor:
        """The block's input, or its activated projection where the shape changes."""
        return self.act(self.downsample(x)) if len(self.downsample) else x


class SqueezeExcite(nn.Module):
    """A gate for each channel from the mean of the map (Hu et al., 2018)."""

    def __init__(self, width: int, inside: int):
        super().__init__()
        self.fc1 = nn.Conv2d(width, inside, 1)
        self.fc2 = nn.Conv2d(inside, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[b c h w] to the same shape."""
        return x * self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class ExcitedBottleneck(Bottleneck):
    """A bottleneck whose branch is gated before it is added."""

    def __init__(self, channels: tuple[int, int], stride: int, inside: int, **rest: Any):
        super().__init__(channels, stride, **rest)
        self.se = SqueezeExcite(channels[1], inside)

    def forward(self, x: Tensor, tape: Tape | None = None) -> Tensor:
        """[b c h w] to [b c' h' w']; records ``out``."""
        inner = self.act(self.bn1(self.conv1(x)))
        inner = self.act(self.bn2(self.mix(inner, tape)))
        inner = self.drop_path(self.se(self.bn3(self.conv3(inner))))
        return record(tape, "out", self.act(inner + self.shortcut(x)))


class BoTNet(ResNet):
    """A BoTNet. See `BoTNetConfig` and the module's head.

    Records what a `ResNet` does, and ``stages.{last}.blocks.{j}.attention`` [b h n n].
    """

    def make_block(
        self, stage: int, index: int, channels: tuple[int, int], drop_path: float
    ) -> nn.Module:
        """Block ``index`` of ``stage`` (both from 0), from and to so many channels."""
        c = cast(BoTNetConfig, self.config)
        stride = c.stride(stage, index)
        rest = {"drop_path": drop_path, "activation": c.activation, "norm_eps": c.norm_eps}
        if c.attends(stage):
            grid = c.grids(height_width(c.image_size))[index]
            return AttentionBottleneck(channels, stride, c.heads, grid, c.position, **rest)
        if c.squeeze:
            inside = max(1, round(channels[1] * c.squeeze))
            return ExcitedBottleneck(channels, stride, inside, **rest)
        return Bottleneck(channels, stride, **rest)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """As a ResNet begins; attention and its tables as in the authors' block."""
        super().reset_parameters()
        for part in self.modules():
            if isinstance(part, MapAttention):
                part.reset_parameters()

    def refit(self, name: str, tensor: Tensor) -> tuple[Tensor, str] | None:
        """A table of positions made for another size; see `ImageClassifier`."""
        own = dict(self.named_parameters()).get(name)
        table = name.rpartition(".")[2].startswith(("rel_", "abs_"))
        if not table or own is None or tensor.ndim != 2 or tensor.shape[1] != own.shape[1]:
            return None
        return resized(tensor, len(own)), f"{len(tensor)} -> {len(own)} rows, linear"

    def feature_maps(self, images: Tensor) -> FeatureMaps:
        """Images float [b c h w] to what leaves each stage, at strides 4, 8, 16 and 32 (S1: 16)."""
        strides = stage_strides(self.config.depths)
        strides[-1] = strides[-2] * cast(BoTNetConfig, self.config).attention_stride
        return FeatureMaps(self.maps(images), strides)


_T = {"attention_stride": 1, "squeeze": 0.0625, "activation": "silu"}
VARIANTS: dict[str, dict[str, Any]] = {
    "botnet50_224": {},
    "botnet50_s1_224": {"attention_stride": 1},
    "botnet_t3_224": {**_T, "depths": (3, 4, 6, 6)},
    "botnet_t4_224": {**_T, "depths": (3, 4, 23, 6)},
    "botnet_t5_256": {**_T, "depths": (3, 4, 23, 12), "image_size": 256},
    "botnet_t6_320": {**_T, "depths": (3, 4, 6, 12), "image_size": 320},
    "botnet_t7_384": {**_T, "depths": (3, 4, 23, 12), "image_size": 384},
}
