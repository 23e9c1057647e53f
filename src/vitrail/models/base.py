"""What every model of the zoo has in common, whatever its family.

The face: `model(images, tape=None)` gives logits [b k], `model.features(images)` what the head
sees, `model.feature_maps(images)` maps for dense prediction; `config`, `num_classes`,
`image_size`, `preprocessing` and `labels` say what it is and what it eats.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import NoneType, UnionType
from typing import Any, Protocol, Self, get_args, get_origin

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from vitrail.kit.errors import Error, did_you_mean
from vitrail.kit.preprocess import Preprocessing
from vitrail.models.tape import Tape, record

Size = int | tuple[int, int]


class ModelConfig(Protocol):
    """What every family's frozen config dataclass has: its classes, input size and channels."""

    num_classes: int
    image_size: Size
    in_channels: int


def height_width(size: Size) -> tuple[int, int]:
    """An image size as (height, width)."""
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def square_or_pair(size: Size | Sequence[int]) -> Size:
    """An image size as one whole number where both sides are equal, else (height, width).

    Raises:
        Error: it is neither a whole number nor two of them.
    """
    if isinstance(size, int):
        return size
    if len(size) != 2 or not all(isinstance(side, int) for side in size):
        raise Error(f"an image size is a whole number or (height, width), not {size!r}")
    height, width = size
    return height if height == width else (height, width)


class FeatureMaps(list[Tensor]):
    """Feature maps [b c h w], finest first, with the stride of each in input pixels."""

    def __init__(self, maps: Sequence[Tensor], strides: Sequence[int]):
        super().__init__(maps)
        self.strides = list(strides)


