"""Every name of the zoo made small by one rule on the fields of its config, whatever its family.

What a rule does not name stays as the name has it, so that whatever sets one name apart from
another (a norm, a token, an activation, a stride) is in its small model too. Many names have the
same small model: those of one network at several depths, widths, patches and picture sizes.
"""

import dataclasses
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from tests.conftest import randomise
from vitrail import list_models
from vitrail.models.base import ImageClassifier
from vitrail.models.standardize import GROUPS
from vitrail.models.zoo import config_of, from_config, resolve

CLASSES = 7
Small = tuple[str, tuple[tuple[str, Any], ...]]


def _widths(widths: tuple, config: Any) -> tuple:
    # Within a bottleneck a quarter of the width passes through GroupNorms.
    unit = 4 * GROUPS if hasattr(config, "group_norm_eps") else 16
    return tuple(unit * (1 + stage // 2) for stage in range(len(widths)))


def _heads(heads: int | tuple, _: Any) -> int | tuple:
    return min(heads, 2) if isinstance(heads, int) else tuple(min(h, 2) for h in heads)


RULES: dict[str, Callable[[Any, Any], Any]] = {
    "depth": lambda depth, _: 2,
    "depths": lambda depths, _: (*(1 for _ in depths[:-1]), *(2 for _ in depths[-1:])),
    "width": lambda width, _: 32,
    "widths": _widths,
    "stem_width": lambda width, _: GROUPS,
    "heads": _heads,
    "mlp_width": lambda width, _: 48,
    "token_width": lambda width, _: 16,
    "patch_size": lambda patch_size, _: min(patch_size, 4),
    "num_classes": lambda classes, _: CLASSES,
}


def without_a_size(name: str) -> dict[str, Any]:
    """The small fields of a name, but for its picture's size."""
    config = config_of(name)
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    del fields["image_size"]
    return {
        field: RULES[field](value, config) if field in RULES else value
        for field, value in fields.items()
    }


@cache
def smallest_size(small: Small) -> int:
    """The side of the picture that leaves 2x2 places at the end."""
    model = from_config(small[0], {**dict(small[1]), "image_size": 128})
    return 2 * model.feature_maps(torch.zeros(1, 3, 128, 128)).strides[-1]


def small_models() -> dict[str, list[str]]:
    """The names of the zoo that share a small model, by the first of them."""
    groups: dict[Small, list[str]] = {}
    for name in list_models():
        small = (resolve(name)[1].family, tuple(without_a_size(name).items()))
        groups.setdefault(small, []).append(name)
    return {names[0]: names for names in groups.values()}


def build(name: str, **changes: Any) -> ImageClassifier:
    """The small model of a name, float64, every tensor random, in eval mode."""
    family, fields = resolve(name)[1].family, without_a_size(name)
    size = smallest_size((family, tuple(fields.items())))
    model = from_config(family, {**fields, "image_size": size, **changes}).double()
    randomise(model)
    if family == "t2t":  # by their names `randomise` takes these layers for tokens: far too large
        for name, parameter in model.named_parameters():
            if name.startswith("tokens_to_token.") and parameter.ndim > 1:
                parameter.data /= parameter[0].numel() ** 0.5
    return model


@cache
def shared(name: str) -> ImageClassifier:
    """`build(name)`, made once: tests leave it as it is."""
    return build(name)


def pictures(
    model: ImageClassifier, batch: int = 2, height: float = 1, width: float = 1
) -> torch.Tensor:
    """Random pictures [b 3 h w] float64, their sides as multiples of the model's own."""
    side = model.config.image_size
    generator = torch.Generator().manual_seed(1)
    shape = (batch, 3, round(side * height), round(side * width))
    return torch.randn(shape, generator=generator, dtype=torch.float64)
