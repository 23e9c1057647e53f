"""Tokens at every layer: where they lie, how long they are, and which stand out.

Large models turn a few patches of little content into registers: tokens of far greater norm that
hold something about the whole picture, and spoil maps of attention and of features (Darcet et al.,
"Vision Transformers Need Registers", 2024, section 2). They cut at a norm of 150, by the eye, in
DINOv2's giant model; other models have other norms, so here the cut-off is a multiple of the median
norm of the layer's patches, unless a norm is given.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitrail.inspection.places import Grid, layers_of
from vitrail.kit.errors import Error, did_you_mean
from vitrail.models.base import ImageClassifier
from vitrail.models.t2t import T2TConfig
from vitrail.models.tape import Tape

TIMES = 3.0  # the median norm: a patch above it stands out


@dataclass(frozen=True, eq=False)
class Tokens:
    """What leaves a layer.

    Attributes:
        name: on the tape, such as ``blocks.3.out``.
        grid: (rows, columns) of the places.
        prefix: [b p d], tokens that lie nowhere: class, distillation, registers.
        places: [b n d], row by row.
    """

    name: str
    grid: Grid
    prefix: Tensor
    places: Tensor


def tokens_of(
    model: ImageClassifier, images: Tensor, only: str | Sequence[str] = "*.out"
) -> list[Tokens]:
    """The tokens that leave each layer, in order; positions of a convolutional map are tokens too.

    Args:
        model: in evaluation mode.
        images: float [b c h w], normalised, as the model takes them.
        only: names on the tape, or patterns: ``blocks.3.out``, ``stages.*.out``.

    Raises:
        Error: a layer that the model does not have.
    """
    tape = Tape(only=only)
    weight = next(model.parameters())
    with torch.no_grad():
        model(images.to(weight), tape=tape)
    size = (images.shape[-2], images.shape[-1])
    found = list(_laid_out(model, tape, size))
    if not found:
        everything = Tape(only="*.out")
        with torch.no_grad():
            model(images[:1].to(weight), tape=everything)
        asked = only if isinstance(only, str) else ", ".join(only)
        near = did_you_mean(asked, everything) or "; they are " + ", ".join(everything)
        raise Error(f"{type(model).__name__} has no layer {asked!r}{near}")
    return found


def _laid_out(model: ImageClassifier, tape: Tape, size: Grid) -> Iterator[Tokens]:
    laid = {layer.short: layer.queries for layer in layers_of(model, size)}
    for name, tensor in tape.items():
        layer = name.rpartition(".")[0]
        if tensor.ndim == 4:  # a map [b c h w]
            places = tensor.flatten(2).transpose(1, 2)
            grid = (tensor.shape[2], tensor.shape[3])
            yield Tokens(name, grid, places[:, :0], places)
        elif layer in laid:
            prefix = laid[layer].prefix
            yield Tokens(name, laid[layer].grid, tensor[:, :prefix], tensor[:, prefix:])
        elif isinstance(model.config, T2TConfig) and layer.startswith("tokens."):
            grid = model.config.grids(size)[int(layer.split(".")[1])]  # a Performer
            yield Tokens(name, grid, tensor[:, :0], tensor)


@dataclass(frozen=True, eq=False)
class TokenNorms:
    """The Euclidean norms of the tokens that leave one layer, over all pictures.

    Attributes:
        name: of the layer on the tape.
        prefix: float32 [b p].
        places: float32 [b rows columns].
        cutoff: the norm above which a place stands out.
    """

    name: str
    prefix: Tensor
    places: Tensor
    cutoff: float

    @property
    def median(self) -> float:
        """Of the places."""
        return float(self.places.median())

    @property
    def outliers(self) -> Tensor:
        """The places that stand out: bool [b rows columns]."""
        return self.places > self.cutoff

    @property
    def share(self) -> float:
        """The share of places that stand out, 0..1."""
        return float(self.outliers.double().mean())

    def where(self) -> list[tuple[int, int, int, float]]:
        """The outliers as (picture, row, column, norm), the longest first."""
        found = [tuple(int(i) for i in place) for place in self.outliers.nonzero()]
        return sorted(
            ((b, row, column, float(self.places[b, row, column])) for b, row, column in found),
            key=lambda outlier: -outlier[3],
        )


class Norms:
    """Collects the norms of tokens batch by batch: a number a token is all that is kept.

    Args:
        cutoff: a norm above which a place is an outlier; None for ``times`` the median norm of the
            layer's places.
        times: see there.
    """

    def __init__(self, cutoff: float | None = None, times: float = TIMES):
        self.cutoff, self.times = cutoff, times
        self._prefixes: dict[str, list[Tensor]] = {}
        self._places: dict[str, list[Tensor]] = {}

    def add(self, layers: Iterable[Tokens]) -> None:
        """Add what leaves each layer, of pictures of one size."""
        for tokens in layers:
            norms = tokens.places.float().norm(dim=2).unflatten(1, tokens.grid)
            self._places.setdefault(tokens.name, []).append(norms.cpu())
            prefix = tokens.prefix.float().norm(dim=2)
            self._prefixes.setdefault(tokens.name, []).append(prefix.cpu())

    def result(self) -> list[TokenNorms]:
        """The norms of every layer.

        Raises:
            Error: nothing was added.
        """
        if not self._places:
            raise Error("there are no pictures to take tokens of")
        found = []
        for name, parts in self._places.items():
            places = torch.cat(parts)
            cut = self.times * float(places.median()) if self.cutoff is None else self.cutoff
            found.append(TokenNorms(name, torch.cat(self._prefixes[name]), places, cut))
        return found


def token_norms(
    model: ImageClassifier,
    batches: Iterable[Tensor],
    only: str | Sequence[str] = "*.out",
    cutoff: float | None = None,
    times: float = TIMES,
) -> list[TokenNorms]:
    """The norms of all tokens at every layer.

    Args:
        batches: of normalised pictures float [b c h w], all of one size.
        only: as for `tokens_of`.
        cutoff, times: as for `Norms`.

    Raises:
        Error: no pictures, or a layer that the model does not have.
    """
    norms = Norms(cutoff, times)
    for images in batches:
        norms.add(tokens_of(model, images, only))
    return norms.result()
