"""Shards: tar archives in WebDataset's layout, by index.

A sample is a run of members with one key: ``0001.jpg`` and ``0001.cls`` belong together, the key
being everything before the first dot of the file name (with its folder), the field the rest.
(github.com/webdataset/webdataset, `base_plus_ext` and `group_by_keys` of tariterators.py.)
A picture is read by its place in the archive; nothing is unpacked, no field is ever unpickled,
and no ``pipe:`` or address is opened.
"""

import json
import re
import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.decode import SUFFIXES as PICTURES
from vitrail.data.examples import MAX_BYTES, Source, as_labels
from vitrail.data.keys import Keys
from vitrail.data.labels import Part, Parts, read_classes
from vitrail.data.pieces import Pieces
from vitrail.data.tar import Member, members, read_member
from vitrail.kit.errors import Error, did_you_mean, listing

MAX_LABEL = 2**20  # bytes of a label's field
_SAMPLE = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)", re.DOTALL)
_FIELDS = frozenset(suffix.removeprefix(".") for suffix in PICTURES)
_PICKLES = frozenset({"pkl", "pickle", "pyd", "pth", "pt"})
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def refuse_remote(name: str) -> None:
    """Raise for what WebDataset would run or fetch: pipes and addresses."""
    if name.startswith("pipe:"):
        raise Error(f"{name}: pipe: would run a command, and DATA never does: give the files")
    if re.match(r"[a-z0-9+.-]+://", name, re.IGNORECASE):
        raise Error(f"{name}: DATA is on a disk: download the files first")
    if name.lower().endswith(_COMPRESSED):
        raise Error(f"{name}: a compressed archive has no places to seek to: decompress it")


def list_shards(
    name: str, pieces: Pieces, image_field: str | None = None, label_field: str | None = None
) -> Parts:
    """The samples of tar shards, split by split.

    Args:
        name: what the user called the data.
        pieces: the archives.
        image_field: the picture's field (``jpg``, ``input.png``); None: the one that is a picture.
        label_field: the label's field, or a name in the ``json`` field; None: ``cls``, else the
            ``label`` or ``labels`` of ``json``, else ``txt``.

    Raises:
        Error: an archive that is damaged or that holds what no shard should, or a sample without
            its picture or label.
    """
    found = Parts(name, numbers=True)
    if pieces.class_file:
        found.classes = read_classes(pieces.class_file)
    reading = _Reading(*(field and field.removeprefix(".") for field in (image_field, label_field)))
    for split, files in pieces.splits.items():
        index = _Index(pieces, files)
        for number, file in enumerate(files):
            for sample in _samples(file):
                picture, written = reading.read(sample)
                index.add(number, picture, written)
        if not len(index.written):
            raise Error(f"{name}: no samples in {listing([file.name for file in files], 3)}")
        index.ignored = list(pieces.ignored) if split == next(iter(pieces.splits)) else []
        index.ignored += sorted(reading.unread)
        reading.unread.clear()
        found.splits[split] = Part(index.written, index.source(name))
    found.several = bool(reading.several)
    return found


class ShardSource(Source):
    """Pictures in tar archives.

    Args:
        name: what the user called the data.
        files: the archives.
        index: int64 [n 3]: number of the archive, place of the bytes, how many.
        keys, labels, classes, ignored: as in `Source`.
    """

    def __init__(
        self,
        name: str,
        files: Sequence[Path],
        index: np.ndarray,
        keys: Keys,
        labels: np.ndarray,
        classes: Sequence[str],
        ignored: Sequence[str],
    ):
        self.name, self.files, self.index = name, [str(file) for file in files], index
        self.keys, self.labels, self.classes = keys, as_labels(labels), tuple(classes)
        self.ignored = tuple(ignored)

    def image(self, i: int) -> bytes:
        """The i-th picture's bytes.

        Raises:
            Error: why it cannot be read.
        """
        file, at, size = self.index[i].tolist()
        if size > MAX_BYTES:
            raise Error(f"{size / 2**20:.0f} MiB, over the limit of {MAX_BYTES // 2**20} MiB")
        try:
            return read_member(self.files[file], at, size)
        except OSError as error:
            raise Error((error.strerror or str(error)).lower()) from None

    def runs(self) -> np.ndarray:
        """The archive of each picture."""
        return self.index[:, 0]

    def size(self, i: int) -> int:
        """The number of bytes of the i-th picture."""
        return int(self.index[i, 2])


class _Index:
    """What is kept of one split while its archives are read."""

    def __init__(self, pieces: Pieces, files: list[Path]):
        self.files, self.prefixes = files, [pieces.name(file) for file in files]
        self.numbers = array("q")
        self.names: list[str] = []
        self.written: list[Any] = []
        self.ignored: list[str] = []

    def add(self, number: int, picture: Member, written: str | tuple[str, ...]) -> None:
        self.numbers.extend((number, picture.at, picture.size))
        self.names.append(f"{self.prefixes[number]}/{picture.name}")
        self.written.append(written)

    def source(self, name: str) -> Any:
        places = np.frombuffer(self.numbers, np.int64).reshape(-1, 3)
        keys = Keys(self.names)
        self.names = []
        return lambda labels, classes: ShardSource(
            name, self.files, places, keys, labels, classes, self.ignored
        )


