"""Robustness: accuracy under ImageNet-C's corruptions, and at other resolutions than trained at.

Corruptions are made on the fly by a source that hands out corrupted pictures, so that the loader's
worker processes make them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitrail.data.decode import decode
from vitrail.data.examples import Source, Subset
from vitrail.data.loader import eval_batches
from vitrail.evaluation.accuracy import Accuracy, evaluate
from vitrail.evaluation.corruptions import check_names, corrupt, ice_photographs
from vitrail.evaluation.severities import CORRUPTIONS, table_for
from vitrail.kit.errors import Error
from vitrail.kit.preprocess import Preprocessing
from vitrail.metrics.bootstrap import bootstrap_interval
from vitrail.models.base import ImageClassifier
from vitrail.models.cost import cost

Say = Callable[[str], None]


class CorruptedSource(Subset):
    """Another source's pictures as a model sees them, under one corruption.

    Args:
        source: the clean pictures.
        preprocessing: gives the size; the loader must not resize or crop again.
        name, severity, seed, photographs: see `corruptions.corrupt`.
    """

    def __init__(
        self,
        source: Source,
        preprocessing: Preprocessing,
        name: str,
        severity: int,
        seed: int,
        photographs: Sequence[np.ndarray] = (),
    ):
        super().__init__(source, np.arange(len(source)))
        self.preprocessing = preprocessing
        self.corruption, self.severity, self.seed = name, severity, seed
        self.photographs = photographs

    def image(self, i: int) -> np.ndarray:
        """The i-th picture, uint8 [*size 3]."""
        image = super().image(i)
        pixels = image if isinstance(image, np.ndarray) else decode(image)
        clean = self.preprocessing.geometry(pixels)
        return corrupt(
            clean,
            self.corruption,
            self.severity,
            self.keys[i],
            self.seed,
            photographs=self.photographs,
        )

    def arrays(self, indices: np.ndarray) -> None:
        """Nothing: every picture is made for itself."""
        return


@dataclass(frozen=True)
class Robustness:
    """Accuracy by corruption and severity.

    Attributes:
        clean: top-1 on the same images as they are, 0..1.
        n: images.
        severities: those measured.
        rows: for each corruption top-1 at each severity.
        mean_error: the mean over corruptions of the mean error over severities, 0..1; of all
            fifteen at all five severities this is ImageNet-C's mCE without AlexNet's division.
        low, high: its 95 % interval, bootstrap over images.
        relative_error: mean_error less the clean error.
        table: whose parameters were used.
        drawn_frost: frost is among them, with ice that is drawn and not photographed.
    """

    clean: float
    n: int
    severities: tuple[int, ...]
    rows: Mapping[str, tuple[float, ...]]
    mean_error: float
    low: float
    high: float
    relative_error: float
    table: str
    drawn_frost: bool

    def error(self, name: str) -> float:
        """A corruption's mean error over the severities."""
        return 1 - float(np.mean(self.rows[name]))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        fields = {name: value for name, value in vars(self).items() if name != "rows"}
        rows = [
            {"name": name, "top1": list(shares), "mean_error": self.error(name)}
            for name, shares in self.rows.items()
        ]
        return fields | {"severities": list(self.severities), "rows": rows}


def robustness(
    model: ImageClassifier,
    source: Source,
    clean: Accuracy,
    names: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    *,
    seed: int = 0,
    photographs: Sequence[np.ndarray] = (),
    batch_size: int = 64,
    workers: int = 0,
    say: Say = lambda _: None,
) -> Robustness:
    """Measure a model under corruptions.

    Args:
        source: the clean images; pass a `subset` to measure on fewer.
        clean: the model's answers to at least these images.
        names, severities: see `corruptions`; each pair is one pass over the images.
        seed: of all draws.
        photographs: of ice, whole, for frost; without any the ice is drawn.
        say: told what was measured.

    Raises:
        Error: unknown names or severities, or a model whose input is not of three channels.
    """
    names, severities = list(dict.fromkeys(names)), sorted(set(severities))
    check_names(names, severities)
    if not names or not severities:
        raise Error("robustness needs at least one corruption and one severity")
    sides = model.preprocessing.size
    ice = ice_photographs(photographs, max(sides)) if "frost" in names else []
    as_it_is = model.preprocessing.replace(crop=1.0, fit="crop")
    rows: dict[str, tuple[float, ...]] = {}
    wrong: dict[str, np.ndarray] = {}  # by key, the share of wrong answers, summed over corruptions
    for name in names:
        shares = []
        for severity in severities:
            pictures = CorruptedSource(source, model.preprocessing, name, severity, seed, ice)
            batches = eval_batches(pictures, as_it_is, batch_size, workers=workers)
            found = evaluate(model, batches, source.classes, mistakes=0, examples=0)
            misses = (found.predictions != found.labels).double().numpy()
            wrong[name] = wrong.get(name, 0) + misses / len(severities)
            shares.append(found.top1)
        rows[name] = tuple(shares)
        say(f"{name}: top-1 " + ", ".join(f"{100 * share:.1f} %" for share in shares))
    each = np.mean(list(wrong.values()), 0)
    same = set(source.keys)
    right = (clean.predictions == clean.labels).tolist()
    own = [good for key, good in zip(clean.keys, right, strict=True) if key in same]
    top1 = float(np.mean(own))
    low, high = bootstrap_interval(each)
    return Robustness(
        clean=top1,
        n=len(each),
        severities=tuple(severities),
        rows=rows,
        mean_error=float(each.mean()),
        low=low,
        high=high,
        relative_error=float(each.mean()) - (1 - top1),
        table=table_for(min(sides)),
        drawn_frost="frost" in names and not ice,
    )


@dataclass(frozen=True)
class AtSize:
    """A model at one resolution.

    Attributes:
        size: (height, width) of its input.
        top1, top5, loss: as `Accuracy` has them.
        low, high: of top1, 95 %, bootstrap over images.
        macs: multiply-adds an image; None where nobody counts them.
        own: whether this is the size that the model has.
    """

    size: tuple[int, int]
    top1: float
    top5: float
    loss: float
    low: float
    high: float
    macs: int | None
    own: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return dict(vars(self)) | {"size": list(self.size)}


def at_size(model: ImageClassifier, result: Accuracy, own: bool) -> AtSize:
    """One row of a resolution sweep, from an evaluation of the model at that size."""
    right = (result.predictions == result.labels).double().numpy()
    try:
        macs = cost(model).macs
    except Error:
        macs = None
    low, high = bootstrap_interval(right)
    height, width = model.preprocessing.size
    return AtSize((height, width), result.top1, result.top5, result.loss, low, high, macs, own)
