"""What kinds of study share: runs of one group over seeds, means, and the settings held fixed.

A group is what differs in nothing but the seed: one cell of a table, one point of a chart.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from vitrail.kit.chart import Line
from vitrail.kit.errors import Error, listing
from vitrail.studies.definition import RUN, Ask, Candidate, Definition, Record, candidate
from vitrail.studies.flags import KINDS_OF
from vitrail.studies.statistics import Mean, t_mean

# What runs are chosen by: a record's validation accuracy of the weights that a run ends with.
FINAL = "final_val_top1"


def candidates(ask: Ask, default: Sequence[str]) -> list[Candidate]:
    """The models that were asked for, or the kind's own.

    Raises:
        Error: an unknown model, or two of one label.
    """
    found = [candidate(words) for words in (ask.models or default)]
    labels = [one.label for one in found]
    for label in labels:
        if labels.count(label) > 1:
            raise Error(f"two models are called {label}: name them apart, as A={label} and B=...")
    return found


FLAG_OF = {"duration": "--durations", "seed": "--first-seed"}  # what is no business of --set


def check_size(ask: Ask) -> None:
    """Refuse a number of pictures that the data do not have, or too few to have every class."""
    for size in ask.sizes:
        if size > ask.train_images:
            raise Error(
                f"--sizes {size}: the data have {ask.train_images:,} pictures to learn from, "
                "validation apart"
            )
        if size and size < ask.classes:  # 0 is all of them
            raise Error(
                f"--sizes {size}: there are {ask.classes} classes, and each needs a picture"
            )


def check_validation(ask: Ask, what: str) -> None:
    """Refuse a study that chooses by validation pictures where there are none.

    Args:
        what: chooses by them, in words: ``search``.
    """
    if not ask.validation:
        raise Error(
            f"{what} chooses by validation pictures, and there are none: give --held-out a share "
            "above 0"
        )


def check_test(ask: Ask, kind: str) -> None:
    """Refuse a study that is measured on test pictures alone where there are none."""
    if not ask.test:
        raise Error(
            f"{kind} is measured on test pictures, and the data have none: give data with a test "
            "split, such as a folder with train/ and test/"
        )


def check_words(ask: Ask, kind: str) -> None:
    """Refuse what a kind would otherwise pass over in silence.

    Raises:
        Error: what belongs to other kinds, or a setting that a flag decides.
    """
    given = {
        "--sizes": ask.sizes,
        "--mode": ask.mode,
        "--preset": ask.preset,
        "--axis": ask.axes,
        "--change": ask.changes,
        "--samples": ask.samples is not None,
        "--max-macs": ask.limit is not None,
    }
    for flag, kinds in KINDS_OF.items():
        if given[flag] and kind not in kinds:
            raise Error(f"{kind} has no {flag}: leave it out, it belongs to {listing(kinds)}")
    for name, flag in FLAG_OF.items():
        if name in ask.settings:
            raise Error(f"--set {name} would be passed over: a study takes {flag} instead")


def fixed_settings(ask: Ask) -> dict[str, Any]:
    """Recipe settings that a controlled comparison pins, so that none follows a run's length.

    Plain augmentation, as the paper's pre-training has it, no mixing, no smoothing; the user's
    own settings win.
    """
    side = ask.image_size or ask.side or 224
    small = {"augment.crop": "pad", "augment.pad": max(1, side // 8)}
    large = {"augment.crop": "inception"}
    settings: dict[str, Any] = {
        "normalize": "model",
        "target.mixup": 0.0,
        "target.label_smoothing": 0.0,
        "augment.flip": 0.5,
        **(small if side < 96 else large),
    }
    if ask.batch_size is not None:
        settings["batch_size"] = ask.batch_size
    return {**settings, **ask.settings}


def grouped(records: Iterable[Record], *names: str) -> dict[tuple[Any, ...], list[Record]]:
    """The runs that are no trials, by their line and these axes; seeds in one list."""
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        config = record["config"]
        if config["role"] == RUN:
            key = (config["line"], *(config["axes"].get(name) for name in names))
            groups.setdefault(key, []).append(record)
    return groups


def metric(name: str) -> Callable[[Record], float | None]:
    """A reader of a metric: ``top1``, or ``fewshot.5``."""
    owner, _, key = name.partition(".")

    def read(record: Record) -> float | None:
        value = record["metrics"].get(owner)
        return (value or {}).get(key) if key else value

    return read


def mean_of(records: Sequence[Record], name: str, intervals: bool = True) -> Mean | None:
    """The mean of a metric over runs, or None where no run has it."""
    known = [value for value in map(metric(name), records) if value is not None]
    if not known:
        return None
    mean = t_mean(known)
    return mean if intervals else Mean(mean.mean, None, None, mean.n)


def alike(records: Sequence[Record], name: str) -> Any:
    """A figure that every seed has alike, such as ``macs``; None where no run came to it."""
    known = (record["metrics"].get(name) for record in records)
    return next((value for value in known if value is not None), None)


def curve(name: str, points: Sequence[tuple[float, Mean]]) -> Line:
    """A line of means with their band, in ascending order of x."""
    ordered = sorted(points, key=lambda point: point[0])
    whole = bool(ordered) and all(mean.low is not None for _, mean in ordered)
    return Line(
        name,
        [x for x, _ in ordered],
        [mean.mean for _, mean in ordered],
        dots=True,
        low=[mean.low or 0.0 for _, mean in ordered] if whole else (),
        high=[mean.high or 0.0 for _, mean in ordered] if whole else (),
    )


def bands(lines: Sequence[Line]) -> str:
    """What a caption says of the bands of lines, where they have any."""
    return "; bands are 95 % t intervals" if any(len(line.low) for line in lines) else ""


def lines_of(definition: Definition) -> list[str]:
    """What is compared, in the definition's order."""
    return list(dict.fromkeys(point.line for point in definition.points))


def by_seed(one: Sequence[Record], other: Sequence[Record], name: str) -> dict[int, float]:
    """By seed, a metric of one minus that of the other, for the seeds that both have."""
    read = metric(name)
    others = {record["seed"]: read(record) for record in other}
    return {
        record["seed"]: value - against
        for record in one
        if (value := read(record)) is not None
        and (against := others.get(record["seed"])) is not None
    }


def paired(one: Sequence[Record], other: Sequence[Record], name: str) -> Mean | None:
    """The mean difference of a metric, one minus other, over the seeds that both have."""
    found = by_seed(one, other, name)
    return t_mean(list(found.values())) if found else None


def verdict(difference: Mean | None) -> str:
    """``better``, ``worse``, or ``not told apart``, by whether the interval leaves 0 out."""
    if difference is None or difference.low is None or difference.high is None:
        return "not told apart"
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else "not told apart"


def signed(gap: Mean, intervals: bool = True) -> str:
    """``+1.20 ± 0.35``, in points."""
    half = gap.half if intervals else None
    text = f"{100 * gap.mean:+.2f}"
    return text if half is None else f"{text} ± {100 * half:.2f}"
