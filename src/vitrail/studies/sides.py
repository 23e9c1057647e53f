"""The size in pixels at which a study trains a model, for pictures that are small."""

from vitrail.models.zoo import config_of
from vitrail.studies.definition import Ask, Candidate


def side_for(one: Candidate, ask: Ask) -> int | None:
    """What was asked for, or the side of small pictures as far as the model can take it.

    None means the model's own size.
    """
    if ask.image_size is not None:
        return ask.image_size
    named = "image_size" in one.config or ask.side is None or ask.side >= 160
    return None if named or ask.side is None else fitting(one, ask.side)


def fitting(one: Candidate, side: float) -> int:
    """The nearest size that the model's patches divide."""
    stride = stride_of(one)
    return max(stride, round(side / stride) * stride)


def stride_of(one: Candidate) -> int:
    """What the sides of a model's pictures should be a multiple of."""
    patch = one.config.get("patch_size", getattr(config_of(one.model), "patch_size", 1))
    return patch if one.family == "vit" else 4 * (patch if one.family == "hybrid" else 1)
