"""`vitrail probe`."""

from __future__ import annotations  # hints name tyro, which is imported when they are read

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vitrail import __version__
from vitrail.cli.arguments import again, arg
from vitrail.cli.output import check_out, print_json, print_rows, say_report
from vitrail.cli.progress import Progress
from vitrail.kit.errors import Error, listing

if TYPE_CHECKING:
    from vitrail.data.sources import Source
    from vitrail.evaluation.probe import Report, Row
    from vitrail.models.base import ImageClassifier

HELD_OUT = 0.2  # of train, where there is neither val nor test


def probe(
    data: Annotated[str, arg("DATA")],
    /,
    *,
    models: Annotated[tuple[str, ...], arg("MODEL")],
    sizes: Annotated[tuple[int, ...], arg("PIXELS")] = (),
    weights: Annotated[tuple[str, ...], arg("SOURCE")] = (),
    split: Annotated[str | None, arg("SPLIT")] = None,
    shots: Annotated[tuple[int, ...], arg("N")] = (1, 5, 10, 25),
    seeds: int = 3,
    limit: Annotated[int, arg("N")] = 10_000,
    epochs: Annotated[float | None, arg("N")] = None,
    untrained: bool = False,
    batch_size: int = 64,
    workers: int = 0,
    classes: Annotated[Path | None, arg("FILE")] = None,
    image_column: Annotated[str | None, arg("NAME")] = None,
    label_column: Annotated[str | None, arg("NAME")] = None,
    device: Annotated[Literal["cpu", "cuda"] | None, arg("cpu|cuda")] = None,
    dtype: Literal["float32", "float16"] = "float32",
    cache: Annotated[Path | None, arg("DIR")] = None,
    json: bool = False,
    out: Annotated[Path | None, arg("DIR")] = None,
) -> int:
    """Say what models will do on your images before any training: accuracy, labels, time, memory.

    Example: vitrail probe photos/ --models vit_base_patch16_224=B_16.npz runs/old --sizes 224 384

    Args:
        data: As for train.
        models: Model folders, checkpoint files that say what they are, NAME=FILE for those that do
            not, or names with --weights.
        sizes: Resolutions; each model's own by default.
        weights: One for each model, in their order.
        split: What to measure on: val, test, or held-out for a fifth of train. By default val where
            there is one, else test, else held-out.
        shots: Images a class of the few-shot accuracies.
        seeds: How many, for the few shots and the linear head.
        limit: Use about so many images of each split (of every class alike); 0 for all.
        epochs: Of the fine-tuning whose time is estimated; by default what train would do.
        untrained: Allow names without weights. Random weights say nothing of a model; they are
            only good to compare with.
        batch_size: Images at a time.
        workers: Processes that decode images.
        classes: Names of the data's class numbers, as for train.
        image_column: The column or shard field of the pictures; found by default.
        label_column: The column or shard field of the labels; found by default.
        device: The best there is by default.
        dtype: Of the features that are kept.
        cache: Where features are kept; VITRAIL_CACHE or ~/.cache/vitrail by default.
        json: Print one JSON object on stdout.
        out: A folder for probe.json and report.html.
    """
    from vitrail.evaluation.probe import Prober, Report, Settings, recommend
    from vitrail.kit.devices import pick_device
    from vitrail.recipes.transfer import finetune_epochs

    _check(data, out, models, weights, seeds, shots)
    target = pick_device(device)
    columns = {"classes": classes, "image_column": image_column, "label_column": label_column}
    train, test, measured_on = _pictures(data, split, columns)
    whole = len(train)
    opened = [
        (spec, *_open(spec, weights[i] if weights else None, untrained))
        for i, spec in enumerate(models)
    ]
    sized = [  # all of them now: a size that does not fit is said before the work begins
        (spec, model, size, random)
        for spec, model, random in opened
        for size in (sizes or (None,))
        if _can_be(model, size)
    ]
    settings = Settings(
        shots=shots,
        seeds=seeds,
        epochs=finetune_epochs(whole) if epochs is None else epochs,
        train_images=whole,
        batch_size=batch_size,
        workers=workers,
        cache=True if cache is None else cache,
        dtype=dtype,
    )
    train, test = _limited(train, limit, max(shots)), _limited(test, limit, 1)
    measured_on += f" ({len(test):,} images)"
    for spec, _, random in opened:
        if random:
            print(f"warning: {spec} {RANDOM}", file=sys.stderr)
    with Progress() as progress:
        prober = Prober(train, test, settings, progress)
        rows = [
            prober(name_of(spec), _at(model, size).to(target), random)
            for spec, model, size, random in sized
        ]
    report = Report(tuple(rows), recommend(rows), tuple(_notes(rows, train, whole)))
    facts = {"data": data, "measured on": measured_on, "labels": len(train), "in all": whole}
    if out is not None:
        _write(out, report, data, measured_on, settings.epochs, facts)
    if json:
        print_json(report.to_json() | {"measured_on": measured_on, "epochs": settings.epochs})
    else:
        _print(report, measured_on, settings.epochs)
        say_report(out)
    return 0


