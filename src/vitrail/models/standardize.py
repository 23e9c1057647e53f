"""Convolutions with weight standardisation (Qiao et al., 2019), as BiT and the hybrids have them.

What is special here: publishers put the eps in different places. BiT's code and timm divide by
sqrt(variance + eps), Google's JAX hybrids by deviation + eps; both are here (`EPS_ON`). So is
TensorFlow's SAME padding, which for an even input is one pixel more after than before.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.kit.errors import Error

EPS_ON = ("variance", "deviation")


def standardized(weight: Tensor, eps: float, eps_on: str) -> Tensor:
    """Each output channel's filter [o i h w] less its mean, over its deviation (the biased one).

    Args:
        eps_on: ``variance`` for sqrt(variance + eps), ``deviation`` for deviation + eps.
    """
    flat = weight.flatten(1)
    if eps_on == "variance":
        return F.layer_norm(flat, flat.shape[1:], eps=eps).view_as(weight)
    centred = flat - flat.mean(dim=1, keepdim=True)
    # As a norm, whose gradient at zero is zero: the square root's would be infinite for a filter
    # that is all alike. It is also several times faster than torch.var_mean.
    deviation = torch.linalg.vector_norm(centred, dim=1, keepdim=True) * flat.shape[1] ** -0.5
    return (centred / (deviation + eps)).view_as(weight)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """How much SAME padding a side of ``size`` pixels gets (before, after)."""
    whole = max(0, (-(-size // stride) - 1) * stride + kernel - size)
    return whole // 2, whole - whole // 2


def pad_same(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """[b c h w] with SAME padding for a square kernel."""
    rows = same_padding(x.shape[-2], kernel, stride)
    columns = same_padding(x.shape[-1], kernel, stride)
    return F.pad(x, (*columns, *rows), value=value) if any((*rows, *columns)) else x


class StandardizedConv2d(nn.Conv2d):
    """A square convolution without bias whose filters are standardised on the way.

    Args:
        channels: (in, out).
        eps, eps_on: as for `standardized`.
        same: SAME padding; otherwise half the kernel on every side.
    """

    def __init__(
        self,
        channels: tuple[int, int],
        kernel: int,
        stride: int = 1,
        *,
        eps: float,
        eps_on: str = "variance",
        same: bool = False,
    ):
        # At stride 1 the two paddings are the same, and this one costs no copy.
        self.pads_itself = same and stride > 1
        padding = 0 if self.pads_itself else kernel // 2
        super().__init__(*channels, kernel, stride, padding, bias=False)
        self.eps = eps
        self.eps_on = eps_on

    def forward(self, input: Tensor) -> Tensor:
        """[b i h w] to [b o h' w']."""
        if self.pads_itself:
            input = pad_same(input, self.kernel_size[0], self.stride[0])
        weight = standardized(self.weight, self.eps, self.eps_on)
        return F.conv2d(input, weight, None, self.stride, self.padding)

    def extra_repr(self) -> str:
        """The convolution's, and where the eps is."""
        return f"{super().extra_repr()}, eps={self.eps} on {self.eps_on}"


GROUPS = 32


def group_norm(width: int, eps: float) -> nn.GroupNorm:
    """GroupNorm of 32 groups, as in every published model of these families."""
    return nn.GroupNorm(GROUPS, width, eps=eps)


def numerics_of(config: Any) -> dict[str, Any]:
    """The numerics of standardised convolutions that a config holds, for their constructor."""
    return {"eps": config.standardize_eps, "eps_on": config.standardize_eps_on}


def check_eps_on(value: str) -> None:
    """Raise an Error unless this is a place for the eps."""
    if value not in EPS_ON:
        raise Error(f"standardize_eps_on is one of {', '.join(EPS_ON)}, not {value!r}")


def apply_standardization(model: nn.Module, config: Any) -> None:
    """Set the eps of a built model's standardised convolutions and GroupNorms to the config's."""
    for part in model.modules():
        if isinstance(part, StandardizedConv2d):
            part.eps, part.eps_on = config.standardize_eps, config.standardize_eps_on
        elif isinstance(part, nn.GroupNorm):
            part.eps = config.group_norm_eps


class Projection(nn.Module):
    """A shortcut whose shape changes: a 1x1 convolution, and a norm where one is given.

    Args:
        channels: (in, out).
        norm: what follows the convolution.
        **how: `StandardizedConv2d`'s eps, eps_on and same.
    """

    def __init__(
        self, channels: tuple[int, int], stride: int, norm: nn.Module | None = None, **how: Any
    ):
        super().__init__()
        self.conv = StandardizedConv2d(channels, 1, stride, **how)
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, x: Tensor) -> Tensor:
        """[b i h w] to [b o h' w']."""
        return self.norm(self.conv(x))
