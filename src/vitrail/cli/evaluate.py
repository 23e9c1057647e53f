"""`vitrail evaluate`."""

from __future__ import annotations  # hints name tyro, which is imported when they are read

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vitrail import __version__
from vitrail.cli.arguments import arg
from vitrail.cli.output import print_json, print_rows
from vitrail.kit.errors import Error

if TYPE_CHECKING:
    from vitrail.data.sources import Source
    from vitrail.evaluation.accuracy import Accuracy
    from vitrail.models.base import ImageClassifier


def evaluate(
    source: Annotated[str, arg("MODEL")],
    data: Annotated[str, arg("DATA")],
    /,
    *,
    model: Annotated[str | None, arg("NAME")] = None,
    split: str = "test",
    which: Literal["final", "best"] = "final",
    batch_size: int = 64,
    workers: int = 0,
    classes: Annotated[Path | None, arg("FILE")] = None,
    image_column: Annotated[str | None, arg("NAME")] = None,
    label_column: Annotated[str | None, arg("NAME")] = None,
    device: Annotated[Literal["cpu", "cuda"] | None, arg("cpu|cuda")] = None,
    json: bool = False,
    out: Annotated[Path | None, arg("DIR")] = None,
) -> int:
    """Measure a model on labelled images: top-1, top-5, every class, what is taken for what.

    Example: vitrail evaluate runs/photos photos/ --split test

    Args:
        source: A model folder, or a checkpoint file.
        model: The name of the model, for a file that does not say it.
        data: As for train. Classes are matched by name.
        split: train, val or test. A folder without splits is used whole.
        which: The weights of the last step, or the best on validation.
        batch_size: Images at a time.
        workers: Processes that decode images.
        classes: Names of the data's class numbers, as for train.
        image_column: The column or shard field of the pictures; found by default.
        label_column: The column or shard field of the labels; found by default.
        device: The best there is by default.
        json: Print one JSON object on stdout.
        out: A folder for evaluation.json and report.html.
    """
    from vitrail.data.loader import eval_batches
    from vitrail.evaluation.accuracy import evaluate as measure
    from vitrail.kit.devices import pick_device
    from vitrail.weights.folder import load_model

    if out is not None:
        _check_evaluation_folder(out, data)
    opened = load_model(source, name=model, which=which).to(pick_device(device))
    images, note = _split_to_measure(
        source,
        data,
        split,
        classes=classes,
        image_column=image_column,
        label_column=label_column,
    )
    if images.multi_label:
        raise Error(f"{data}: pictures with several labels cannot be evaluated yet")
    batches = eval_batches(images, opened.preprocessing, batch_size, workers=workers)
    result = measure(opened, batches, images.classes)
    if note:
        print(note, file=sys.stderr)
    if out is not None:
        _write_evaluation(out, source, opened, split, result)
    if json:
        print_json(result.to_json())
    else:
        _print_accuracy(result)
    return 0


def _split_to_measure(model: str, data: str, split: str, **options: Any) -> tuple[Source, str]:
    """The images to measure a model on, and a note where they are not plainly what was asked.

    ``options`` are `open_splits`'s own.
    """
    from vitrail.data.folder import SPLITS
    from vitrail.data.sources import missing_split, open_splits
    from vitrail.weights.read import description_of

    wanted = SPLITS.get(split.lower())
    if wanted is None:
        raise Error(f"no split is called {split!r}: it is train, val or test")
    splits = open_splits(data, least_classes=1, **options)
    if wanted not in splits and wanted == "val":
        # The share that training held out is a function of its recorded fraction and seed.
        facts = (description_of(model) or {}).get("data", {})
        fraction, seed = facts.get("val_fraction", 0), facts.get("split_seed", 0)
        splits = open_splits(data, val_fraction=fraction, seed=seed, least_classes=1, **options)
    if wanted not in splits and list(splits) == ["train"] and wanted == "test":
        return splits["train"], (
            f"{data} has no splits: all of its images are measured, also any that the model was "
            "trained on"
        )
    if wanted not in splits:
        raise missing_split(wanted, splits)
    return splits[wanted], ""


def _check_evaluation_folder(out: Path, data: str) -> None:
    """Refuse a folder where a page would take the place of something else."""
    if (out / "config.json").exists() or (out / "checkpoints").exists():
        raise Error(f"{out} holds a model with a report of its own: give another --out")
    if Path(data).is_dir() and out.resolve().is_relative_to(Path(data).resolve()):
        raise Error(f"--out {out} lies inside the data, which stay as they are: give another")


def _write_evaluation(
    out: Path, name: str, model: ImageClassifier, split: str, result: Accuracy
) -> None:
    """Leave ``evaluation.json`` and ``report.html`` in a folder."""
    from vitrail.kit.files import write_text_whole
    from vitrail.training.report import attention_looks, write_report

    out.mkdir(parents=True, exist_ok=True)
    write_text_whole(out / "evaluation.json", json.dumps(result.to_json(), ensure_ascii=False))
    write_report(
        out / "report.html",
        model=name,
        records=[],
        result=result,
        split=split,
        weights=f"the weights of {name}",
        parameters=sum(p.numel() for p in model.parameters()),
        attention=attention_looks(model, result),
        footer=f"Vitrail {__version__}",
    )


def _print_accuracy(result: Accuracy) -> None:
    print(
        f"top-1 {100 * result.top1:.2f} %   top-5 {100 * result.top5:.2f} %   "
        f"loss {result.loss:.3f}   on {result.n:,} images"
    )
    if result.skipped:
        named = ", ".join(f"{key} ({reason})" for key, reason in result.skipped[:3])
        print(f"{len(result.skipped):,} images could not be read: {named}", file=sys.stderr)
    columns = {"label": "", "n": ",d", "precision": ".3f", "recall": ".3f", "f1": ".3f"}
    print_rows(
        columns, [{name: getattr(row, name) for name in columns} for row in result.per_class]
    )