@dataclass
class _Sample:
    """Members with one key."""

    archive: Path
    key: str
    fields: dict[str, Member] = dataclass_field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"{self.archive}: sample {self.key}"

    def one(self, field: str) -> str:
        """A field that is one line of text."""
        return _one(f"{self.where}: its {field}", self.text(field))

    def text(self, field: str) -> str:
        member = self.fields[field]
        if member.size > MAX_LABEL:
            raise Error(f"{self.where}: its {field} of {member.size:,} bytes is no label")
        data = member.start
        if len(data) < member.size:
            data = read_member(str(self.archive), member.at, member.size)
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise Error(f"{self.where}: its {field} is not UTF-8 text") from None

    def json(self) -> dict[str, Any]:
        text = self.text("json")
        try:
            about = json.loads(text)
        except (ValueError, RecursionError):
            about = None
        if not isinstance(about, dict):
            raise Error(f"{self.where}: its json is no JSON object")
        return about


def _samples(archive: Path) -> Iterator[_Sample]:
    """Each run of members with one key; hidden files and those without a dot are passed over."""
    sample = None
    for member in members(archive):
        match = _SAMPLE.fullmatch(member.name)
        if match is None or member.name.rpartition("/")[2].startswith("."):
            continue
        key, field = match[1], match[2].lower()
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = _Sample(archive, key)
        if field in sample.fields:
            raise Error(f"{archive}: two members are called {member.name}")
        sample.fields[field] = member
    if sample is not None:
        yield sample


class _Reading:
    """How a sample's picture and label are found among its fields."""

    def __init__(self, image: str | None, label: str | None):
        self.image, self.label = image, label
        self.several: bool | None = None
        self.unread: set[str] = set()

    def read(self, sample: _Sample) -> tuple[Member, str | tuple[str, ...]]:
        """A sample's picture, and its label or labels as text."""
        pickles = [name for name in sample.fields if name.rpartition(".")[2] in _PICKLES]
        if pickles:
            raise Error(
                f"{sample.where} has a field {pickles[0]}: such a file can run code when it is "
                "read; make the shards without it"
            )
        picture = self._picture(sample)
        field, value = self._label(sample)
        self.unread.update(f"*.{name}" for name in sample.fields if name not in (picture, field))
        several = isinstance(value, tuple)
        if self.several is None:
            self.several = several
        if self.several != several:
            unlike = "a list, and" if several else "one value, and"
            raise Error(f"{sample.where}: its label is {unlike} those before it are not")
        return sample.fields[picture], value

    def _picture(self, sample: _Sample) -> str:
        fields = sorted(sample.fields)
        if self.image:
            if self.image not in fields:
                raise Error(f"{sample.where} has no field {self.image}, only {listing(fields)}")
            return self.image
        # "x.seg.png" is a field "seg.png", which is not taken for the picture beside "x.jpg".
        found = [name for name in fields if name in _FIELDS]
        if len(found) == 1:
            return found[0]
        if found:
            raise Error(
                f"{sample.where} has several pictures ({listing(found)}): say --image-column"
            )
        raise Error(f"{sample.where} has no picture, only {listing(fields)}")

    def _label(self, sample: _Sample) -> tuple[str, str | tuple[str, ...]]:
        fields = sample.fields
        if self.label and self.label in fields and self.label != "json":
            return self.label, sample.one(self.label)
        if not self.label and "cls" in fields:
            return "cls", sample.one("cls")
        if "json" in fields:
            names = ("label", "labels", "cls") if self.label in (None, "json") else (self.label,)
            about = sample.json()
            for name in names:
                if name in about:
                    return "json", _value(f"{sample.where}: {name} of its json", about[name])
            if self.label or "txt" not in fields:
                raise Error(
                    f"{sample.where}: its json has no {names[0]!r} (there are "
                    f"{listing(list(about)) or 'none'}){did_you_mean(names[0], about)}"
                )
        if not self.label and "txt" in fields:
            return "txt", sample.one("txt")
        wanted = self.label or "cls, json or txt"
        raise Error(
            f"{sample.where} has no label: no field {wanted}, only {listing(sorted(fields))}"
        )


def _one(what: str, text: str) -> str:
    text = text.strip()
    if not text or "\n" in text:
        raise Error(f"{what} is {'more than one line' if text else 'empty'}")
    return sys.intern(text)


def _value(what: str, value: Any) -> str | tuple[str, ...]:
    if isinstance(value, list):
        if any(one is None or isinstance(one, list | dict) for one in value):
            raise Error(f"{what} is a list of something else than labels")
        texts = [str(one).strip() for one in value]
        return tuple(dict.fromkeys(sys.intern(text) for text in texts if text))
    if isinstance(value, dict) or value is None:
        raise Error(f"{what} is no label")
    return _one(what, str(value))
