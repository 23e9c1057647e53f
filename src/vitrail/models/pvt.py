"""The Pyramid Vision Transformer (Wang et al., "Pyramid Vision Transformer", arXiv 2102.12122).

Four stages, each on a grid half as fine. Every stage cuts patches and adds a learned table, which
is resized bilinearly at other sizes; the last has a class token. State-dict names are the authors'
(classification/pvt.py). What does not fill a patch at the border is not seen, as there.
"""

import re
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor, nn

from vitrail.kit.errors import Error
from vitrail.kit.grid import resize_table
from vitrail.models.base import height_width
from vitrail.models.pyramid import Grid, Pyramid, PyramidConfig, reset_linear_and_norm
from vitrail.models.tape import Tape, record


@dataclass(frozen=True, kw_only=True)
class PVTConfig(PyramidConfig):
    """A PVT, whole; see `PyramidConfig`. The last stage, with its class token, is not reduced."""

    def __post_init__(self):
        super().__post_init__()
        if self.reductions[-1] != 1:
            raise Error("the last stage has a class token and cannot be reduced: end with 1")


class PyramidVisionTransformer(Pyramid):
    """PVT. See `PVTConfig` for the choices and the module's head for the conventions.

    Records, per forward: ``patches`` [b n d] (the first stage's, before positions),
    ``stages.{s}.blocks.{j}.attention`` [b h n m], ``….mlp.hidden``, ``….out`` [b n d] (the last
    stage's sequence begins with the class token), ``normed``, ``pooled`` [b d], ``logits`` [b k].
    """

    config: PVTConfig
    convolved = False

    def __init__(self, config: PVTConfig):
        super().__init__(config)
        c, self._grids = config, config.grids(height_width(config.image_size))
        for stage, (rows, columns) in enumerate(self._grids):
            table = torch.zeros(1, rows * columns + self._prefix(stage), c.widths[stage])
            self.add_module(f"patch_embed{stage + 1}", self._embedding(stage))
            self.register_parameter(f"pos_embed{stage + 1}", nn.Parameter(table))
            self.add_module(f"block{stage + 1}", self._blocks(stage))
        self.pos_drop = nn.Dropout(c.dropout)
        self.norm = nn.LayerNorm(c.widths[-1])
        self.cls_token = nn.Parameter(torch.zeros(1, 1, c.widths[-1]))
        self.head = self._head()
        self.apply_numerics()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise as the authors do: linear layers, tables and token normal with 0.02."""
        reset_linear_and_norm(self)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                part.reset_parameters()
        for parameter in self.parameters(recurse=False):
            nn.init.trunc_normal_(parameter, std=0.02)

    def embed(self, stage: int, picture: Tensor, grid: Grid, tape: Tape | None) -> Tensor:
        """The map [b c h w] that a stage begins with to its tokens, with their positions."""
        x = getattr(self, f"patch_embed{stage + 1}")(picture)
        if stage == 0:
            record(tape, "patches", x)
        prefix = self._prefix(stage)
        if prefix:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        table = getattr(self, f"pos_embed{stage + 1}")
        return self.pos_drop(x + resize_table(table, self._grids[stage], grid, "bilinear", prefix))

    def blocks_of(self, stage: int) -> nn.ModuleList:
        """The blocks of a stage."""
        return getattr(self, f"block{stage + 1}")

    def pool(self, x: Tensor, tape: Tape | None) -> Tensor:
        """The last stage's tokens [b 1+n d] to the normed class token [b d]."""
        return record(tape, "normed", self.norm(x))[:, 0]

    def place(self, parameter: str) -> tuple[int, int] | None:
        """A parameter's stage and block (-1: embedding, table, token); None for norm and head."""
        if parameter == "cls_token":
            return len(self.config.depths) - 1, -1
        found = re.match(r"(?:patch_embed|pos_embed|block)(\d+)(?:\.(\d+)\.)?", parameter)
        return found and (int(found[1]) - 1, int(found[2] or -1))

    def refit(self, name: str, tensor: Tensor) -> tuple[Tensor, str] | None:
        """A file's position table of a square grid, resized; see `ImageClassifier`."""
        found = re.fullmatch(r"pos_embed(\d+)", name)
        if not found or tensor.ndim != 3 or tensor.shape[0] != 1:
            return None
        stage = int(found[1]) - 1
        prefix, grid = self._prefix(stage), self._grids[stage]
        side = isqrt(max(0, tensor.shape[1] - prefix))
        if not side or prefix + side**2 != tensor.shape[1]:
            return None
        resized = resize_table(tensor, (side, side), grid, "bilinear", prefix)
        return resized, f"{side}x{side} -> {grid[0]}x{grid[1]}, bilinear"

    def _prefix(self, stage: int) -> int:
        return int(stage == len(self.config.depths) - 1)


SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    # the paper's Table 1: blocks in each stage
    "tiny": {"depths": (2, 2, 2, 2)},
    "small": {"depths": (3, 4, 6, 3)},
    "medium": {"depths": (3, 4, 18, 3)},
    "large": {"depths": (3, 8, 27, 3)},
}
