"""From a recipe's `Optim` and `Schedule` to an optimiser and the learning rate of each step."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn, optim

from vitrail.models.base import ImageClassifier
from vitrail.training.lamb import LAMB
from vitrail.training.recipe import Optim, Recipe, Schedule

NO_DECAY_NAMES = (
    *("cls_token", "dist_token", "reg_token", "mask_token", "latent"),
    *("pos_embed", "pos_embed_prefix", "pos_embed_x", "pos_embed_y", "pos_embed_offset"),
)


def make_optimizer(
    model: ImageClassifier, recipe: Optim, others: nn.Module | None = None
) -> optim.Optimizer:
    """An optimiser over parameter groups that differ in depth and in weight decay.

    Each group carries ``scale``, what layer-wise decay multiplies its rate by: the head 1, the
    last block ``layer_decay``, the embeddings ``layer_decay`` to the number of steps between
    (MAE's util/lr_decay.py). Frozen parameters are left out.

    Args:
        model: its parameters are trained.
        recipe: name, rate, decay.
        others: an objective with parameters of its own, which count as the head's.
    """
    groups: dict[tuple[int, bool], dict] = {}
    for depth, name, parameter in _trained(model, others):
        decays = has_decay(name, parameter)
        scale = recipe.layer_decay ** (model.layers - depth)
        group = groups.setdefault(
            (depth, decays), {"params": [], **_decay(recipe, decays), "scale": scale}
        )
        group["params"].append(parameter)
    optimizer = _made(recipe, [groups[key] for key in sorted(groups)])
    if recipe.decay == "independent" and recipe.weight_decay:
        optimizer.register_step_pre_hook(_decay_before)
    return optimizer


def has_decay(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay is for weight matrices (big_vision: parameters whose name ends in kernel)."""
    return parameter.ndim > 1 and not name.split(".")[-1].endswith(NO_DECAY_NAMES)


def _trained(
    model: ImageClassifier, others: nn.Module | None
) -> Iterator[tuple[int, str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            yield model.depth_of(name), name, parameter
    for name, parameter in others.named_parameters() if others is not None else ():
        if parameter.requires_grad:
            yield model.layers, name, parameter


def _made(recipe: Optim, groups: list[dict[str, Any]]) -> optim.Optimizer:
    if recipe.name == "sgd":
        return optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, fused=True)
    if recipe.name == "lamb":
        return LAMB(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps or 1e-6)
    if recipe.name == "adafactor":
        return optim.Adafactor(groups, lr=recipe.lr)
    eps = recipe.eps or 1e-8
    return optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=eps, fused=True)


def _decay(recipe: Optim, decays: bool) -> dict[str, float]:
    """A group's weight decay, where it is torch's; else what `_decay_before` needs."""
    wanted = recipe.weight_decay if decays else 0.0
    if recipe.decay == "torch":
        return {"weight_decay": wanted}
    return {"weight_decay": 0.0, "decay": wanted, "share": 0.0}


@torch.no_grad()
def _decay_before(optimizer: optim.Optimizer, *_: Any) -> None:
    """w <- w - s * decay * w, where s is the share of its peak that the rate is at.

    big_vision subtracts it together with the update, torch's AdamW just before it as here; as the
    update does not look at the weights, the two are the same. (LAMB and Adafactor do look at their
    size, and see them decayed.)
    """
    for group in optimizer.param_groups:
        factor = 1 - group["share"] * group["decay"]
        if factor != 1:
            torch._foreach_mul_([p for p in group["params"] if p.grad is not None], factor)


def rate_at(
    step: int,
    total: int,
    warmup: int,
    schedule: Schedule,
    *,
    peak: float = 1.0,
    cooldown: int = 0,
    timescale: int = 10_000,
) -> float:
    """The learning rate that step ``step`` (from 0) of ``total`` uses.

    Args:
        step, total, warmup, cooldown, timescale: in steps.
        schedule: its kind, start, floor and stairs.
        peak: the rate after the warm-up; 1 gives shares of it.

    Returns:
        Linear from the start up to the peak over the warm-up, then the curve: as
        vit_jax/utils.py create_learning_rate_schedule (cosine, linear), big_vision utils.py
        create_learning_rate_schedule (rsqrt), bit_hyperrule.py get_lr (staircase), timm's
        CosineLRScheduler (``over="whole"``).
    """
    if step < warmup:
        return schedule.start + (peak - schedule.start) * (step + 1) / (warmup + 1)
    if schedule.kind == "constant":
        return peak
    if schedule.kind == "staircase":
        return peak * 0.1 ** sum(step > round(stair / 100 * total) for stair in schedule.stairs)
    if schedule.kind == "rsqrt":
        rate = peak / math.sqrt(1 + (step - warmup) / max(1, timescale))
        return rate * min(1.0, (total - step) / cooldown) if cooldown else rate
    begin = warmup if schedule.over == "rest" else 0
    progress = min(1.0, (step - begin) / max(1, total - cooldown - begin))
    straight = schedule.kind == "linear"
    share = 1 - progress if straight else 0.5 * (1 + math.cos(math.pi * progress))
    # A rate that was asked for below the floor stays what it is.
    floor = min(schedule.floor, peak)
    return floor + (peak - floor) * share


class Rates:
    """The learning rate of every step of a run; a function of the step alone.

    Args:
        recipe: its rate, schedule, and how long it trains the head alone.
        examples: in an epoch.
        total: steps of the run.
    """

    def __init__(self, recipe: Recipe, examples: int, total: int):
        self.recipe, self.examples = recipe, examples
        self.head_steps = head_steps(recipe, examples, total)
        self.total = total

    def __call__(self, step: int) -> float:
        """The rate of step ``step``, counted from 0."""
        peak = self.peak(step)
        if step < self.head_steps:
            return self._rate(step, self.head_steps, peak)
        return self._rate(step - self.head_steps, self.total - self.head_steps, peak)

    def peak(self, step: int) -> float:
        """The highest rate of the phase that a step belongs to."""
        recipe = self.recipe
        return recipe.tuning.head_lr if step < self.head_steps else recipe.optim.lr

    def _rate(self, step: int, total: int, peak: float) -> float:
        schedule = self.recipe.schedule

        def steps(length: Any) -> int:
            return length.steps(self.examples, self.recipe.batch_size, total)

        return rate_at(
            step,
            total,
            steps(schedule.warmup),
            schedule,
            peak=peak,
            cooldown=steps(schedule.cooldown),
            timescale=steps(schedule.timescale),
        )


def head_steps(recipe: Recipe, examples: int, total: int) -> int:
    """For how many steps at the beginning only the head is trained, before everything is."""
    if recipe.tuning.part != "head_then_all":
        return 0
    return min(total, recipe.tuning.head_for.steps(examples, recipe.batch_size, total))


def set_rate(optimizer: optim.Optimizer, rate: float, peak: float) -> None:
    """Give every group the rate times its own scale, and independent decay its share of the peak.

    Args:
        rate: of this step.
        peak: the highest of its phase.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
        if "share" in group:
            group["share"] = rate / peak if peak else 0.0
