"""What became of every tensor of a file, for a program and for a person."""

from dataclasses import dataclass, field
from typing import Any

from vitrail.kit.errors import listing
from vitrail.kit.preprocess import Preprocessing


@dataclass
class LoadReport:
    """What became of every tensor.

    Attributes:
        source: the file or folder.
        family: whose file it is: ``google big_vision timm transformers torchvision cvt t2t pvt
            deit mae dino dinov2 vitrail``.
        matched: our names, loaded as they are.
        resized: our names, loaded after a resize (position tables).
        dropped: the file's names that were not used.
        fresh: our names that were not loaded; a head among them is zero, the rest as it was.
        wrappers: keys and prefixes that were taken off the names.
        numerics: config fields that were set to the family's, each with (old, new).
        preprocessing: how pictures go in now; the model has it too.
        notes: whatever else a user should know, in sentences.
    """

    source: str
    family: str
    matched: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    wrappers: list[str] = field(default_factory=list)
    numerics: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = [f"{len(self.matched)} tensors matched"]
        counts += [
            f"{len(names)} {what}"
            for what, names in (
                ("resized", self.resized),
                ("dropped", self.dropped),
                ("fresh", self.fresh),
            )
            if names
        ]
        lines = [f"{self.source} ({self.family}): {', '.join(counts)}"]
        told = {
            "resized": listing(self.resized),
            "dropped": listing(self.dropped),
            "fresh": listing(self.fresh),
            "wrappers": listing(self.wrappers),
            "numerics": ", ".join(f"{k} {old} -> {new}" for k, (old, new) in self.numerics.items()),
            "pictures": _in_words(self.preprocessing) if self.preprocessing else "",
        }
        lines += [f"  {what:10}{text}" for what, text in told.items() if text]
        return "\n".join([*lines, *(f"  {'note':10}{note}" for note in self.notes)])


def _in_words(p: Preprocessing) -> str:
    mean, std = (" ".join(f"{x:g}" for x in values) for values in (p.mean, p.std))
    return f"{p.size[0]}x{p.size[1]}, mean {mean}, std {std}, {p.interpolation}, {p.fit} {p.crop:g}"
