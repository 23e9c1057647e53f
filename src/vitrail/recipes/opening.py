"""Opening the data of a run: looked into, described, fingerprinted, and cut into its splits.

A data set that is reached by number is looked into whole (up to a limit). Of one that is read in
turn (``hf:NAME?stream=1``) only the first window is: it gives the size of the pictures and the
statistics of their pixels; its val and test are read into memory.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.data.fingerprint import Fingerprint, fingerprint
from vitrail.data.scan import Found, readable, scan
from vitrail.data.sources import Source, Spec, hold_out, is_stream, open_splits
from vitrail.data.stream import Handful, Stream, open_streams
from vitrail.kit.errors import Error
from vitrail.training.few_shots import FewShots
from vitrail.training.session import Data
from vitrail.training.trouble import check_unreadable


@dataclass(frozen=True)
class Opened:
    """Data ready to train on, and what is known of them.

    Attributes:
        parts: the splits.
        sample: pictures of train that are reached by number: all of them, or a stream's first.
        prints: the fingerprints of train and val.
        facts: for the model folder and the report.
        lines: what to tell the user.
        pictures: (width, height) of the middling training picture, where it is known.
        own_val: whether the data have a val of their own.
    """

    parts: Data
    sample: Source
    prints: Mapping[str, Fingerprint]
    facts: Mapping[str, Any]
    lines: list[str]
    pictures: tuple[int, int] | None
    own_val: bool


def open_data(
    data: Spec, max_corrupt: float, val_fraction: float, seed: int, **options: Any
) -> Opened:
    """Open (with the options of `open_splits`), look into and describe the data.

    Args:
        data: what the user calls DATA.
        max_corrupt: the share of the training pictures that may be unreadable.
        val_fraction: the share of train that becomes val, where there is none.
        seed: of that cut.

    Raises:
        Error: what `open_splits` raises, no train split, or too many unreadable pictures.
    """
    if isinstance(data, str) and is_stream(data):
        return _open_stream(data, max_corrupt, **options)
    splits = open_splits(data, **options)
    own_val = "val" in splits
    if val_fraction:
        splits = hold_out(splits, val_fraction, seed)
    if "train" not in splits:
        raise _no_train(data, splits)
    found = {name: scan(source) for name, source in splits.items()}
    check_unreadable(dict(found["train"].unreadable), len(splits["train"]), max_corrupt)
    prints = {
        name: fingerprint(splits[name], found[name]) for name in ("train", "val") if name in found
    }
    good = {name: readable(source, found[name]) for name, source in splits.items()}
    parts = Data(good["train"], good.get("val"), good.get("test"), found["train"].unreadable)
    return Opened(
        parts=parts,
        sample=good["train"],
        prints=prints,
        facts=_facts(data, good, found),
        lines=_lines(found),
        pictures=found["train"].median,
        own_val=own_val,
    )


def _open_stream(spec: str, max_corrupt: float, **options: Any) -> Opened:
    """Train in turn, val and test in memory."""
    streams = open_streams(spec, **options)
    if "train" not in streams:
        raise _no_train(spec, streams)
    train = streams["train"]
    if not len(train):
        raise Error(f"{spec}: there are no images")
    first = itertools.islice(train.epoch(0, 0), train.window)
    sources: dict[str, Source] = {"train": Handful(train, list(first))}
    sources |= {name: one.in_memory() for name, one in streams.items() if name != "train"}
    found = {name: scan(source) for name, source in sources.items()}
    check_unreadable(dict(found["train"].unreadable), len(sources["train"]), max_corrupt)
    good = {name: readable(source, found[name]) for name, source in sources.items()}
    sizes = tuple((f"part {k}", "", str(train.size(k))) for k in range(len(train.parts)))
    prints = {"train": Fingerprint("size", train.classes, sizes)}
    if "val" in good:
        prints["val"] = fingerprint(sources["val"], found["val"])
    of_train = f"{len(train):,} images in {len(train.classes)} classes, read in turn, in "
    of_train += f"{len(train.parts):,} part{'s' * (len(train.parts) > 1)}; of the first of them:"
    everything: dict[str, Source | Stream] = {**good, "train": train}
    return Opened(
        parts=Data(train, good.get("val"), good.get("test")),
        sample=good["train"],
        prints=prints,
        facts=_facts(spec, everything, found),
        lines=[f"train: {of_train}", *_lines(found)],
        pictures=found["train"].median,
        own_val="val" in good,
    )


def open_watched(data: Spec | None, every: int) -> FewShots | None:
    """The data set that a run is watched on: its train split, and test, else val, else a fifth.

    Args:
        data: what ``--watch`` says; None: nothing is watched.
        every: steps between two looks.

    Raises:
        Error: what `open_splits` raises, or no train split.
    """
    if data is None:
        return None
    splits = open_splits(data)
    if "train" not in splits:
        raise Error(f"--watch {_no_train(data, splits)}")
    test = splits.get("test") or splits.get("val")
    if test is not None:
        return FewShots(splits["train"], test, every)
    train, test = splits["train"].split(0.2, seed=0)
    return FewShots(train, test, every)


def check_place(data: Spec, out: Path) -> None:
    """Refuse an output folder inside the data."""
    if isinstance(data, str | Path) and Path(data).is_dir():
        inside = out.expanduser().resolve()
        if inside.is_relative_to(Path(data).expanduser().resolve()):
            raise Error(f"--out {out} lies inside the data, which stay as they are: give another")


def _no_train(data: Spec, splits: Mapping[str, Any]) -> Error:
    return Error(f"{data}: there is no train split, only {' and '.join(splits)}")


def _lines(found: Mapping[str, Found]) -> list[str]:
    lines = []
    for name, one in found.items():
        first, *others = one.lines()
        lines += [f"{name + ':':<6} {first}", *(f"       {line}" for line in others)]
    if "val" not in found:
        lines.append("val:   none, so there will be no best weights, only those of the last step")
    return lines


def _facts(
    data: Spec, splits: Mapping[str, Source | Stream], found: Mapping[str, Found]
) -> dict[str, Any]:
    return {
        "name": str(data) if isinstance(data, str | Path) else "arrays",
        "splits": {name: len(source) for name, source in splits.items()},
        "classes": len(splits["train"].classes),
        "unreadable": [
            {"key": key, "reason": reason}
            for one in found.values()
            for key, reason in one.unreadable
        ],
    }
