"""LoRA (Hu et al., arXiv 2106.09685): frozen matrices with low-rank additions that are trained.

An addition lives inside the linear layer that it adds to, whose own weight keeps its name, so
that nothing else in a model changes. `merged` and `merge` make it plain again: what is saved and
used has no trace of it.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrail.kit.errors import Error
from vitrail.models.base import ImageClassifier


class LoRALinear(nn.Linear):
    """A frozen linear layer plus ``alpha / rank`` times two narrow trained ones in a row.

    Args:
        linear: the layer; its weight and bias are taken over, not copied.
        rank: of the addition.
        alpha: its size.
        generator: draws the first of the two; the second begins at zero, and so does the addition.
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator):
        nn.Module.__init__(self)  # not Linear's: there is nothing to make and to initialise
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = alpha / rank
        bound = 1 / math.sqrt(self.in_features)
        down = torch.rand(rank, self.in_features, generator=generator) * 2 * bound - bound
        self.lora_down = nn.Parameter(down.to(self.weight))
        self.lora_up = nn.Parameter(self.weight.new_zeros(self.out_features, rank))

    def forward(self, input: Tensor) -> Tensor:
        """[... in] to [... out]."""
        addition = F.linear(F.linear(input, self.lora_down), self.lora_up)
        return super().forward(input) + self.scale * addition

    def plain(self) -> nn.Linear:
        """One linear layer that computes the same."""
        with torch.no_grad():
            whole = self.weight + self.scale * (self.lora_up @ self.lora_down)
        linear = nn.Linear(
            self.in_features, self.out_features, bias=self.bias is not None, device="meta"
        )
        linear.weight = nn.Parameter(whole)
        linear.bias = self.bias
        return linear.train(self.training)


def add_lora(
    model: ImageClassifier, rank: int, alpha: float, mlp: bool = False, seed: int = 0
) -> list[str]:
    """Give the attention matrices of every block (and the MLPs') additions, and freeze the rest.

    Only the additions are left to be trained; unfreeze the head as well.

    Args:
        model: of any family with attention; changed in place.
        rank, alpha: see `LoRALinear`.
        mlp: whether the two layers of every MLP get additions too.
        seed: of their first values.

    Returns:
        The names of the layers that got one.

    Raises:
        Error: the model has no attention with matrices.
    """
    inside = ("attn", "mlp") if mlp else ("attn",)
    names = [
        name
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and any(word in inside for word in name.split(".")[:-1])
    ]
    if not names:
        raise Error(
            f"LoRA adds to the matrices of attention, and a {type(model).__name__} has none: "
            "use the recipe head_only or finetune"
        )
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(name, LoRALinear(linear, rank, alpha, generator))
    return names


def merge(model: nn.Module) -> None:
    """Turn every addition into a part of the weight that it adds to, for good."""
    for name, part in _additions(model):
        model.set_submodule(name, part.plain())


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Within this block the model is plain; afterwards it has its additions again, untouched."""
    parts = _additions(model)
    merge(model)
    try:
        yield
    finally:
        for name, part in parts:
            model.set_submodule(name, part)


def _additions(model: nn.Module) -> list[tuple[str, LoRALinear]]:
    return [(name, part) for name, part in model.named_modules() if isinstance(part, LoRALinear)]
