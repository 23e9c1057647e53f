"""From a recipe's `Optim` and `Schedule` to an optimiser and the learning rate of each step."""

import math

from torch import nn, optim

from vitrail.models.base import ImageClassifier
from vitrail.training.recipe import Optim, Schedule

NO_DECAY_NAMES = (
    *("cls_token", "dist_token", "reg_token", "latent"),
    *("pos_embed", "pos_embed_prefix", "pos_embed_x", "pos_embed_y", "pos_embed_offset"),
)


def make_optimizer(model: ImageClassifier, recipe: Optim) -> optim.Optimizer:
    """An optimiser over parameter groups that differ in depth and in weight decay.

    Each group carries ``scale``, what layer-wise decay multiplies its rate by: the head 1, the
    last block ``layer_decay``, the embeddings ``layer_decay`` to the number of steps between
    (MAE's util/lr_decay.py).
    """
    groups: dict[tuple[int, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth, decays = model.depth_of(name), has_decay(name, parameter)
        group = groups.setdefault(
            (depth, decays),
            {
                "params": [],
                "weight_decay": recipe.weight_decay if decays else 0.0,
                "scale": recipe.layer_decay ** (model.layers - depth),
            },
        )
        group["params"].append(parameter)
    ordered = [groups[key] for key in sorted(groups)]
    if recipe.name == "sgd":
        return optim.SGD(ordered, lr=recipe.lr, momentum=recipe.momentum, fused=True)
    return optim.AdamW(ordered, lr=recipe.lr, betas=recipe.betas, fused=True)


def has_decay(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay is for weight matrices (big_vision: parameters whose name ends in kernel)."""
    return parameter.ndim > 1 and not name.split(".")[-1].endswith(NO_DECAY_NAMES)


def rate_at(step: int, total: int, warmup: int, schedule: Schedule) -> float:
    """The share of the peak rate that step ``step`` (from 0) of ``total`` uses.

    Linear up to 1 over ``warmup`` steps, then the curve from 1 down to 0 at ``total``
    (as vit_jax/utils.py create_learning_rate_schedule).
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule.kind == "constant":
        return 1.0
    progress = (step - warmup) / max(1, total - warmup)
    if schedule.kind == "linear":
        return 1 - progress
    return 0.5 * (1 + math.cos(math.pi * progress))


def set_rate(optimizer: optim.Optimizer, rate: float) -> None:
    """Give every group the rate times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
