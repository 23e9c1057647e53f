"""What is alive during a training step, counted tensor by tensor: no allocator has a say in it."""

import weakref

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class Live(TorchDispatchMode):
    """Counts the bytes of the storages that live, and the most there were at once.

    Works with real tensors and with fake ones. What an operation uses inside is not seen.
    """

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self._known: dict[int, weakref.finalize] = {}

    def note(self, tensor: Tensor) -> Tensor:
        """Count a tensor's storage, once."""
        storage = tensor.untyped_storage()
        if id(storage) not in self._known:
            size = storage.nbytes()
            forget = weakref.finalize(storage, self._forget, id(storage), size)
            self._known[id(storage)] = forget
            self.bytes += size
            self.peak = max(self.peak, self.bytes)
        return tensor

    def _forget(self, key: int, size: int) -> None:
        del self._known[key]
        self.bytes -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.note, made)
        return made


def peak_of_steps(
    model: nn.Module, images: Tensor, optimizer: torch.optim.Optimizer, live: Live, step
) -> int:
    """The most bytes alive in two steps, the model's own and the batch's among them."""
    for tensor in [*model.parameters(), *model.buffers(), images]:
        live.note(tensor)
    with live:
        for _ in range(2):
            step(model, images, optimizer)
    return live.peak
