"""What networks of residual stages have in common: their checks, strides and rates of drop path.

A stage halves the map and widens it; the first one keeps what the stem left, a quarter of the
picture's sides.
"""

from typing import Any

from torch import nn

from vitrail.kit.errors import Error
from vitrail.models.base import check_fields


def check_stages(config: Any, multiple_of: int) -> None:
    """Check what every network of bottleneck stages has in common, lists made into tuples.

    Args:
        config: has depths, widths, stem_width, num_classes, in_channels and drop_path.
        multiple_of: what the widths must be multiples of.

    Raises:
        Error: values that do not go together.
    """
    for name in ("depths", "widths"):
        values = tuple(getattr(config, name))
        if not all(isinstance(value, int) and value > 0 for value in values):
            raise Error(f"{name} must be whole numbers above 0, not {list(values)}")
        object.__setattr__(config, name, values)
    if len(config.depths) != len(config.widths):
        raise Error(f"{len(config.depths)} depths for {len(config.widths)} widths: one a stage")
    for width in config.widths:
        if width % multiple_of:
            raise Error(f"a width must be a multiple of {multiple_of}, not {width}")
    check_fields(config, positive=("stem_width",))


def stage_stride(stage: int, index: int) -> int:
    """The stride of a block: 2 for the first of every stage but the first."""
    return 2 if stage and not index else 1


def stage_strides(depths: tuple[int, ...]) -> list[int]:
    """The stride, in input pixels, of what leaves each stage."""
    return [4 * 2**stage for stage in range(len(depths))]


def drop_path_rates(rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Each block's rate by stage: from 0 for the first to ``rate`` for the last of them all."""
    steps = max(1, sum(depths) - 1)
    begins = [sum(depths[:stage]) for stage in range(len(depths))]
    return [
        [rate * (begin + index) / steps for index in range(depth)]
        for begin, depth in zip(begins, depths, strict=True)
    ]


class Stage(nn.Module):
    """The blocks of one stage, under timm's name for them."""

    def __init__(self, blocks: list[nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
