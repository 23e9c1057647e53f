"""Small models and small data for the tests of export."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import vitrail
from vitrail.data.examples import ArraySource

CLASSES = ("ash", "birch", "cedar", "elm")


def pictures(n: int = 48, side: int = 40, seed: int = 0) -> np.ndarray:
    """Smooth colourful pictures, uint8 [n side side 3]."""
    numbers = np.random.default_rng(seed).integers(0, 256, (n, 6, 6, 3), dtype=np.uint8)
    return np.stack([np.asarray(Image.fromarray(p).resize((side, side))) for p in numbers])


def sure_model(**fields):
    """A ViT that has an opinion: its weights are large, so that answers differ from each other."""
    torch.manual_seed(3)
    fields = {"depth": 2, "width": 64, "heads": 4, "mlp_width": 128, **fields}
    model = vitrail.create_model("vit_mu_patch8_32", num_classes=len(CLASSES), **fields)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=1.5 * parameter[0].numel() ** -0.5)
        shown = np.stack([model.preprocessing.geometry(image) for image in pictures(64)])
        logits = model(model.preprocessing.normalize(torch.from_numpy(shown)))
        model.head.bias.copy_(-logits.mean(0))  # so that every class is answered at times
    return model.set_labels(CLASSES)


def answered(model, images: np.ndarray) -> ArraySource:
    """The pictures labelled with the model's own answers: it is right on all of them."""
    pre = model.preprocessing
    geometry = np.stack([pre.geometry(image) for image in images])
    with torch.inference_mode():
        logits = model(pre.normalize(torch.from_numpy(geometry)))
    return ArraySource(images, logits.argmax(1).numpy(), CLASSES)


def class_folder(folder: Path, source: ArraySource) -> Path:
    """The same as files, a folder a class."""
    for i in range(len(source)):
        place = folder / source.classes[source.labels[i]]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.image(i)).save(place / f"{i:03}.png")
    return folder
