"""An exponential moving average of the weights, with a decay that warms up.

A constant decay of 0.9999 would keep a third of the random start in the average of a run of ten
thousand steps; here the decay of step t is min(decay, (1 + t) / (10 + t)), so that the average
always covers about the last tenth of a short run and the average of a long one is the usual one.
Without that warm-up it is Polyak averaging as the ViT paper has it, which starts from pre-trained
weights and not from random ones.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class EMA:
    """The average of a model's parameters; buffers are taken as they are.

    Args:
        model: whose parameters to follow.
        decay: the largest decay.
        warmup: whether the decay grows up to that; else it is the same from the first step on.
    """

    def __init__(self, model: nn.Module, decay: float, warmup: bool = True):
        self.decay = decay
        self.warmup = warmup
        self.followed: dict[str, Tensor] = dict(model.named_parameters())
        self.average = {name: p.detach().clone() for name, p in self.followed.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step ``step`` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay
        averages, followed = map(_local, (self.average, self.followed))
        torch._foreach_lerp_(averages, followed, 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Within this block the model has the averaged weights."""
        own = {name: parameter.data for name, parameter in self.followed.items()}
        try:
            for name, parameter in self.followed.items():
                parameter.data = self.average[name]
            yield
        finally:
            for name, parameter in self.followed.items():
                parameter.data = own[name]

    @contextlib.contextmanager
    def exchanged(self) -> Iterator[None]:
        """The same as `applied` where weights are shared out: those are gathered from where they
        lie in memory, so what lies there is exchanged, and exchanged back.
        """
        own, averages = _local(self.followed), _local(self.average)
        kept = [tensor.detach().clone() for tensor in own]
        try:
            with torch.no_grad():
                torch._foreach_copy_(own, averages)
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(own, kept)

    def state(self) -> dict[str, Tensor]:
        """The averaged tensors by parameter name."""
        return self.average

    def load(self, state: dict[str, Tensor]) -> None:
        """The inverse of `state`."""
        for name, tensor in self.average.items():
            tensor.copy_(state[name])


def _local(tensors: dict[str, Tensor]) -> list[Tensor]:
    """The tensors, or this process's shares of them where they are shared out."""
    return [
        tensor.to_local() if hasattr(tensor, "to_local") else tensor for tensor in tensors.values()
    ]
