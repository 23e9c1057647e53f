"""LAMB (You et al., arXiv 1904.00962): Adam's step, scaled for each tensor by the size of its
weights.

As in the fused implementation that DeiT-III was trained with (apex FusedLAMB): bias-corrected
moments, weight decay inside the step, and no scaling of tensors without weight decay. That one
clips the gradient's global norm to 1 by itself; here that is `optim.clip_norm`.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, optim


class LAMB(optim.Optimizer):
    """One step is: u = m / (sqrt(v) + eps) + decay * w;  w <- w - lr * |w| / |u| * u.

    m and v are Adam's moments with their bias corrected. The ratio is 1 where either norm is 0,
    and for tensors without decay.

    Args:
        parameters: tensors, or groups of them.
        lr, betas, eps: as of Adam.
        weight_decay: a part of u, and so scaled with it.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyrefly: ignore
        """Take a step with the gradients as they are.

        Args:
            closure: computes the loss again; what it returns is given back.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step(group, parameters)
        return loss

    def _step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        gradients = [p.grad for p in parameters if p.grad is not None]
        states = [self._state(p) for p in parameters]
        first = [state["exp_avg"] for state in states]
        second = [state["exp_avg_sq"] for state in states]
        for state in states:
            state["step"] += 1
        b1, b2 = group["betas"]
        torch._foreach_lerp_(first, gradients, 1 - b1)
        torch._foreach_mul_(second, b2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - b2)
        counts = [float(state["step"]) for state in states]
        scales = torch._foreach_div(second, [1 - b2**count for count in counts])
        torch._foreach_sqrt_(scales)
        torch._foreach_add_(scales, group["eps"])
        updates = torch._foreach_div(first, [1 - b1**count for count in counts])
        torch._foreach_div_(updates, scales)
        if group["weight_decay"]:
            torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
            sizes = zip(torch._foreach_norm(parameters), torch._foreach_norm(updates), strict=True)
            ratios = [torch.where((w > 0) & (u > 0), w / u, torch.ones_like(w)) for w, u in sizes]
            torch._foreach_mul_(updates, ratios)
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        return state
