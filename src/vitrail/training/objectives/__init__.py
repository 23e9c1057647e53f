"""Objectives: what a model and a batch are compared by. The loop does not know which it runs.

One file each: `supervised` (labels), `distillation` (labels and a teacher), `masked_patch` and
`autoencoder` (no labels). `make_objective` picks a recipe's.
"""

from collections.abc import Sequence

import numpy as np

from vitrail.kit.errors import Error
from vitrail.models.base import ImageClassifier
from vitrail.training.objectives.autoencoder import MaskedAutoencoder
from vitrail.training.objectives.base import Example, Learner, Loss, Objective
from vitrail.training.objectives.distillation import Distillation
from vitrail.training.objectives.masked_patch import (
    MaskedPatchPrediction,
    corrupt,
    mean_color_classes,
)
from vitrail.training.objectives.supervised import Supervised, balanced_weights
from vitrail.training.recipe import Recipe

__all__ = [
    "Distillation",
    "Example",
    "Learner",
    "Loss",
    "MaskedAutoencoder",
    "MaskedPatchPrediction",
    "Objective",
    "Supervised",
    "balanced_weights",
    "corrupt",
    "make_objective",
    "mean_color_classes",
]


def make_objective(
    recipe: Recipe,
    model: ImageClassifier,
    teacher: ImageClassifier | None = None,
    counts: Sequence[int] | np.ndarray | None = None,
) -> Objective:
    """A recipe's objective for a model.

    Args:
        recipe: what it says of target, distillation and masks.
        model: which the objective will run on; what it does not train of it is frozen.
        teacher: a live model that knows the classes of ``model``, where the recipe distils.
        counts: training images of each class, where the recipe balances them.

    Raises:
        Error: a model that the objective cannot run on, or no teacher where one is needed.
    """
    masked, target, distill = recipe.masked, recipe.target, recipe.distill
    if masked.kind == "patch":
        return MaskedPatchPrediction(model, masked.share, masked.predict, recipe.seed)
    if masked.kind == "mae":
        return MaskedAutoencoder(
            model,
            masked.share,
            masked.normalize_pixels,
            decoder=(masked.decoder_width, masked.decoder_depth, masked.decoder_heads),
            seed=recipe.seed,
        )
    weights = None
    if target.class_weights == "balanced":
        if counts is None:
            raise Error("target.class_weights balanced needs the number of images of each class")
        weights = balanced_weights(counts)
    supervised = Supervised(target.label_smoothing, target.loss, weights)
    if distill.kind == "none":
        return supervised
    if teacher is None:
        raise Error(f"recipe {recipe.name} learns from a teacher: name one by --teacher")
    return Distillation(
        supervised, model, teacher, distill.kind, distill.share, distill.temperature
    )
