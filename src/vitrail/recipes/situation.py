"""What a recipe has to fit: the data at hand, and what the user has already decided."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from vitrail.kit.errors import Error, did_you_mean
from vitrail.models.base import Size, height_width
from vitrail.models.zoo import FAMILIES, resolve
from vitrail.training.recipe import Duration, Model

Choice = TypeVar("Choice")


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Facts that recipes are functions of.

    Args:
        model: which model, at which size.
        examples: in the training set.
        classes: how many.
        variant: which of a recipe's settings the user asked for (``augreg:medium1``); empty to let
            the recipe choose.
        duration: the length that the user asked for; None to let the recipe choose.
        batch_size: the user's; None to let the recipe choose.
        image_size: the user's; None to let the recipe choose.
        pictures: (width, height) of the middling training picture, where it is known.
    """

    model: Model
    examples: int
    classes: int
    variant: str = ""
    duration: Duration | None = None
    batch_size: int | None = None
    image_size: Size | None = None
    pictures: tuple[int, int] | None = None

    def __post_init__(self):
        if self.batch_size is not None and self.batch_size < 1:
            raise Error(f"batch_size must be at least 1, not {self.batch_size}")

    @property
    def image_side(self) -> int:
        """The shorter side of the model's input, in pixels."""
        size = self.model.image_size
        if size is None:
            size = self.fields["image_size"]
        return min(height_width(size))

    @property
    def family(self) -> str:
        """The family of the model, as the zoo calls it."""
        return self.model.family or resolve(self.model.name)[1].family

    @property
    def fields(self) -> dict[str, Any]:
        """Every field of the model's config."""
        family, given = self.model.family, {}
        if family is None:
            entry = resolve(self.model.name)[1]
            family, given = entry.family, entry.config
        known = {field.name: field.default for field in dataclasses.fields(FAMILIES[family][0])}
        return {**known, **given, **self.model.config}

    @property
    def size_word(self) -> str:
        """``tiny``, ``small``, ``base``, ... as the model's name says, else empty."""
        words = self.model.name.split("_")
        known = ("tiny", "small", "medium", "base", "large", "huge")
        return next((word for word in words if word in known), "")

    def epochs(self, duration: Duration, batch_size: int) -> float:
        """A duration in epochs of this training set."""
        return duration.steps(self.examples, batch_size) * batch_size / self.examples

    def batch(self, papers: int) -> int:
        """The user's batch size, else the paper's.

        Of a training set smaller than that: the largest power of two in it, for a batch would hold
        its pictures more than once. (Recipes fit their rates to the batch.)
        """
        if self.batch_size is not None:
            return self.batch_size
        return papers if papers <= self.examples else 2 ** (max(1, self.examples).bit_length() - 1)

    def length(self, value: float, unit: str = "epochs") -> Duration:
        """The user's duration, else the paper's."""
        return self.duration or Duration(value, unit)

    def warmup(self, papers: Duration, duration: Duration, batch_size: int) -> Duration:
        """A paper's warm-up, cut to a fifth of a run that is too short for it."""
        steps, total = (length.steps(self.examples, batch_size) for length in (papers, duration))
        return papers if 5 * steps <= total else Duration(20, "percent")

    def choose(self, recipe: str, variants: Mapping[str, Choice], default: str) -> Choice:
        """The value of the variant that the user asked for, or of the default one.

        Raises:
            Error: a variant that there is not; the nearest is named.
        """
        name = self.variant or default
        if name not in variants:
            near = did_you_mean(name, variants) or f"; there are {', '.join(variants)}"
            raise Error(f"recipe {recipe} has no variant {name!r}{near}")
        return variants[name]

    def plain(self) -> "Situation":
        """The same without a variant, for the parent of a recipe that has some."""
        return dataclasses.replace(self, variant="")

    def with_model(self, **config: Any) -> Model:
        """The model with these fields of its config changed, as far as its family has them."""
        fields = {name: value for name, value in config.items() if name in self.fields}
        return dataclasses.replace(self.model, config={**self.model.config, **fields})

    def at(self, size: int, model: Model | None = None) -> Model:
        """The model at the paper's size, or at the user's; the nearest that the patch divides."""
        model = model or self.model
        if self.image_size is not None:
            return model
        stride = self.fields.get("patch_size", 1)
        stride = stride if isinstance(stride, int) and self.family == "vit" else 32
        return dataclasses.replace(model, image_size=max(stride, round(size / stride) * stride))


def no_variants(situation: Situation, recipe: str) -> None:
    """Raise an Error where a variant was asked for of a recipe that has none."""
    if situation.variant:
        raise Error(f"recipe {recipe} has no variants, so {situation.variant!r} means nothing")


def root(batch_size: int, papers: int) -> float:
    """What the rate of an adaptive optimiser is multiplied by for another batch than the paper's.

    The square root keeps the noise of a step the same; this rule is ours where a paper has none.
    """
    return math.sqrt(batch_size / papers)
