"""Data with other classes than the model: ImageNet-V2, -A, -R, Sketch, and maps of one's own.

A view of the model answers in the data's classes. Each of them stands for one or several of the
model's, and its score is the log of their summed exponentials, so that its probability is theirs
together; for one class that is its own logit.

The convention of ImageNet-A and -R (Hendrycks et al. 2019, 2020): an image of their 200 classes is
classified among these 200 only, so the other 800 logits are left out. The view does that whenever
it is used.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.evaluation.imagenet import wnids
from vitrail.kit.errors import Error, did_you_mean, listing
from vitrail.models.base import ImageClassifier
from vitrail.models.tape import Tape, record

WNID = re.compile(r"n\d{8}(?![0-9])")
IMAGENET = 1000

Groups = list[list[int]]


class Among(ImageClassifier):
    """A model that answers in other classes: sums over groups of its own.

    Args:
        model: the whole model; it is shared, not copied.
        groups: for each new class the numbers of the model's.
        names: of the new classes.
        temperature: that the logits will be divided by: a group of several classes then has the
            sum of their probabilities after it.
    """

    def __init__(
        self,
        model: ImageClassifier,
        groups: Groups,
        names: Sequence[str],
        temperature: float = 1.0,
    ):
        super().__init__(dataclasses.replace(model.config, num_classes=len(groups)))
        self.model, self.temperature = model, temperature
        self.head = nn.Identity()
        self.preprocessing = model.preprocessing
        most = max(map(len, groups))
        places = torch.tensor([[*group, *[-1] * (most - len(group))] for group in groups])
        device = next(model.parameters()).device
        self.register_buffer("places", places.to(device), persistent=False)
        self.set_labels(list(names))
        self.train(model.training)

    def forward(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        """Normalised images float [b c h w] to logits [b k] of the new classes."""
        logits = self.model(images, tape)
        places = self.places
        picked = logits[:, places.clamp(min=0)].masked_fill(places < 0, -torch.inf)  # [b k most]
        if picked.shape[2] == 1:
            return record(tape, "among", picked[..., 0])
        together = self.temperature * (picked / self.temperature).logsumexp(2)
        return record(tape, "among", together)

    def features(self, images: Tensor, tape: Tape | None = None) -> Tensor:
        """The whole model's features, [b d]."""
        return self.model.features(images, tape)


def imagenet_groups(classes: Sequence[str], model: ImageClassifier) -> tuple[Groups, str] | None:
    """How the data's classes lie among a model's 1,000 of ImageNet, told by the folders' names.

    Args:
        classes: the data's. WordNet ids, alone or followed by a word (``n01440764_tench``), or
            the numbers 0 to 999 of ImageNet-V2.
        model: with 1,000 classes.

    Returns:
        The groups and a sentence, or None where the names are of neither kind, the model's
        classes are not ImageNet's, or all of its classes are there under their own names.
    """
    if model.num_classes != IMAGENET or not classes:
        return None
    own = {name: place for place, name in enumerate(model.labels or [])}
    named_alike = set(classes) <= set(own)
    if named_alike and len(classes) == IMAGENET:
        return None
    if set(classes) == {str(number) for number in range(IMAGENET)}:
        named = "class folders 0 to 999 are taken for ImageNet's class numbers (as in ImageNet-V2)"
        return [[int(name)] for name in classes], named
    ids = [match[0] if (match := WNID.match(name)) else "" for name in classes]
    places = {wnid: place for place, wnid in enumerate(wnids())}
    if named_alike:
        places = {wnid: own[name] for wnid, name in zip(ids, classes, strict=True)}
    if not all(ids) or len(set(ids)) < len(ids):
        return None
    strangers = [name for name, wnid in zip(classes, ids, strict=True) if wnid not in places]
    if strangers:
        raise Error(
            f"{len(strangers)} of the data's {len(classes)} classes are WordNet ids that are not "
            f"among ImageNet's 1,000: {listing(strangers)}"
        )
    named = "class folders are taken for ImageNet's classes by their WordNet ids"
    if len(ids) < IMAGENET:
        named += f", and answers are looked for among these {len(ids):,} only"
    return [[places[wnid]] for wnid in ids], named


def read_class_map(path: Path | str, classes: Sequence[str], model: ImageClassifier) -> Groups:
    """A map from the data's classes to the model's, as a JSON file says it.

    Args:
        path: ``{"data class": model class or [model classes]}``. A model class is its name, its
            number, or for a model of 1,000 classes a WordNet id of ImageNet's.
        classes: the data's class names; each is in the map.
        model: gives the names.

    Raises:
        Error: no such file, not of that form, a class that is missing or unknown, or one of the
            model's in two groups.
    """
    known = _model_classes(model)
    table = _read_map(Path(path).expanduser())
    missing = [name for name in classes if name not in table]
    if missing:
        near = did_you_mean(missing[0], table)
        raise Error(
            f"{path}: {len(missing)} of the data's {len(classes)} classes are not in the map: "
            f"{listing(missing)}{near}"
        )
    groups: Groups = []
    owner: dict[int, str] = {}
    for name in classes:
        value = table[name]
        wanted = value if isinstance(value, list) else [value]
        if not wanted:
            raise Error(f"{path}: class {name!r} is mapped to nothing")
        group = [
            _number(one, known, model.num_classes, f"{path}: class {name!r}") for one in wanted
        ]
        for number in group:
            if owner.setdefault(number, name) != name:
                raise Error(
                    f"{path}: both {owner[number]!r} and {name!r} are mapped to the model's class "
                    f"{number}: the two could not be told apart"
                )
        groups.append(sorted(set(group)))
    return groups


def _model_classes(model: ImageClassifier) -> dict[str, int]:
    known: dict[str, int] = {}
    if model.num_classes == IMAGENET:
        known |= {wnid: place for place, wnid in enumerate(wnids())}
    for place, name in enumerate(model.labels or []):
        known[name] = place
    return known


def _number(value: Any, known: Mapping[str, int], classes: int, where: str) -> int:
    if isinstance(value, str) and value in known:
        return known[value]
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < classes:
        return value
    near = did_you_mean(str(value), known) if isinstance(value, str) else ""
    raise Error(
        f"{where} is mapped to {value!r}, which is neither one of the model's class names nor a "
        f"number from 0 to {classes - 1}{near}"
    )


def _read_map(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise Error(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from None
    except ValueError:
        raise Error(f"{path}: not a JSON file") from None
    if not isinstance(table, dict):
        raise Error(f'{path}: a class map is a JSON object {{"data class": model class}}')
    return table
