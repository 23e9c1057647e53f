"""One pass over pictures with the attention made explicit: averages of all, maps of a few.

Every tensor is heard as it is born and let go (`models.tape.Listener`), so memory is that of one
layer of one picture, whatever the depth and however many pictures; distances and entropies are
averaged as they come. The first picture is classified without listening too, and the largest
difference between the two answers is kept: inspection must not change what is inspected.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vitrail.inspection.attention import check_rollout, entropy, fused, mean_distance
from vitrail.inspection.flow import flow, reading
from vitrail.inspection.pictures import Pictures, as_input
from vitrail.inspection.places import POOLING, Layer, layers_of
from vitrail.kit.errors import Error, did_you_mean, listing
from vitrail.models.base import ImageClassifier, height_width
from vitrail.models.tape import Listener


@dataclass(frozen=True)
class Rollout:
    """How attention is rolled out; see `attention.rollout`."""

    fuse: str = "mean"
    residual: float = 0.5
    discard: float = 0.0

    def __post_init__(self):
        check_rollout(self.fuse, self.residual, self.discard)


@dataclass
class Shown:
    """The maps of one picture.

    Args:
        index: the picture's number.
        maps: for each layer [h rows columns] on its keys' grid: what the class token looks at, or
            in a layer without one what all queries look at on average.
        answer: the likeliest class and its probability.
    """

    index: int
    maps: list[np.ndarray]
    answer: tuple[int, float] | None = None


@dataclass
class Looked:
    """What a pass found.

    Args:
        layers: the layers, in order.
        distance, entropy: for each layer [h], averaged over the pictures: pixels and nats.
        rollout: float32 [images rows columns] on the first layer's grid.
        shown: the maps of the pictures that were asked for.
        pooling: where the head pools by attention, its weights [images rows columns].
        logit_gap: the largest difference between the first picture's logits with and without
            listening.
        how: how attention was rolled out.
    """

    layers: list[Layer]
    distance: list[np.ndarray]
    entropy: list[np.ndarray]
    rollout: np.ndarray
    shown: list[Shown]
    logit_gap: float
    how: Rollout
    pooling: np.ndarray | None = None
    images: int = 0


@contextmanager
def evaluating(model: ImageClassifier) -> Iterator[None]:
    """The model in evaluation mode and without gradients; afterwards as it was."""
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(was_training)


def look(
    model: ImageClassifier,
    pictures: Pictures,
    *,
    show: Sequence[int] = (),
    how: Rollout | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Looked:
    """Look at the attention of a model over pictures.

    Args:
        model: left in the mode that it was in.
        pictures: at least one.
        show: of which pictures the maps are kept.
        how: of the rollout.
        progress: called with how many pictures are done, and of how many.

    Raises:
        Error: the model has no attention from place to place, or there are no pictures.
    """
    layers = layers_with_attention(model)
    if not len(pictures):
        raise Error("there are no pictures to look at")
    how = Rollout() if how is None else how
    averages = _Averages(len(layers))
    rolled, pooled, shown, gap = [], [], [], 0.0
    with evaluating(model):
        for index in range(len(pictures)):
            images = as_input(model, pictures[index])
            heard = hear(model, images, layers, how.fuse, how.discard, index in show)
            averages.add(heard)
            rolled.append(_followed(model, layers, heard, how.residual))
            if heard.pooling is not None:
                last = layers[-1].queries
                places = heard.pooling.float().mean(1)[:, 0, -(last.tokens - last.prefix) :]
                pooled.append(places.unflatten(1, last.grid).cpu().numpy())
            if index in show:
                shown.append(Shown(index, heard.maps, answer_in(model, heard.logits)))
            if index == 0:
                gap = (
                    float((model(images) - heard.logits).abs().max())
                    if heard.logits.numel()
                    else 0.0
                )
            if progress is not None:
                progress(index + 1, len(pictures))
    return Looked(
        layers,
        averages.mean("distance"),
        averages.mean("entropy"),
        np.concatenate(rolled),
        shown,
        gap,
        how,
        np.concatenate(pooled) if pooled else None,
        len(pictures),
    )


def layers_with_attention(
    model: ImageClassifier, size: tuple[int, int] | None = None
) -> list[Layer]:
    """`places.layers_of`, or an Error for a model that has none."""
    layers = layers_of(model, size)
    if not layers:
        raise Error(
            f"{type(model).__name__} has no attention from place to place, so there is no "
            "attention map to draw; its filters and feature maps can be looked at"
        )
    return layers


@dataclass
class Heard:
    """What one forward pass left: by layer, and the logits [b k]."""

    fused: list[Tensor] = field(default_factory=list)
    distance: list[Tensor] = field(default_factory=list)
    entropy: list[Tensor] = field(default_factory=list)
    maps: list[np.ndarray] = field(default_factory=list)
    pooling: Tensor | None = None
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


def hear(
    model: ImageClassifier,
    images: Tensor,
    layers: Sequence[Layer],
    fuse: str = "mean",
    discard: float = 0.0,
    maps: bool = False,
) -> Heard:
    """Classify images [b c h w] and keep of each layer of attention what is asked for.

    Args:
        layers: all of the model's, for pictures of this size.
        maps: keep the first picture's maps too.
    """
    heard, expected = Heard(), {layer.name: layer for layer in layers}

    def listen(name: str, attention: Tensor) -> None:
        if name == POOLING:
            heard.pooling = attention
            return
        layer = expected[name]
        heard.fused.append(fused(attention, fuse, discard))
        distances = layer.distances.to(attention.device)
        heard.distance.append(mean_distance(attention, distances, layer.queries.prefix))
        heard.entropy.append(entropy(attention))
        if maps:
            heard.maps.append(_map(attention, layer))

    heard.logits = model(images, tape=Listener(listen, only=[*expected, POOLING]))
    return heard


def chosen(layers: Sequence[Layer], names: Sequence[str]) -> list[int]:
    """The numbers of layers that are named by number from 0 or by name (``stages.1.blocks.0``).

    Raises:
        Error: a layer that does not exist.
    """
    known = {layer.short: index for index, layer in enumerate(layers)}
    found: list[int] = []
    for name in names:
        plain = name.removesuffix(".attention")
        if plain in known:
            found.append(known[plain])
        elif plain.isdigit() and int(plain) < len(layers):
            found.append(int(plain))
        else:
            near = did_you_mean(plain, known) or (
                f"; they are called {listing(list(known), 3)}" if len(known) > 1 else ""
            )
            raise Error(
                f"there is no layer {name!r}: the model attends in {len(layers)} layers, "
                f"0 to {len(layers) - 1}{near}"
            )
    return sorted(set(found))


class _Averages:
    """Running means over pictures, layer by layer; a head without a value is left out of its."""

    def __init__(self, layers: int):
        self.sums: dict[str, list[np.ndarray | float]] = {
            name: [0.0] * layers for name in ("distance", "entropy")
        }
        self.counts: dict[str, list[np.ndarray | float]] = {
            name: [0.0] * layers for name in ("distance", "entropy")
        }

    def add(self, heard: Heard) -> None:
        for name in self.sums:
            for layer, tensor in enumerate(getattr(heard, name)):
                values = tensor.double().cpu().numpy()
                self.sums[name][layer] += np.nansum(values, axis=0)
                self.counts[name][layer] += np.isfinite(values).sum(axis=0)

    def mean(self, name: str) -> list[np.ndarray]:
        with np.errstate(invalid="ignore"):
            return [
                np.asarray(total) / np.asarray(count)
                for total, count in zip(self.sums[name], self.counts[name], strict=True)
            ]


def _followed(
    model: ImageClassifier, layers: Sequence[Layer], heard: Heard, residual: float
) -> np.ndarray:
    read = reading(model, layers[-1], heard.pooling)
    return flow(layers, heard.fused, read, residual).float().cpu().numpy()


def _map(attention: Tensor, layer: Layer) -> np.ndarray:
    """What the class token, or else every query on average, sees: [h rows columns], float32."""
    prefix = layer.queries.prefix
    seen = attention[0, :, 0] if layer.has_class_token else attention[0, :, prefix:].mean(1)
    return seen[:, prefix:].unflatten(1, layer.keys.grid).float().cpu().numpy()


def answer_in(model: ImageClassifier, logits: Tensor) -> tuple[int, float] | None:
    """The first picture's likeliest class and its probability, of a model's logits [b k].

    None without a head, and where a head looks at every token: [b n k].
    """
    if not model.num_classes or logits.ndim != 2:
        return None
    chance, index = logits[0].float().softmax(-1).max(-1)
    return int(index), float(chance)


def input_size(model: ImageClassifier) -> tuple[int, int]:
    """(height, width) of the model's input."""
    return height_width(model.image_size)