RANDOM = (
    "has random weights: what is measured says nothing of the model, only of its untrained shape; "
    "give published weights by --weights or NAME=FILE"
)


def _check(
    data: str,
    out: Path | None,
    models: tuple[str, ...],
    weights: tuple[str, ...],
    seeds: int,
    shots: tuple[int, ...],
) -> None:
    if not models:
        raise Error("--models needs at least one model")
    if weights and len(weights) != len(models):
        raise Error(
            f"{len(weights)} weights for {len(models)} models: give one for each, in their order"
        )
    if seeds < 1:
        raise Error(f"--seeds is at least 1, not {seeds}")
    if not shots or min(shots) < 1:
        raise Error(f"--shots are images a class, at least 1, not {listing(list(map(str, shots)))}")
    check_out(out, data)


def _pictures(data: str, split: str | None, columns: dict[str, Any]) -> tuple[Source, Source, str]:
    """The pictures to learn from, those to measure on, and the latter in words."""
    from vitrail.data.folder import SPLITS
    from vitrail.data.sources import missing_split, open_splits

    splits = open_splits(data, **columns)
    if any(source.labels.ndim > 1 for source in splits.values()):
        raise Error(f"{data}: the probe takes pictures with one label each, not several")
    if "train" not in splits:
        raise Error(f"{data}: there is no train split, only {' and '.join(splits)}")
    if split is None:
        wanted = next((name for name in ("val", "test") if name in splits), "held-out")
    elif split in ("held-out", "held_out"):
        wanted = "held-out"
    else:
        wanted = SPLITS.get(split.lower(), "")
        if wanted not in ("val", "test"):
            raise Error(f"the probe cannot be measured on {split!r}: it is val, test or held-out")
    if wanted == "held-out":
        train, test = splits["train"].split(HELD_OUT, seed=0)
        return train, test, "a fifth of train, held out"
    if wanted not in splits:
        raise missing_split(wanted, splits)
    return splits["train"], splits[wanted], wanted


def _limited(source: Source, limit: int, least: int) -> Source:
    """About so many pictures, the same share of every class, `least` of each where there are."""
    import numpy as np

    from vitrail.evaluation.fewshot import nested_order

    if limit < 0:
        raise Error(f"limit is a number of images, or 0 for all, not {limit}")
    if not limit or len(source) <= limit:
        return source
    share = limit / len(source)
    order = nested_order(source.labels, seed=0)
    picked = [rows[: max(least, round(share * len(rows)))] for rows in order]
    return source.subset(np.sort(np.concatenate(picked)))


def name_of(spec: str) -> str:
    """What a model of the command line is called in the results."""
    name = spec.partition("=")[0] if _is_pair(spec) else spec
    return name.rstrip("/").rpartition("/")[2] or name


def _is_pair(spec: str) -> bool:
    return "=" in spec and not Path(spec).expanduser().exists()


