"""What a recipe teaches a model that is ready to train: objective, teacher, what is frozen."""

from vitrail.data.sources import Source
from vitrail.data.stream import Stream
from vitrail.kit.errors import Error
from vitrail.models.base import ImageClassifier
from vitrail.training.objectives import Distillation, Objective, make_objective
from vitrail.training.recipe import Recipe
from vitrail.training.tuning import apply_tuning
from vitrail.weights.folder import load_model


def objective_for(
    recipe: Recipe, model: ImageClassifier, data: Source | Stream
) -> tuple[Objective, list[str]]:
    """The objective of a recipe, with the model prepared for it, and what to say of it.

    Args:
        recipe: its teacher is opened, where it has one.
        model: with its starting weights; frozen and added to as the recipe wants.
        data: the training source.

    Raises:
        Error: a teacher that is missing, not wanted or of other classes, or a model that the
            objective or LoRA cannot run on.
    """
    told = [f"tuning: {line}"] if (line := apply_tuning(model, recipe.tuning, recipe.seed)) else []
    teacher = None
    if recipe.teacher is not None:
        if recipe.distill.kind == "none":
            raise Error(f"recipe {recipe.name} learns from no teacher: leave --teacher out")
        teacher = load_model(recipe.teacher)
    counts = None
    if recipe.target.class_weights == "balanced":
        if not isinstance(data, Source):
            raise Error(
                f"{data.name}: classes are weighed by their numbers of images, which a stream does "
                "not know beforehand: leave target.class_weights out"
            )
        counts = data.counts()
    objective = make_objective(recipe, model, teacher, counts)
    if isinstance(objective, Distillation):
        told.append(f"teacher: {recipe.teacher}; {objective.describe()}")
    if not objective.labelled:
        told.append("labels: not looked at; the folder will hold an encoder without a head")
    return objective, told
