"""The classifier: a model folder or a bundle behind one call, with the preprocessing it needs.

Torch, ONNX Runtime and OpenVINO answer alike; a bundle's files are checked against their hashes
before anything is answered, so what is damaged is refused. An ONNX or OpenVINO bundle is used
without torch, whose import alone takes 200 MB: all that needs it is imported where a model is
opened.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vitrail.data.decode import pixels_of
from vitrail.data.examples import read_file
from vitrail.data.views import decode_for
from vitrail.export.bundle import Manifest, checking_files, is_bundle, read_manifest
from vitrail.export.runtime import (
    MERGED,
    WITHOUT,
    MergingRuntime,
    Runtime,
    TorchRuntime,
    open_graph,
)
from vitrail.kit.errors import Error
from vitrail.kit.preprocess import Preprocessing
from vitrail.serving.stream import Prediction, stream

Picture = str | Path | bytes | Image.Image | np.ndarray


@dataclass(frozen=True)
class Attention:
    """Where a model looked in one picture.

    Attributes:
        values: float32 [rows columns], how much of the attention lies on each place; see
            `export.attention` for what is counted.
        region: the part of the upright picture that the places share evenly, (left, top, right,
            bottom) as shares of it; what the model does not see lies outside, and what is padded
            lies beyond 0 and 1.
    """

    values: np.ndarray
    region: tuple[float, float, float, float]


class Classifier:
    """Labels and probabilities for pictures.

    Args:
        path: a model folder, a bundle, or with ``name`` a checkpoint file.
        threads: for the arithmetic; of a model folder's, of the whole process. None leaves the
            runtime's own choice.
        batch_size: pictures at a time; memory is bounded by it.
        device: ``cpu``, ``cuda`` or None for the best there is.
        which: ``final`` or ``best`` weights of a model folder.
        name: the zoo's name of the model, for a file that does not say it.
        shared: whether others need the cores between two calls, as beside a server.

    Attributes:
        labels: the class names in the order of the logits.
        temperature: by which logits are divided before the softmax.
        several: whether a picture may have several labels: then each has a probability of its own,
            and they need not add up to 1.
        preprocessing: how pictures are scaled, cropped and normalised here.
        runtime: ``torch``, ``onnx`` or ``openvino``.
        manifest: what a bundle says of itself, else None.

    Raises:
        Error: no model there, it is damaged or of a newer format, or the extra that its runtime
            needs is not installed.
    """

    labels: list[str]
    temperature: float
    several: bool = False
    preprocessing: Preprocessing
    manifest: Manifest | None = None

    def __init__(
        self,
        path: str | Path,
        threads: int | None = None,
        batch_size: int = 32,
        device: str | None = None,
        which: str = "final",
        name: str | None = None,
        shared: bool = False,
    ):
        for words, number in (("threads", threads), ("batch_size", batch_size)):
            if number is not None and number < 1:
                raise Error(f"{words} must be at least 1, not {number}")
        self.batch_size = batch_size
        if is_bundle(path):
            self._runtime = self._open_bundle(Path(path).expanduser(), threads, device, shared)
        else:
            self._runtime = self._open_model(path, threads, device, which, name)

    def _open_bundle(
        self, folder: Path, threads: int | None, device: str | None, shared: bool
    ) -> Runtime:
        manifest = self.manifest = read_manifest(folder)
        with checking_files(folder, manifest):
            if manifest.runtime == "torch":
                runtime = self._open_model(folder, threads, device, "final", None)
                if manifest.merge_tokens:
                    runtime = MergingRuntime(self.model, manifest.merge_tokens, runtime.device)
            else:
                runtime = open_graph(folder, manifest, threads, device, shared)
        self.labels, self.temperature = manifest.labels, manifest.temperature
        self.preprocessing, self.runtime = manifest.preprocessing, manifest.runtime
        self.several = manifest.several_labels
        return runtime

    def _open_model(
        self,
        path: str | Path,
        threads: int | None,
        device: str | None,
        which: str,
        name: str | None,
    ) -> Runtime:
        import torch

        from vitrail.kit.devices import pick_device
        from vitrail.weights.folder import load_model
        from vitrail.weights.read import description_of
        from vitrail.weights.temperature import read_temperature

        if threads is not None:
            torch.set_num_threads(threads)
        where = pick_device(device)
        model = load_model(path, name=name, which=which)
        if not model.num_classes:
            raise Error(f"{path} holds an encoder without a head: fine-tune from it first")
        self.labels = model.labels or [str(index) for index in range(model.num_classes)]
        self.temperature, self.runtime = read_temperature(path, which), "torch"
        self.several = bool((description_of(path) or {}).get("several_labels"))
        self.preprocessing, self.model = model.preprocessing, model.to(where)
        return TorchRuntime(model, where)

    @property
    def device(self) -> str:
        """Where the arithmetic is done."""
        return self._runtime.device

    @property
    def attends(self) -> bool:
        """Whether `attention` can be asked for: a bundle has it if it was exported with it."""
        return self._runtime.attends and (self.manifest is None or self.manifest.attends)

    @property
    def image_size(self) -> int | tuple[int, int]:
        """The model's input size: one number, or (height, width) where they differ."""
        height, width = self.preprocessing.size
        return height if height == width else (height, width)

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
        return self.answers(self.logits(images), top_k)

    def answers(self, logits: np.ndarray, top_k: int = 5) -> list[list[tuple[str, float]]]:
        """What a call gives, from logits float32 [n k] of `logits` or `forward`.

        Of equally likely labels the first in the model's order comes first.

        Raises:
            Error: ``top_k`` is below 1.
        """
        if top_k < 1:
            raise Error(f"top_k must be at least 1, not {top_k}")
        chances = self._chances(logits)
        places = likeliest(chances, top_k)
        values = np.take_along_axis(chances, places, axis=-1)
        return [
            [(self.labels[place], value) for place, value in zip(row, likely, strict=True)]
            for row, likely in zip(places.tolist(), values.tolist(), strict=True)
        ]

    def probabilities(self, pixels: np.ndarray) -> np.ndarray:
        """Of pictures made by `prepare`, uint8 [b *size 3], all of them: float32 [b k]."""
        return self._chances(self.forward(pixels))

    def with_attention(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`probabilities`, and the maps of attention [b rows columns] float32.

        Raises:
            Error: see `attention`.
        """
        self._check_attends()
        logits, maps = self._runtime.with_attention(pixels)
        return self._chances(logits), maps

    def _check_attends(self) -> None:
        if self.manifest is not None and not self.manifest.attends:
            raise Error(MERGED if self.manifest.merge_tokens else WITHOUT)

    def _chances(self, logits: np.ndarray) -> np.ndarray:
        rows = logits / np.float32(self.temperature)
        return _sigmoid(rows) if self.several else _softmax(rows)

    def logits(self, images: Picture | Iterable[Picture]) -> np.ndarray:
        """The logits before temperature, float32 [n k]; pictures as for a call.

        Raises:
            Error: a picture that cannot be read.
        """
        rows = [self._batch(batch) for batch in _batches(_listed(images), self.batch_size)]
        return np.concatenate(rows) if rows else np.zeros((0, len(self.labels)), np.float32)

    def attention(self, images: Picture | Iterable[Picture]) -> list[Attention]:
        """Where the model looks in each picture; pictures as for a call.

        Raises:
            Error: a picture that cannot be read, a model without attention, or a bundle that was
                exported without it.
        """
        self._check_attends()
        found = []
        for batch in _batches(_listed(images), self.batch_size):
            opened = [self._open(image) for image in batch]
            pixels = np.stack([self.preprocessing.geometry(image) for image in opened])
            _, maps = self._runtime.with_attention(pixels)
            found += [
                Attention(values, self.preprocessing.region(image.shape[1], image.shape[0]))
                for values, image in zip(maps, opened, strict=True)
            ]
        return found

    def stream(
        self, images: Iterable[Picture], top_k: int = 5, workers: int | None = None
    ) -> Iterator[Prediction]:
        """Predictions one by one, in the order of the pictures; for any number of them.

        The pictures are taken as they are needed, two batches ahead at the most, so a generator
        that never ends will do, and memory does not grow. One that cannot be read gives a
        prediction with an ``error``.

        Args:
            images: as for a call.
            top_k: how many labels; at most the number of classes.
            workers: threads that read, decode and resize; None for one a core; with 0 that is
                done in between, by the thread that asks.

        Returns:
            An iterator of `Prediction`: ``path`` (None for what is no file), ``labels`` as for a
            call, ``error`` (None, or the reason).

        Raises:
            Error: ``top_k`` or ``workers`` out of range.
        """
        return stream(self, _listed(images), top_k, workers)

    def _batch(self, images: Sequence[Picture]) -> np.ndarray:
        return self.forward(np.stack([self.prepare(image) for image in images]))

    def prepare(self, image: Picture) -> np.ndarray:
        """One picture, as for a call, to the pixels that the model sees: uint8 [*size 3].

        Raises:
            Error: it cannot be read; a file's name is in the sentence.
        """
        return self.preprocessing.geometry(self._open(image))

    def forward(self, pixels: np.ndarray) -> np.ndarray:
        """Pictures made by `prepare`, uint8 [b *size 3], to logits float32 [b k], in one batch."""
        return self._runtime.logits(pixels)

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


def likeliest(chances: np.ndarray, top_k: int) -> np.ndarray:
    """Where the ``top_k`` largest of [... k] are, largest first; of equals, the first: int64."""
    return np.argsort(-chances, axis=-1, kind="stable")[..., :top_k]


def _softmax(rows: np.ndarray) -> np.ndarray:
    powers = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _sigmoid(rows: np.ndarray) -> np.ndarray:
    powers = np.exp(-np.abs(rows))  # never overflows
    return np.where(rows >= 0, 1, powers) / (1 + powers)


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