def _open(spec: str, weights: str | None, untrained: bool) -> tuple[ImageClassifier, bool]:
    """A model of the command line, and whether its weights are random."""
    from vitrail.models.zoo import create_model, resolve
    from vitrail.weights.folder import load_model

    if _is_pair(spec):
        name, _, file = spec.partition("=")
        return load_model(file, name=name), False
    if weights is not None and weights != "-":
        return load_model(weights, name=spec), False
    if Path(spec).expanduser().exists():
        return load_model(spec), False
    try:
        resolve(spec)
    except Error:
        if "/" in spec or "." in spec:
            return load_model(spec), False  # says what is wrong with it as a file
        raise
    if not untrained:
        raise Error(
            f"{spec} is a name without weights, and random weights say nothing of a model: give "
            f"{spec}=FILE, or --weights, or --untrained to measure them all the same"
        )
    import torch

    torch.manual_seed(0)
    return create_model(spec), True


def _at(model: ImageClassifier, size: int | None) -> ImageClassifier:
    """The model for another resolution; None for its own."""
    from vitrail.models.base import height_width
    from vitrail.weights.resized import resized

    own = size is None or height_width(size) == height_width(model.image_size)
    return model if own or size is None else resized(model, size)


def _can_be(model: ImageClassifier, size: int | None) -> bool:
    """Whether the model can have this size, without making it.

    Raises:
        Error: it cannot; the message names the nearest.
    """
    import torch

    from vitrail.models.zoo import describe, from_description

    if size is not None:
        about = describe(model)
        about["config"] = {**about["config"], "image_size": size}
        with torch.device("meta"):
            from_description(about)
    return True


def _notes(rows: list[Row], train: Source, whole: int) -> list[str]:
    notes = []
    if len(train) < whole:
        notes.append(
            f"{len(train):,} of {whole:,} training images were used; --limit 0 takes them all"
        )
    notes += [f"{one} {RANDOM}" for one in {row.model: 0 for row in rows if row.untrained}]
    return notes + [note for row in rows for note in row.notes]


def _write(
    out: Path,
    report: Report,
    data: str,
    measured_on: str,
    epochs: float,
    facts: dict[str, Any],
) -> None:
    from vitrail.evaluation.probe_page import write_page
    from vitrail.kit.files import write_text_whole

    out.mkdir(parents=True, exist_ok=True)
    told = report.to_json() | {"measured_on": measured_on, "epochs": epochs}
    write_text_whole(out / "probe.json", json.dumps(told, ensure_ascii=False, indent=1))
    write_page(
        out / "report.html",
        report,
        data=data,
        measured_on=measured_on,
        epochs=epochs,
        facts=facts,
        command=again(),
        footer=f"Vitrail {__version__}",
    )


def _print(report: Report, measured_on: str, epochs: float) -> None:
    from vitrail.evaluation.probe import gain_in_words
    from vitrail.evaluation.probe_page import duration, size_in_words

    shots = sorted({shot for row in report.rows if row.fewshot for shot in row.fewshot.shots})
    table = []
    for row in report.rows:
        few = dict(zip(row.fewshot.shots, row.fewshot.mean, strict=True)) if row.fewshot else {}
        low, high = row.linear.interval
        table.append(
            {"model": row.model + ("*" if row.untrained else ""), "size": row.pixels}
            | {f"{shot}-shot": 100 * few.get(shot, float("nan")) for shot in shots}
            | {"kNN": 100 * row.knn.mean, "linear": 100 * row.linear.mean}
            | {"interval": f"{100 * low:.1f}..{100 * high:.1f}"}
            | {"images/s": row.images_per_second, "fine-tune": duration(row.full_train_seconds)}
            | {"memory": size_in_words(row.full_train_bytes)}
            | {"twice the labels": gain_in_words(row.curve) if row.curve else "-"}
        )
    columns = {"model": "", "size": ""} | {f"{shot}-shot": ".1f" for shot in shots}
    columns |= {"kNN": ".1f", "linear": ".1f", "interval": "", "images/s": ".1f"}
    columns |= {"fine-tune": "", "memory": "", "twice the labels": ""}
    print_rows(columns, table)
    for note in dict.fromkeys(report.notes):
        if RANDOM not in note:  # that was said at the beginning
            print(note, file=sys.stderr)
    print(f"\n{report.recommendation}")
    print(f"(accuracy in per cent on {measured_on}; fine-tuning estimated for {epochs:g} epochs)")
