"""The size in pixels at which a study trains a model, for pictures that are small."""

from vitrail.models.zoo import config_of
from vitrail.studies.definition import Ask, Candidate

SMALL = 160  # pixels; pictures of less are not enlarged to a model's own size
LEAST = {"pvt": 32, "pvt_v2": 32}  # pixels that a family takes at the least


def side_for(one: Candidate, ask: Ask) -> int | None:
    """What was asked for, or the side of small pictures as far as the model can take it.

    None means the model's own size.
    """
    if ask.image_size is not None:
        return ask.image_size
    if ask.side is None or ask.side >= SMALL or "image_size" in one.config:
        return None
    return fitting(one, ask.side)


def fitting(one: Candidate, side: float) -> int:
    """The nearest size that the model's patches divide and that it takes at all."""
    stride = stride_of(one)
    return max(stride, LEAST.get(one.family, 0), round(side / stride) * stride)


def stride_of(one: Candidate) -> int:
    """What the sides of a model's pictures should be a multiple of."""
    patch = one.config.get("patch_size", getattr(config_of(one.model), "patch_size", 1))
    return patch if one.family == "vit" else 4 * (patch if one.family == "hybrid" else 1)
