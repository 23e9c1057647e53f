"""Which weights are trained: all, the head, first the head and then all, or LoRA's additions.

What is frozen has no gradient and no optimiser state, and a frozen backbone stays in evaluation
mode: no dropout in it, and no batch of one's own pictures in its batch norms' statistics.
"""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitrail.models.base import ImageClassifier
from vitrail.models.lora import add_lora
from vitrail.training.choices import Tuning


def apply_tuning(model: ImageClassifier, tuning: Tuning, seed: int = 0) -> str:
    """Freeze what a recipe does not train, and add what it adds.

    ``head_then_all`` is left whole, since its optimiser is one for both of its phases: `enter`
    freezes and frees at the right step.

    Args:
        model: with its starting weights; changed in place.
        tuning: the recipe's.
        seed: of LoRA's first values.

    Returns:
        What was done, in a line; empty where all is trained.

    Raises:
        Error: LoRA for a model without attention matrices.
    """
    if tuning.part == "lora":
        names = add_lora(model, tuning.rank, tuning.alpha, tuning.lora_mlp, seed)
        for part in _heads(model):
            part.requires_grad_(True)
        model.held = tuple(
            name for name, part in model.named_modules() if isinstance(part, _BatchNorm)
        )
        return f"{_counts(model)}: rank {tuning.rank} on {len(names)} matrices, and the head"
    if tuning.part == "head":
        hold_backbone(model)
        return f"{_counts(model)}: the head; the rest is frozen and in evaluation mode"
    return ""


def enter(model: ImageClassifier, step: int, head_steps: int) -> None:
    """Be in the phase that step ``step`` (from 0) belongs to: head alone before ``head_steps``.

    Does nothing within a phase, and nothing at all where there is only one.
    """
    if not head_steps or (step < head_steps) == bool(model.held):
        return
    if step < head_steps:
        hold_backbone(model)
    else:
        model.held = ()
        model.requires_grad_(True)
    model.train(model.training)


def hold_backbone(model: ImageClassifier) -> None:
    """Freeze everything but the head, and keep it in evaluation mode."""
    model.requires_grad_(False)
    for part in _heads(model):
        part.requires_grad_(True)
    roots = {model.head_name.split(".")[0], "head_dist"}
    model.held = tuple(name for name, _ in model.named_children() if name not in roots)
    model.train(model.training)


def _heads(model: ImageClassifier) -> list[nn.Module]:
    heads = [model.get_submodule(model.head_name)]
    return [*heads, model.get_submodule("head_dist")] if hasattr(model, "head_dist") else heads


def _counts(model: nn.Module) -> str:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"trains {trained:,} of {sum(p.numel() for p in model.parameters()):,} parameters"
