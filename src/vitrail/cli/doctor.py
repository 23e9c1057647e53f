"""`vitrail doctor`."""

from __future__ import annotations  # hints name tyro, which is imported when they are read

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vitrail import __version__
from vitrail.cli.arguments import again, arg
from vitrail.cli.output import check_out, print_json, say_report
from vitrail.cli.progress import Progress
from vitrail.kit.errors import Error

if TYPE_CHECKING:
    from vitrail.data.sources import Source
    from vitrail.evaluation.doctor import Findings
    from vitrail.models.base import ImageClassifier


def doctor(
    data: Annotated[str, arg("DATA")],
    /,
    *,
    against: Annotated[str | None, arg("OTHER")] = None,
    model: Annotated[str | None, arg("MODEL")] = None,
    write_clean: Annotated[Path | None, arg("LIST")] = None,
    out: Annotated[Path | None, arg("DIR")] = None,
    json: bool = False,
    classes: Annotated[Path | None, arg("FILE")] = None,
    image_column: Annotated[str | None, arg("NAME")] = None,
    label_column: Annotated[str | None, arg("NAME")] = None,
    threads: Annotated[int | None, arg("N")] = None,
    cache: Annotated[Path | None, arg("DIR")] = None,
    device: Annotated[Literal["cpu", "cuda"] | None, arg("cpu|cuda")] = None,
) -> int:
    """Say what is wrong with a data set: duplicates, damage, imbalance, odd and mislabelled images.

    Example: vitrail doctor photos/ --against old-photos/ --out checkup --write-clean clean.csv

    Args:
        data: As for train.
        against: Another data set; images of it that are also in DATA are reported.
        model: A model folder or file, to look for labels that are probably wrong and to say what
            cleaning does to its accuracy.
        write_clean: Write a list (CSV) without unreadable images, duplicates and contradictions;
            train and evaluate take it. A folder of parquet where the images are no files.
        out: A folder for doctor.json and report.html.
        json: Print one JSON object on stdout.
        classes: Names of the data's class numbers, as for train.
        image_column: The column or shard field of the pictures; found by default.
        label_column: The column or shard field of the labels; found by default.
        threads: That decode images; as many as cores by default.
        cache: Where features are kept; VITRAIL_CACHE or ~/.cache/vitrail by default.
        device: Of the model; the best there is by default.
    """
    from vitrail.data.sources import open_splits
    from vitrail.evaluation.doctor import examine
    from vitrail.evaluation.doctor.clean import check_clean
    from vitrail.evaluation.doctor.clean import write_clean as write_list
    from vitrail.weights.folder import load_model

    check_out(out, data)
    splits = open_splits(
        data,
        least_classes=1,
        classes=classes,
        image_column=image_column,
        label_column=label_column,
    )
    _check_labels(data, splits)
    if write_clean is not None:
        _check_list(write_clean, data, against)
        check_clean(write_clean, splits)
    other = None if against is None else _whole(against)
    opened = None if model is None else load_model(model).to(_device(device))
    with Progress() as progress:
        features = None
        if opened is not None:
            features = {
                name: _features(opened, name, source, cache, progress)
                for name, source in splits.items()
            }
        found = examine(
            splits,
            against=other,
            features=features,
            model_labels=None if opened is None else opened.labels,
            threads=threads,
            progress=lambda done, total: progress("reading pictures", done, total),
            comparing=lambda done, total: progress("comparing pictures", done, total),
        )
        accuracy = [] if opened is None else _accuracy(opened, splits, found, progress)
    result = found.to_json()
    if accuracy:
        result["accuracy"] = [
            {"on": what, "top1": top1, "n": images} for what, top1, images in accuracy
        ]
    if write_clean is not None:
        print(write_list(write_clean, splits, found.clean()), file=sys.stderr)
    if out is not None:
        _write(out, found, result, data, accuracy)
    if json:
        print_json(result)
    else:
        print("\n".join(found.lines()))
        for what, top1, images in accuracy:
            print(f"top-1 on {what}: {100 * top1:.2f} % of {images:,} images")
        say_report(out)
    return 0


def _check_list(clean: Path, *data: str | None) -> None:
    read = [Path(spec) for spec in data if spec is not None and Path(spec).exists()]
    if clean.exists() and any(clean.samefile(place) for place in read):
        raise Error(f"--write-clean {clean} is the data, which stay as they are: give another")


def _check_labels(data: str, splits: Mapping[str, Source]) -> None:
    if any(source.labels.ndim > 1 for source in splits.values()):
        raise Error(f"{data}: the doctor takes pictures with one label each, not several")


def _whole(data: str) -> Source:
    """All splits of a data set as one source."""
    from vitrail.data.sources import open_splits
    from vitrail.evaluation.doctor.joined import Joined

    splits = open_splits(data, least_classes=1)
    return next(iter(splits.values())) if len(splits) == 1 else Joined(data, splits)


def _device(name: str | None) -> Any:
    from vitrail.kit.devices import pick_device

    return pick_device(name)


def _features(
    model: ImageClassifier, name: str, source: Source, cache: Path | None, progress: Progress
) -> Any:
    from vitrail.evaluation.features import extract

    return extract(
        model,
        source,
        cache=True if cache is None else cache,
        progress=lambda done, total: progress(f"features of {name}", done, total),
    )


def _accuracy(
    model: ImageClassifier, splits: Mapping[str, Source], found: Findings, progress: Progress
) -> list[tuple[str, float, int]]:
    """The model's accuracy on the test (or validation) set as it is, and on what is kept of it."""
    from vitrail.data.loader import eval_batches
    from vitrail.evaluation.accuracy import evaluate

    name = next((name for name in ("test", "val") if name in splits), None)
    if name is None:
        return []
    source, kept = splits[name], found.clean()[name]
    progress(f"accuracy on {name}", 0, 0)
    measured = []
    for what, part in ((name, source), (f"{name}, cleaned", source.subset(kept))):
        if not len(part):
            continue
        result = evaluate(model, eval_batches(part, model.preprocessing, 64), part.classes)
        measured.append((what, result.top1, result.n))
    return measured


def _write(
    out: Path,
    found: Findings,
    result: dict[str, Any],
    data: str,
    accuracy: list[tuple[str, float, int]],
) -> None:
    from vitrail.evaluation.doctor.page import write_page
    from vitrail.kit.files import write_text_whole

    out.mkdir(parents=True, exist_ok=True)
    write_text_whole(out / "doctor.json", json.dumps(result, ensure_ascii=False, indent=1))
    write_page(
        out / "report.html",
        found,
        data=data,
        accuracy=accuracy,
        command=again(),
        footer=f"Vitrail {__version__}",
    )
