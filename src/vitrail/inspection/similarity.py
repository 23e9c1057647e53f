"""How alike layers are, and patches: CKA within a model and between two, nearest patches.

CKA (Kornblith et al., "Similarity of Neural Network Representations Revisited", 2019, linear form)
compares what two layers make of the same pictures: 1 where one is a rotation and scaling of the
other, 0 where pictures that are near in one say nothing about the other. Here it is the minibatch
form of Nguyen, Raghu and Kornblith ("Do Wide and Deep Networks Learn the Same Things?", 2021,
section 2): the unbiased estimate of HSIC (Song et al., 2012, equation 5) is averaged over batches
before the quotient is taken, so that memory is that of one batch and the number does not depend on
the size of the batches but by chance. Being unbiased it can come out a little below 0.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.inspection.tokens import tokens_of
from vitrail.kit.errors import Error
from vitrail.models.base import ImageClassifier
from vitrail.models.tape import Tape

LEAST = 4  # pictures in a batch: the unbiased estimate divides by n - 3


class CKA:
    """Linear CKA between two lists of layers, batch by batch.

    ``update`` takes what the layers make of a batch, ``result`` gives the matrix so far.
    """

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self.pictures = 0

    def update(self, first: Sequence[Tensor], second: Sequence[Tensor] | None = None) -> None:
        """Add a batch.

        Args:
            first: of each layer a tensor [b ...], whatever its shape is beyond the pictures.
            second: the other side's; None for the same.

        Raises:
            Error: fewer than four pictures, or two sides of different pictures.
        """
        n = first[0].shape[0]
        if n < LEAST:
            raise Error(f"CKA needs batches of at least {LEAST} pictures, not {n}")
        if second is not None and second[0].shape[0] != n:
            raise Error(f"CKA compares layers on the same pictures, not {n} and {len(second[0])}")
        ours = torch.stack([_centred_gram(layer) for layer in first])
        theirs = ours if second is None else torch.stack([_centred_gram(x) for x in second])
        # n times the estimate, which is the sum over n (n - 3): a short last batch weighs little.
        scale = 1 / (n - 3)
        sums = [
            torch.einsum("iab,jab->ij", ours, theirs) * scale,
            ours.square().sum((1, 2)) * scale,
            theirs.square().sum((1, 2)) * scale,
        ]
        self._sums = [a + b for a, b in zip(self._sums, sums, strict=True)] if self._sums else sums
        self.pictures += n

    def result(self) -> Tensor:
        """CKA of every layer of the first side with every one of the second: float64 [l m].

        NaN where a layer makes the same of every picture.

        Raises:
            Error: nothing was added.
        """
        if not self._sums:
            raise Error("there are no pictures to compare layers on")
        across, ours, theirs = self._sums
        return across / (ours[:, None] * theirs[None]).sqrt()


def _centred_gram(layer: Tensor) -> Tensor:
    """Products of pictures, U-centred, float64 [b b].

    The unbiased HSIC of two kernels is then the sum of their products over n (n - 3) (Szekely and
    Rizzo, "Partial distance correlation", 2014, is where that form comes from): centring takes a
    number from each row and each column such that what is left sums to nothing without the
    diagonal, which is set to zero.
    """
    x = layer.flatten(1)
    x = x if x.dtype == torch.float64 else x.float()
    x = x - x.mean(0)  # changes nothing but the rounding: centring takes it out anyway
    gram = (x @ x.T).double()
    n = gram.shape[0]
    gram.fill_diagonal_(0)
    rows = gram.sum(1) / (n - 2)
    gram = gram - rows[:, None] - rows[None] + gram.sum() / ((n - 1) * (n - 2))
    return gram.fill_diagonal_(0)


@dataclass(frozen=True, eq=False)
class LayerSimilarity:
    """CKA of layers by name: ``matrix`` float64 [first second], on so many pictures."""

    first: list[str]
    second: list[str]
    matrix: Tensor
    pictures: int


def layer_similarity(
    model: ImageClassifier,
    batches: Iterable[Tensor | tuple[Tensor, Tensor]],
    other: ImageClassifier | None = None,
    only: str | Sequence[str] = "*.out",
) -> LayerSimilarity:
    """CKA between the layers of a model, or between those of two models.

    A layer is all its numbers for a picture, tokens and places alike (Raghu et al., "Do Vision
    Transformers See Like Convolutional Neural Networks?", 2021, section 3). A last batch of fewer
    than four pictures is left out.

    Args:
        model, other: in evaluation mode.
        batches: normalised pictures float [b c h w] as the model takes them; with another model
            pairs, the same pictures as each of the two takes them.
        only: which layers, names on the tape or patterns.

    Raises:
        Error: no batch of four pictures, or names that a model does not have.
    """
    cka, names = CKA(), ([], [])
    for batch in batches:
        pair = batch if isinstance(batch, tuple) else (batch, batch)
        if len(pair[0]) < LEAST:
            continue
        first = _recorded(model, pair[0], only)
        second = first if other is None else _recorded(other, pair[1], only)
        names = (list(first), list(second))
        cka.update(list(first.values()), None if other is None else list(second.values()))
    if not cka.pictures:
        raise Error(f"CKA needs at least {LEAST} pictures")
    return LayerSimilarity(*names, cka.result(), cka.pictures)


@torch.no_grad()
def _recorded(
    model: ImageClassifier, images: Tensor, only: str | Sequence[str]
) -> dict[str, Tensor]:
    tape = Tape(only=only)
    model(images.to(next(model.parameters())), tape=tape)
    if not len(tape):
        tokens_of(model, images[:1], only)  # says which layers there are
    return dict(tape.items())


@dataclass(frozen=True)
class Near:
    """A patch near another one: its picture, row and column, and the cosine of the two."""

    picture: int
    row: int
    column: int
    cosine: float


def nearest_patches(
    features: Tensor,
    grid: tuple[int, int],
    query: tuple[int, int, int],
    most: int = 8,
    among: str = "all",
) -> list[Near]:
    """The patches whose features point most nearly where a patch's do, nearest first.

    Args:
        features: [b n d], of each picture's patches in one layer: `tokens.Tokens.places`.
        grid: (rows, columns) of the n.
        query: (picture, row, column) of the patch to begin with, which is not among the found.
        most: how many.
        among: patches of the same picture (``within``), of the others (``across``), or ``all``.

    Raises:
        Error: a patch that does not exist, or another word than these three.
    """
    picture, row, column = query
    shape = (len(features), *grid)
    if not all(0 <= i < most_i for i, most_i in zip(query, shape, strict=True)):
        raise Error(
            f"there is no patch {row}, {column} of picture {picture} among {shape[0]} pictures of "
            f"{grid[0]} x {grid[1]} patches; they count from 0"
        )
    if among not in ("all", "within", "across"):
        raise Error(f"patches are sought within, across or among all pictures, not {among!r}")
    place = row * grid[1] + column
    # Picture by picture: scaled copies of all features would double the memory.
    wanted = F.normalize(features[picture, place].double(), dim=0)
    cosines = torch.stack([F.normalize(each.double(), dim=1) @ wanted for each in features])
    cosines[picture, place] = -torch.inf
    if among == "within":
        cosines[torch.arange(len(cosines)) != picture] = -torch.inf
    elif among == "across":
        cosines[picture] = -torch.inf
    best = cosines.flatten().sort(descending=True, stable=True)
    found = []
    for cosine, index in zip(
        best.values[:most].tolist(), best.indices[:most].tolist(), strict=True
    ):
        if cosine > -torch.inf:
            b, n = divmod(index, grid[0] * grid[1])
            found.append(Near(b, n // grid[1], n % grid[1], cosine))
    return found
