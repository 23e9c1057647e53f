"""Epochs: which samples make an epoch, in which order, by each way of sampling."""

import numpy as np

from vitrail.data.draws import balanced_order, nearby_order, occurrences, order
from vitrail.data.examples import Source
from vitrail.kit.errors import Error

SAMPLINGS = ("uniform", "balanced", "nearby")


class Epochs:
    """The samples of each epoch in order: (places in the source, earlier uses), each int64 [n].

    Args:
        source: the examples.
        seed: of the run.
        sampling, repeats: see `vitrail.data.loader.train_batches`.

    Raises:
        Error: an unknown sampling, balanced sampling of a multi-label source, or no repeats.
    """

    def __init__(self, source: Source, seed: int, sampling: str, repeats: int):
        if sampling not in SAMPLINGS:
            raise Error(f"sampling is {', '.join(SAMPLINGS)}, not {sampling!r}")
        if sampling == "balanced" and source.multi_label:
            raise Error(
                f"{source.name}: pictures with several labels cannot be drawn so that every label "
                "is equally frequent: use class weights"
            )
        if repeats < 1:
            raise Error(f"a picture is used at least once, not {repeats} times")
        self.n, self.source = len(source), source
        self.seed, self.sampling, self.repeats = seed, sampling, repeats
        self.runs = source.runs() if sampling == "nearby" else None

    def __call__(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The samples of one epoch."""
        if self.sampling == "balanced":
            places = balanced_order(self.seed, epoch, self.source.labels)
        elif self.runs is not None:
            places = nearby_order(self.seed, epoch, self.runs, self.source.window)
        else:
            places = order(self.seed, epoch, self.n)
        if self.repeats > 1:
            places = np.repeat(places[: -(-self.n // self.repeats)], self.repeats)[: self.n]
        elif self.sampling != "balanced":
            return places, np.zeros_like(places)
        return places, occurrences(places)
