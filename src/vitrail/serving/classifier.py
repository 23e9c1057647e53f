"""The classifier: a model folder behind one call, with the preprocessing it was trained with."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vitrail.data.decode import pixels_of
from vitrail.data.examples import read_file
from vitrail.data.views import decode_for
from vitrail.kit.devices import pick_device
from vitrail.kit.errors import Error
from vitrail.kit.preprocess import Preprocessing
from vitrail.models.base import Size
from vitrail.weights.folder import load_model
from vitrail.weights.temperature import read_temperature

Picture = str | Path | bytes | Image.Image | np.ndarray


class Classifier:
    """Labels and probabilities for pictures.

    Args:
        path: a model folder, or with ``name`` a checkpoint file.
        threads: for the arithmetic, of the whole process; None leaves torch's own choice.
        batch_size: pictures at a time; memory is bounded by it.
        device: ``cpu``, ``cuda`` or None for the best there is.
        which: ``final`` or ``best`` weights of the folder.
        name: the zoo's name of the model, for a file that does not say it.

    Raises:
        Error: no model there, or it is damaged.
    """

    def __init__(
        self,
        path: str | Path,
        threads: int | None = None,
        batch_size: int = 32,
        device: str | None = None,
        which: str = "final",
        name: str | None = None,
    ):
        for words, number in (("threads", threads), ("batch_size", batch_size)):
            if number is not None and number < 1:
                raise Error(f"{words} must be at least 1, not {number}")
        if threads is not None:
            torch.set_num_threads(threads)
        self.batch_size = batch_size
        self.device = pick_device(device)
        self.model = load_model(path, name=name, which=which).to(self.device)
        if not self.model.num_classes:
            raise Error(f"{path} holds an encoder without a head: fine-tune from it first")
        names = self.model.labels
        self.labels = names or [str(index) for index in range(self.model.num_classes)]
        self.temperature = read_temperature(path, which)

    @property
    def preprocessing(self) -> Preprocessing:
        """How pictures are scaled, cropped and normalised here."""
        return self.model.preprocessing

    @property
    def image_size(self) -> Size:
        """The model's input size."""
        return self.model.image_size

    def __call__(
        self, images: Picture | Iterable[Picture], top_k: int = 5
    ) -> list[list[tuple[str, float]]]:
        """For each picture the ``top_k`` likeliest labels with probabilities, likeliest first.

        Args:
            images: file names, encoded files as bytes, PIL pictures or uint8 arrays [h w 3]; one
                alone counts as a list of one.
            top_k: how many; at most the number of classes.

        Raises:
            Error: a picture that cannot be read; its name is in the sentence.
        """
        if top_k < 1:
            raise Error(f"top_k must be at least 1, not {top_k}")
        rows = torch.from_numpy(self.logits(images)) / self.temperature
        values, places = rows.softmax(dim=-1).topk(min(top_k, len(self.labels)), dim=-1)
        return [
            [(self.labels[place], value) for place, value in zip(row, chances, strict=True)]
            for row, chances in zip(places.tolist(), values.tolist(), strict=True)
        ]

    def logits(self, images: Picture | Iterable[Picture]) -> np.ndarray:
        """The logits before temperature, float32 [n k]; pictures as for a call.

        Raises:
            Error: a picture that cannot be read.
        """
        rows = [self._batch(batch) for batch in _batches(_listed(images), self.batch_size)]
        return np.concatenate(rows) if rows else np.zeros((0, len(self.labels)), np.float32)

    def _batch(self, images: Sequence[Picture]) -> np.ndarray:
        pixels = np.stack([self.preprocessing.geometry(self._open(image)) for image in images])
        with torch.inference_mode():
            batch = torch.from_numpy(pixels).to(self.device)
            return self.model(self.preprocessing.normalize(batch)).float().cpu().numpy()

    def _open(self, image: Picture) -> np.ndarray:
        if isinstance(image, bytes):
            return decode_for(image, self.preprocessing)
        if isinstance(image, str | Path):
            try:
                return decode_for(read_file(image), self.preprocessing)
            except Error as error:
                raise Error(f"{image}: {error}") from None
        if isinstance(image, np.ndarray):
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise Error(
                    f"a picture as an array is uint8 [h w 3], not {image.dtype} {list(image.shape)}"
                )
            return image
        if isinstance(image, Image.Image):
            return pixels_of(image)
        raise Error(f"a picture is a file name, bytes, a PIL picture or an array, not {image!r}")


def _listed(images: Picture | Iterable[Picture]) -> Iterable[Picture]:
    if isinstance(images, str | Path | bytes | Image.Image):
        return [images]
    if isinstance(images, np.ndarray) and images.ndim == 3:
        return [images]
    if not isinstance(images, Iterable):
        raise Error(f"pictures are a list, or one alone, not {images!r}")
    return images


def _batches(images: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    batch: list[Picture] = []
    for image in images:
        batch.append(image)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
