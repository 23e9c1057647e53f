"""A model at another resolution: the same weights, position tables resized as its family does."""

from vitrail.models import zoo
from vitrail.models.base import ImageClassifier, Size, height_width
from vitrail.weights.load import load_checkpoint
from vitrail.weights.unwrap import Checkpoint


def resized(model: ImageClassifier, size: Size) -> ImageClassifier:
    """A copy of a model for pictures of another size, on the same device, in eval mode.

    Args:
        size: pixels, or (height, width). Pictures are resized and cropped as before, to this.

    Raises:
        Error: a size that the family cannot have; the message names the nearest.
    """
    about = zoo.describe(model)
    about["config"] = {**about["config"], "image_size": size}
    about["preprocessing"] = {**about["preprocessing"], "size": list(height_width(size))}
    copy = zoo.from_description(about)
    preprocessing, labels = copy.preprocessing, copy.labels
    # With its description, so that tables are resized as this model's config says.
    own = Checkpoint("the model", dict(model.state_dict()), about=zoo.describe(model))
    load_checkpoint(copy, own, (), "keep")
    copy.preprocessing, copy.labels = preprocessing, labels
    weight = next(model.parameters())
    return copy.to(weight.device, weight.dtype).eval()
