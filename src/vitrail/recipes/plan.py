"""What a recipe will do, in lines for a person: what `vitrail train --dry-run` prints."""

import dataclasses
from typing import Any

from vitrail.training.optim import Rates
from vitrail.training.recipe import Recipe


def recipe_lines(recipe: Recipe, examples: int, total: int) -> list[str]:
    """Everything in a recipe that is not at its plainest, a line for each of its parts.

    Args:
        recipe: the recipe, with what the user changed.
        examples: in an epoch.
        total: steps of the run.
    """
    rates = Rates(recipe, examples, total)
    last = max(0, total - 1)
    lines = [
        f"  optimiser     {_words(recipe.optim)}",
        f"  schedule      {_words(recipe.schedule)}; the rate begins at {rates(0):.3g}, is "
        f"{rates(total // 2):.3g} half way and {rates(last):.3g} at the end",
    ]
    parts: dict[str, Any] = {
        "augmentation": recipe.augment,
        "target": recipe.target,
        "teacher": recipe.distill,
        "masks": recipe.masked,
        "trained": recipe.tuning,
    }
    if recipe.masked.kind != "none":
        del parts["target"]
    lines += [f"  {name:<13} {_changed(part)}" for name, part in parts.items() if _changed(part)]
    if recipe.model.config and recipe.model.family is None:
        fields = ", ".join(f"{key} {value}" for key, value in recipe.model.config.items())
        lines.append(f"  model         {fields}")
    average = "none" if recipe.ema is None else f"decay {recipe.ema:g}"
    if recipe.ema is not None:
        average += ", growing to it" if recipe.ema_warmup else ", constant"
    lines.append(f"  average       {average}")
    rest = {
        "sampling": recipe.sampling != "uniform" and recipe.sampling,
        "repeats": recipe.repeats > 1 and f"every image {recipe.repeats} times",
        "looks": f"at the validation images every {recipe.eval_every}"
        + (f", stops after {recipe.patience} without a better one" if recipe.patience else ""),
    }
    return [*lines, *(f"  {name:<13} {value}" for name, value in rest.items() if value)]


def _words(part: Any) -> str:
    kept = dataclasses.asdict(part)
    name = kept.pop("name", kept.pop("kind", ""))
    fields = dataclasses.fields(part)
    always = ("lr", "weight_decay", "warmup")
    shown = [
        f"{field.name.replace('_', ' ')} {_value(getattr(part, field.name))}"
        for field in fields
        if field.name in kept
        and (field.name in always or getattr(part, field.name) != field.default)
    ]
    return ", ".join([name, *shown])


def _changed(part: Any) -> str:
    return ", ".join(
        f"{field.name.replace('_', ' ')} {_value(getattr(part, field.name))}"
        for field in dataclasses.fields(part)
        if getattr(part, field.name) != field.default
    )


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_value, value)) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
