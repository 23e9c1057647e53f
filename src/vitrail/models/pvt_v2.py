"""PVT v2 (Wang et al., "PVT v2: Improved Baselines with Pyramid Vision Transformer", 2106.13797).

Beside PVT: embeddings overlap, a depthwise convolution in the MLP takes the place of the position
tables, the pooling is a mean, every stage ends in a norm, and the linear form pools keys and
values to 7x7. State-dict names are timm's, which renames the authors' (classification/pvt_v2.py).
"""

import re
from dataclasses import dataclass
from math import sqrt
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitrail.models.pyramid import (
    Grid,
    PatchEmbed,
    Pyramid,
    PyramidConfig,
    reset_linear_and_norm,
)
from vitrail.models.tape import Tape, record


@dataclass(frozen=True, kw_only=True)
class PVTv2Config(PyramidConfig):
    """A PVT v2, whole; see `PyramidConfig`.

    Args:
        linear: pool keys and values to 7x7 instead of reducing them (the paper's linear SRA);
            ``reductions`` then mean nothing.
    """

    linear: bool = False

    def _side(self, pixels: int, stride: int) -> int:
        return -(-pixels // stride)  # the embeddings pad

    def _least(self, stride: int, reduction: int) -> int:
        return 1 if self.linear else stride * (reduction - 1) + 1


class PyramidStage(nn.Module):
    """The parts of one stage of PVT v2, under timm's names."""

    def __init__(self, downsample: PatchEmbed | None, blocks: nn.ModuleList, width: int):
        super().__init__()
        if downsample is not None:
            self.downsample = downsample
        self.blocks = blocks
        self.norm = nn.LayerNorm(width)


class PyramidVisionTransformerV2(Pyramid):
    """PVT v2. See `PVTv2Config` for the choices and the module's head for the conventions.

    Records, per forward: ``patches`` [b n d], ``stages.{s}.blocks.{j}.attention`` [b h n m],
    ``….mlp.hidden``, ``….out`` [b n d], ``pooled`` [b d], ``logits`` [b k].
    """

    config: PVTv2Config
    convolved = True

    def __init__(self, config: PVTv2Config):
        super().__init__(config)
        self.patch_embed = self._embedding(0)
        self.stages = nn.ModuleList(
            PyramidStage(
                self._embedding(stage) if stage else None, self._blocks(stage, config.linear), width
            )
            for stage, width in enumerate(config.widths)
        )
        self.head = self._head()
        self.apply_numerics()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as the authors do: linear layers 0.02, convolutions by their fan-out."""
        reset_linear_and_norm(self)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                fan_out = part.weight[0, 0].numel() * part.out_channels // part.groups
                nn.init.normal_(part.weight, std=sqrt(2 / fan_out))
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def embed(self, stage: int, picture: Tensor, grid: Grid, tape: Tape | None) -> Tensor:
        """The map [b c h w] that a stage begins with to its tokens [b n d]."""
        if stage:
            return self._stage(stage).downsample(picture)
        return record(tape, "patches", self.patch_embed(picture))

    def blocks_of(self, stage: int) -> nn.ModuleList:
        """The blocks of a stage."""
        return self._stage(stage).blocks

    def finish(self, stage: int, x: Tensor) -> Tensor:
        """A stage's norm."""
        return self._stage(stage).norm(x)

    def pool(self, x: Tensor, tape: Tape | None) -> Tensor:
        """The last stage's tokens [b n d] to their mean [b d]."""
        return x.mean(dim=1)

    def _stage(self, stage: int) -> PyramidStage:
        return cast(PyramidStage, self.stages[stage])

    def place(self, parameter: str) -> tuple[int, int] | None:
        """A parameter's stage and block (-1: the embedding); None for the head."""
        if parameter.startswith("patch_embed."):
            return 0, -1
        found = re.match(r"stages\.(\d+)\.(downsample|blocks|norm)(?:\.(\d+)\.)?", parameter)
        if not found:
            return None
        stage, last = int(found[1]), self.config.depths[int(found[1])] - 1
        return stage, {"downsample": -1, "norm": last}.get(found[2], int(found[3] or 0))


SIZES: dict[str, dict[str, Any]] = {
    # the paper's Table 1
    "b0": {"depths": (2, 2, 2, 2), "widths": (32, 64, 160, 256)},
    "b1": {"depths": (2, 2, 2, 2)},
    "b2": {"depths": (3, 4, 6, 3)},
    "b2_li": {"depths": (3, 4, 6, 3), "linear": True},
    "b3": {"depths": (3, 4, 18, 3)},
    "b4": {"depths": (3, 8, 27, 3)},
    "b5": {"depths": (3, 6, 40, 3), "mlp_ratios": (4, 4, 4, 4)},
}
