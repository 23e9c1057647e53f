"""The engine: devices and precision. The loop reads as if there were neither.

The one place that will know of processes; today it is one process on one device.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn, optim

from vitrail.kit.devices import pick_device

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Engine:
    """Places tensors, runs the forward pass in the asked precision, takes the step.

    Args:
        device: ``cpu``, ``cuda``, or None for the best that is there.
        precision: ``fp32``, ``fp64``, or ``bf16``/``fp16`` for autocast over float32 weights.

    Raises:
        Error: a device that this machine has not.
    """

    def __init__(self, device: str | None, precision: str):
        self.device = pick_device(device)
        self.precision = precision
        self.dtype = torch.float64 if precision == "fp64" else torch.float32
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

    @property
    def name(self) -> str:
        """The device in words."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        threads = torch.get_num_threads()
        return f"CPU, {threads} thread{'s' if threads > 1 else ''}"

    def place(self, tensor: Tensor) -> Tensor:
        """A tensor on the device; floating point in the weights' precision."""
        dtype = self.dtype if tensor.is_floating_point() else None
        return tensor.to(self.device, dtype, non_blocking=True)

    @contextlib.contextmanager
    def forward(self) -> Iterator[None]:
        """The context of a forward pass."""
        dtype = AUTOCAST.get(self.precision)
        with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
            yield

    def backward(self, loss: Tensor) -> None:
        """Gradients of a loss."""
        self.scaler.scale(loss).backward()

    def step(
        self, parameters: list[nn.Parameter], optimizer: optim.Optimizer, clip_norm: float | None
    ) -> float:
        """Clip and apply the gradients, and forget them.

        Returns:
            The global norm before clipping. Where it is not finite the weights are left as they
            were.
        """
        self.scaler.unscale_(optimizer)
        limit = float("inf") if clip_norm is None else clip_norm
        norm = float(nn.utils.clip_grad_norm_(parameters, limit))
        if norm == norm and norm != float("inf"):
            self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return norm
