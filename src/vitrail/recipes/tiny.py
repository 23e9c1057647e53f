"""`tiny`: any recipe at a size for a laptop, to see that it runs; the tests run every one so."""

import dataclasses
from collections.abc import Callable
from typing import Any

from vitrail.models.zoo import FAMILIES, resolve
from vitrail.training.recipe import Duration, Model, Recipe

STEPS, BATCH = 4, 8
SIDE = 64  # pixels; a plain ViT has patches of 16 then

# What becomes of a field of a model's config, by its name and its value.
SMALLER: dict[str, Callable[[Any], Any]] = {
    "depth": lambda depth: min(depth, 2),
    "depths": lambda depths: tuple(min(one, 1) for one in depths),
    "width": lambda width: min(width, 48),
    "mlp_width": lambda width: min(width, 96),
    "heads": lambda heads: min(heads, 3) if isinstance(heads, int) else heads,
    "patch_size": lambda patch: 16 if isinstance(patch, int) and patch > 1 else patch,
}


def tiny(recipe: Recipe) -> Recipe:
    """The recipe with a small model, small pictures, and a run of a few steps of a few images.

    What makes the recipe itself stays: optimiser, curve, augmentation, losses, what is trained. A
    model that is given by weights keeps its shape.
    """
    masked = dataclasses.replace(recipe.masked, decoder_width=32, decoder_depth=1, decoder_heads=4)
    tuning = dataclasses.replace(recipe.tuning, head_for=Duration(STEPS // 2), rank=2)
    schedule = dataclasses.replace(recipe.schedule, warmup=Duration(1), cooldown=Duration(1))
    return recipe.replace(
        model=tiny_model(recipe.model) if recipe.weights is None else recipe.model,
        masked=masked,
        tuning=tuning,
        schedule=schedule,
        duration=Duration(STEPS),
        batch_size=BATCH,
        eval_every=Duration(STEPS),
        rates=recipe.rates[:2],
    )


def tiny_model(model: Model) -> Model:
    """The model, two blocks deep (one a stage) and narrow; staged ones keep their widths."""
    if model.family is not None:
        return model
    entry = resolve(model.name)[1]
    defaults = {
        field.name: field.default for field in dataclasses.fields(FAMILIES[entry.family][0])
    }
    fields = {**defaults, **entry.config, **model.config}
    smaller = {
        name: SMALLER[name](value)
        for name, value in fields.items()
        if name in SMALLER and name not in (() if entry.family == "vit" else ("patch_size",))
    }
    return dataclasses.replace(model, image_size=SIDE, config={**model.config, **smaller})
