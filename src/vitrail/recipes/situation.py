"""What a recipe has to fit: the data at hand, and what the user has already decided."""

from dataclasses import dataclass

from vitrail.kit.errors import Error
from vitrail.models.base import height_width
from vitrail.models.zoo import resolve
from vitrail.training.recipe import Duration, Model


@dataclass(frozen=True, kw_only=True)
class Situation:
    """Facts that recipes are functions of.

    Args:
        model: which model, at which size.
        examples: in the training set.
        classes: how many.
        duration: the length that the user asked for; None to let the recipe choose.
        batch_size: the user's; None to let the recipe choose.
    """

    model: Model
    examples: int
    classes: int
    duration: Duration | None = None
    batch_size: int | None = None

    @property
    def image_side(self) -> int:
        """The shorter side of the model's input, in pixels."""
        size = self.model.image_size
        if size is None:
            size = resolve(self.model.name)[1].config["image_size"]
        return min(height_width(size))

    def __post_init__(self):
        if self.batch_size is not None and self.batch_size < 1:
            raise Error(f"batch_size must be at least 1, not {self.batch_size}")

    def epochs(self, duration: Duration, batch_size: int) -> float:
        """A duration in epochs of this training set."""
        return duration.steps(self.examples, batch_size) * batch_size / self.examples
