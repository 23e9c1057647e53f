"""Batch norm over several processes: the statistics are those of the pictures of all of them.

On CUDA this is torch's `SyncBatchNorm`. That has no implementation for the CPU, so there this
module computes the same: the mean over all processes, then the mean of the squared distances from
it, each summed over the processes with gradients flowing back through the sums.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class SharedBatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d` whose training statistics are of all processes' pictures.

    Args:
        norm: the one to take the place of; its parameters and buffers are kept.
        summed: the sum over processes of a tensor, through which gradients flow.
    """

    def __init__(self, norm: nn.BatchNorm2d, summed: Callable[[Tensor], Tensor]):
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.summed = summed
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """[b c h w] to the same shape."""
        if not self.training:
            return super().forward(input)
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        places = x.numel() // x.shape[1]
        sums = self.summed(torch.cat([x.sum((0, 2, 3)), x.new_tensor([places])]))
        count, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()
        distance = x - mean[:, None, None]
        variance = self.summed((distance * distance).sum((0, 2, 3))) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (distance * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        if self.running_mean is None or self.running_var is None or self.momentum is None:
            raise TypeError("a batch norm with running statistics and a momentum is expected")
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def share_statistics(
    model: nn.Module, device: torch.device, summed: Callable[[Tensor], Tensor]
) -> None:
    """Let every batch norm of a model see the pictures of all processes; names stay the same."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                shared = (
                    SharedBatchNorm(child, summed)
                    if device.type == "cpu"
                    else nn.SyncBatchNorm.convert_sync_batchnorm(child)
                )
                setattr(parent, name, shared)


def statistics_of(model: nn.Module) -> list[Tensor]:
    """What the forward pass of training changes in a model: its batch norms' buffers."""
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm)]
    return [buffer for norm in norms for buffer in norm.buffers()]
