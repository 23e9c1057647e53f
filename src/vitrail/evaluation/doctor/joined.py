"""Several splits as one source, for sets that others are compared with."""

from collections.abc import Mapping

import numpy as np

from vitrail.data.sources import Source


class Joined(Source):
    """Sources one behind the other; their keys begin with the name of their split.

    Args:
        name: for messages.
        splits: with the same classes.
    """

    def __init__(self, name: str, splits: Mapping[str, Source]):
        parts = list(splits.values())
        self.name, self.classes = name, parts[0].classes
        self.parts, self.ends = parts, np.cumsum([len(part) for part in parts])
        self.labels = np.concatenate([part.labels for part in parts])
        self.keys = [
            key if key.startswith(f"{split}/") else f"{split}/{key}"
            for split, part in splits.items()
            for key in part.keys
        ]

    def image(self, i: int) -> bytes | np.ndarray:
        """The i-th picture of all."""
        which = int(np.searchsorted(self.ends, i, side="right"))
        return self.parts[which].image(i - (int(self.ends[which - 1]) if which else 0))

    def size(self, i: int) -> int:
        """The number of bytes of the i-th picture of all."""
        which = int(np.searchsorted(self.ends, i, side="right"))
        return self.parts[which].size(i - (int(self.ends[which - 1]) if which else 0))