class ImageClassifier(nn.Module):
    """The base of every model: features, then a head.

    A family's class sets `config` and `head`, and defines `features` and `feature_maps`,
    `depth_of` (for layer-wise learning rates) and `layers`.

    Attributes:
        config: the family's frozen dataclass; with the family it is the whole model but weights.
        preprocessing: how pictures become this model's input.
        labels: the class names in the order of the logits, or None where nobody said.
        checkpointing: whether blocks are computed again in the backward pass instead of keeping
            their insides (activation checkpointing): less memory for a third more arithmetic.
        held: names of parts that stay in evaluation mode when the model is put into training mode.
    """

    head: nn.Module
    head_name = "head"
    """The name of the layer that gives the logits, in the state dict."""
    layers: int
    """How many steps deep the model is, for `depth_of`: embeddings 0, head `layers`."""

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.preprocessing = Preprocessing(size=height_width(config.image_size))
        self.labels: list[str] | None = None
        self.checkpointing = False
        self.held: tuple[str, ...] = ()

    def train(self, mode: bool = True) -> Self:
        """Training mode, or evaluation mode; parts that are `held` stay in evaluation mode."""
        super().train(mode)
        for name in self.held if mode else ():
            self.get_submodule(name).eval()
        return self

    def through(self, block: nn.Module, x: Tensor, tape: Tape | None, *rest: Any) -> Tensor:
        """``block(x, tape, *rest)``, under activation checkpointing where that is on."""
        if not self.checkpointing or tape is not None or not torch.is_grad_enabled():
            return block(x, tape, *rest)
        norms = [part for part in block.modules() if isinstance(part, _BatchNorm)]
        if not norms:
            return checkpoint(block, x, None, *rest, use_reentrant=False)
        return checkpoint(
            block, x, None, *rest, use_reentrant=False, context_fn=lambda: _once(norms)
        )

    @property
    def num_classes(self) -> int:
        """k, the number of logits; 0 for a model without a head."""
        return self.config.num_classes

    @property
    def image_size(self) -> Size:
        """The input size that the model was built for: pixels, or (height, width)."""
        return square_or_pair(self.config.image_size)

    def forward(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        """Normalised images float [b c h w] to logits [b k]; records ``logits``."""
        return record(tape, "logits", self.head(self.features(images, tape)))

    def features(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        """Normalised images float [b c h w] to what the head sees, [b d]."""
        raise NotImplementedError

    def feature_maps(self, images: Tensor) -> FeatureMaps:
        """Normalised images float [b c h w] to maps [b c h w] with `strides`, finest first."""
        raise NotImplementedError

    def refit(self, name: str, tensor: Tensor) -> tuple[Tensor, str] | None:
        """Fit a tensor of another shape into this model, as its family does with tables.

        Args:
            name: our name of the tensor.
            tensor: a file's.

        Returns:
            The tensor in the model's shape and what was done to it in words, or None where the
            family has no way.
        """
        return None

    def apply_numerics(self) -> None:
        """Make the built parts compute as the config says, for a family with numerics of its own.

        `weights.load.set_numerics` sees to activations, norms and attention scales that are the
        same everywhere in a model.
        """

    def depth_of(self, parameter: str) -> int:
        """How deep a parameter lies: 0 for embeddings, 1.. for blocks, `layers` for the head."""
        raise NotImplementedError

    def set_labels(self, labels: Sequence[str]) -> Self:
        """Name the classes.

        Raises:
            Error: another number of names than logits.
        """
        if not all(isinstance(label, str) for label in labels):
            raise Error("labels are words; write numbers as words too")
        if len(labels) != self.num_classes:
            raise Error(f"{len(labels)} labels for a model of {self.num_classes} classes")
        self.labels = list(labels)
        return self


def _once(norms: Sequence[_BatchNorm]) -> tuple[AbstractContextManager, AbstractContextManager]:
    """For the two forward passes of a checkpoint: only the first moves the running statistics."""

    @contextmanager
    def again() -> Iterator[None]:
        before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked = norm.num_batches_tracked.clone()
        try:
            yield
        finally:
            for norm, (momentum, batches) in zip(norms, before, strict=True):
                norm.momentum, norm.num_batches_tracked = momentum, batches

    return nullcontext(), again()


def check_fields(
    config: Any,
    choices: Mapping[str, Sequence[str]] | None = None,
    positive: Sequence[str] = (),
    shares: Sequence[str] = ("drop_path",),
) -> None:
    """Check what configs of every family have in common, from their ``__post_init__``.

    Args:
        config: a frozen dataclass; an ``image_size`` of two equal sides becomes one number.
        choices: the words that a field may be.
        positive: fields that are at least 1, besides ``in_channels``.
        shares: fields from 0 up to 1, without 1.

    Raises:
        Error: a value that is not as above, with the nearest word named.
    """
    object.__setattr__(config, "image_size", square_or_pair(config.image_size))
    for name, allowed in (choices or {}).items():
        value = getattr(config, name)
        if value not in allowed:
            near = did_you_mean(str(value), allowed) or f"; it is one of {', '.join(allowed)}"
            raise Error(f"{name} cannot be {value!r}{near}")
    for name in (*positive, "in_channels"):
        if getattr(config, name) < 1:
            raise Error(f"{name} must be at least 1, not {getattr(config, name)}")
    for name in shares:
        if not 0 <= getattr(config, name) < 1:
            raise Error(f"{name} is a share from 0 up to 1, not {getattr(config, name)}")
    if config.num_classes < 0:
        raise Error("num_classes cannot be negative")


def checked_config(kind: type, values: Mapping[str, Any]) -> Any:
    """Build a config dataclass from keywords.

    Raises:
        Error: a field that the family does not have, with the nearest one named; or a value of
            another type than the field's.
    """
    known: dict[str, Any] = {field.name: field.type for field in dataclasses.fields(kind)}
    # A command line's ``none`` is nothing, but for a field that is a word: there it is that word.
    values = {k: "none" if v is None and known.get(k) is str else v for k, v in values.items()}
    for name, value in values.items():
        if name not in known:
            near = did_you_mean(name, known) or "; it has " + ", ".join(known)
            raise Error(f"{kind.__name__} has no field {name!r}{near}")
        union = isinstance(known[name], UnionType)
        types = [get_origin(of) or of for of in (get_args(known[name]) if union else [known[name]])]
        if not any(_is_a(value, of) for of in types):
            wanted = " or ".join(_IN_WORDS[of] for of in types)
            raise Error(f"{name} must be {wanted}, not {value!r}")
    return kind(**values)


_IN_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a word",
    tuple: "a list of numbers",
    NoneType: "nothing",
}


def _is_a(value: Any, of: type) -> bool:
    # True is an int to Python, and 1 is no float; JSON has lists and no tuples.
    accepted = {float: (int, float), tuple: (tuple, list)}.get(of, of)
    return isinstance(value, accepted) and (of is bool or not isinstance(value, bool))
