"""Fingerprints: is this the data set that the run began with, and if not, what is different?

One hash for all, kept with the run's settings, tells whether something changed; the list behind
it, a compressed file beside the checkpoints, tells what. Keys, labels, order and contents count;
dates do not, so a data set may be copied to another machine.
"""

import gzip
import hashlib
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.data.examples import Source
from vitrail.data.scan import Found, scan
from vitrail.kit.errors import Error, listing
from vitrail.kit.files import write_whole


@dataclass(frozen=True)
class Fingerprint:
    """What a source holds.

    Attributes:
        by: ``content`` (a hash of each file's bytes), or ``size`` (their number) when the source
            was too large to be read whole (`vitrail.data.scan.LIMIT` files).
        classes: the class names in order.
        entries: (key, class name, content or size) in the order of the source; several class
            names are joined by ``|``.
    """

    by: str
    classes: tuple[str, ...]
    entries: tuple[tuple[str, str, str], ...]

    @property
    def sha256(self) -> str:
        """One hash over everything."""
        total = hashlib.sha256(json.dumps([self.by, self.classes]).encode())
        for entry in self.entries:
            total.update(json.dumps(entry).encode())
        return total.hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The short form: ``by examples classes sha256``."""
        return {
            "by": self.by,
            "examples": len(self.entries),
            "classes": len(self.classes),
            "sha256": self.sha256,
        }

    def write(self, path: Path | str) -> None:
        """Write the long form, gzipped JSON lines, whole or not at all."""
        lines = [json.dumps([self.by, *self.classes]), *map(json.dumps, self.entries)]
        packed = gzip.compress("\n".join(lines).encode(), 6, mtime=0)
        write_whole(Path(path), lambda staged: staged.write_bytes(packed), len(packed))

    @classmethod
    def read(cls, path: Path | str) -> "Fingerprint":
        """The inverse of `write`.

        Raises:
            Error: there is no such file, or it is damaged.
        """
        try:
            text = gzip.decompress(Path(path).read_bytes()).decode()
            (by, *classes), *entries = [json.loads(line) for line in text.split("\n")]
            return cls(
                by, tuple(classes), tuple((key, name, token) for key, name, token in entries)
            )
        except (OSError, EOFError, ValueError, TypeError, zlib.error) as error:
            raise Error(f"{path}: the list of the run's data cannot be read ({error})") from None

    def changes(self, now: "Fingerprint") -> list[str]:
        """What is different now, a few words each with the first names; empty: nothing is."""
        before, after = _numbered(self), _numbered(now)
        gone = [key for key in before if key not in after]
        new = [key for key in after if key not in before]
        # The same contents under another name: every new name is used up once.
        unclaimed = {after[key][1]: key for key in new} if self.by == now.by == "content" else {}
        renamed = {
            key: unclaimed.pop(before[key][1]) for key in gone if before[key][1] in unclaimed
        }
        arrived = set(renamed.values())
        both = [key for key in before if key in after]
        relabelled = [key for key in both if before[key][0] != after[key][0]]
        changed = (
            [key for key in both if before[key][1] != after[key][1]] if self.by == now.by else []
        )
        words = [
            _words("added", [key[0] for key in new if key not in arrived]),
            _words("removed", [key[0] for key in gone if key not in renamed]),
            _words("renamed", [f"{old[0]} to {new_key[0]}" for old, new_key in renamed.items()]),
            _words(
                "relabelled",
                [f"{k[0]} from {before[k][0]} to {after[k][0]}" for k in relabelled],
            ),
            _words("with other contents", [key[0] for key in changed]),
        ]
        if self.classes != now.classes and not any(words):
            words.append("other class names")
        if not any(words) and list(before) != list(after):
            words.append("another order")
        return [word for word in words if word]


def fingerprint(source: Source, found: Found | None = None) -> Fingerprint:
    """The fingerprint of a source.

    Args:
        source: what to describe.
        found: its scan, if there was one, which has the hashes already. (Of the source itself,
            not of what `readable` left of it.)
    """
    found = found or scan(source)
    if found.digests is None:
        tokens = [str(source.size(i)) for i in range(len(source))]
    else:
        tokens = [f"{value:016x}" for value in found.digests.tolist()]
    names = [source.label_names(i) for i in range(len(source))]
    return Fingerprint(
        by="size" if found.digests is None else "content",
        classes=source.classes,
        entries=tuple(zip(source.keys, names, tokens, strict=True)),
    )


def _numbered(one: Fingerprint) -> dict[tuple[str, int], tuple[str, str]]:
    """(key, how often it came before) to (class, token): a table may list a file twice."""
    seen: dict[str, int] = {}
    numbered = {}
    for key, name, token in one.entries:
        seen[key] = seen.get(key, -1) + 1
        numbered[key, seen[key]] = (name, token)
    return numbered


def _words(what: str, names: list[str]) -> str:
    return f"{len(names):,} {what} ({listing(names, 3)})" if names else ""
