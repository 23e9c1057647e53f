"""`vitrail evaluate`."""

from __future__ import annotations  # hints name tyro, which is imported when they are read

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vitrail import __version__
from vitrail.cli.arguments import arg
from vitrail.cli.output import print_json, print_rows
from vitrail.kit.errors import Error, listing

if TYPE_CHECKING:
    from vitrail.data.sources import Source
    from vitrail.evaluation.accuracy import Accuracy
    from vitrail.evaluation.findings import Findings
    from vitrail.evaluation.multilabel import MultiLabel
    from vitrail.evaluation.robustness import AtSize
    from vitrail.kit.page import Page
    from vitrail.models.base import ImageClassifier


def evaluate(
    source: Annotated[str, arg("MODEL")],
    data: Annotated[str, arg("DATA")],
    /,
    *,
    model: Annotated[str | None, arg("NAME")] = None,
    split: str = "test",
    which: Literal["final", "best"] = "final",
    calibrate: bool = False,
    calibrate_on: Annotated[str | None, arg("SPLIT|DATA")] = None,
    against: Annotated[str | None, arg("MODEL")] = None,
    against_name: Annotated[str | None, arg("NAME")] = None,
    corruptions: Annotated[tuple[str, ...] | None, arg("NAMES")] = None,
    severities: tuple[int, ...] = (1, 2, 3, 4, 5),
    corruption_images: Annotated[int | None, arg("N")] = None,
    sizes: Annotated[tuple[int, ...], arg("PIXELS")] = (),
    real_labels: Annotated[Path | None, arg("FILE")] = None,
    class_map: Annotated[Path | None, arg("FILE")] = None,
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    device: Annotated[Literal["cpu", "cuda"] | None, arg("cpu|cuda")] = None,
    json: bool = False,
    out: Annotated[Path | None, arg("DIR")] = None,
) -> int:
    """Measure a model on labelled images: accuracy, calibration, the worst slices, robustness.

    Example: vitrail evaluate runs/photos photos/ --split test --calibrate --out page

    Args:
        source: A model folder, or a checkpoint file.
        model: The name of the model, for a file that does not say it.
        data: As for train. Classes are matched by name.
        split: train, val or test. A folder without splits is used whole.
        which: The weights of the last step, or the best on validation.
        calibrate: Fit a temperature on val, and store it in the model folder.
        calibrate_on: The same on another split, or on data of its own.
        against: Another model, to be compared on the same images.
        against_name: Its name, for a file that does not say it.
        corruptions: Measure under ImageNet-C's corruptions: their names, or all without any.
        severities: Of the corruptions, 1 to 5.
        corruption_images: Measure corruptions on so many images, picked by the seed.
        sizes: Measure with images of these sizes too.
        real_labels: Several right labels an image: real.json, or JSON lines of key and labels.
        class_map: JSON from the data's classes to the model's.
        seed: Of the corruptions.
        batch_size: Images at a time.
        workers: Processes that decode images.
        device: The best there is by default.
        json: Print one JSON object on stdout.
        out: A folder for evaluation.json and report.html.
    """
    from vitrail.evaluation.corruptions import check_names
    from vitrail.kit.devices import pick_device

    if out is not None:
        _check_evaluation_folder(out, data)
    names = None if corruptions is None else _corruption_names(corruptions)
    if names is not None:
        check_names(names, severities)
    if corruption_images is not None and corruption_images < 1:
        raise Error(f"--corruption-images is at least 1, not {corruption_images}")
    if calibrate or calibrate_on:
        from vitrail.weights.temperature import check_storable

        check_storable(source)
    images, note = _split_to_measure(source, data, split)
    bench = _Bench(images, batch_size, workers, str(pick_device(device)), class_map)
    bench.say(note)
    opened = bench.open(source, model, which)
    if images.labels.ndim == 2:
        asked = (calibrate, calibrate_on, against, names, sizes, real_labels, class_map)
        if any(value not in (None, False, ()) for value in asked):
            raise Error("on images of several labels only the ranking of each class is measured")
        return _multi_label(bench, opened, source, split, json, out)
    other = None if against is None else bench.open(against, against_name, "final")
    if calibrate or calibrate_on:
        on = calibrate_on or "val"
        opened = _calibrated(bench, opened, source, data, split, which, on)
    findings = _findings(
        bench,
        opened,
        other,
        names=(source, against or ""),
        real_labels=real_labels,
        corruptions=names,
        severities=severities,
        corruption_images=corruption_images,
        sizes=sizes,
        seed=seed,
    )
    if out is not None:
        _write_evaluation(out, source, opened.model, split, findings)
    if json:
        print_json(findings.to_json())
    else:
        _print_findings(findings)
    return 0


@dataclass(frozen=True)
class _Opened:
    """A model, the view of it that answers in the data's classes, and its temperature."""

    model: ImageClassifier
    view: ImageClassifier
    temperature: float


class _Bench:
    """The images to be measured on, and how."""

    def __init__(
        self, images: Source, batch_size: int, workers: int, device: str, class_map: Path | None
    ):
        self.images, self.class_map = images, class_map
        self.batch_size, self.workers, self.device = batch_size, workers, device
        self.notes: list[str] = []

    def say(self, note: str) -> None:
        """Something to be known before the figures are trusted: told at once, and on the page."""
        if note and note not in self.notes:
            self.notes.append(note[0].upper() + note[1:] + ".")
            print(note, file=sys.stderr)

    def open(self, source: str, name: str | None, which: str) -> _Opened:
        """A model that answers in the classes of the images."""
        from vitrail.weights.folder import load_model
        from vitrail.weights.temperature import read_temperature

        model = load_model(source, name=name, which=which).to(self.device)
        return _Opened(model, self.view_of(model), read_temperature(source, which))

    def view_of(self, model: ImageClassifier) -> ImageClassifier:
        """The model, or a view of it in the data's classes."""
        from vitrail.evaluation.subsets import Among, imagenet_groups, read_class_map

        classes = self.images.classes
        if self.class_map is not None:
            return Among(model, read_class_map(self.class_map, classes, model), classes)
        found = imagenet_groups(classes, model)
        if found is None:
            return model
        self.say(found[1])
        return Among(model, found[0], classes)

    def measure(self, opened: _Opened, images: Source | None = None, **asked: Any) -> Accuracy:
        """The answers of a model to images, by default those of the bench."""
        from vitrail.data.loader import eval_batches
        from vitrail.evaluation.accuracy import evaluate as measure

        images = self.images if images is None else images
        view = opened.view
        batches = eval_batches(images, view.preprocessing, self.batch_size, workers=self.workers)
        return measure(view, batches, images.classes, temperature=opened.temperature, **asked)


def _calibrated(
    bench: _Bench, opened: _Opened, source: str, data: str, split: str, which: str, on: str
) -> _Opened:
    """Fit a temperature on held-out images, store it, and go on with it."""
    from vitrail.evaluation.calibration import fit
    from vitrail.weights.temperature import write_temperature

    if opened.view.num_classes < opened.model.num_classes:
        raise Error(
            "a temperature is fitted on all of the model's classes, and these data have only "
            f"{opened.view.num_classes:,} of {opened.model.num_classes:,}"
        )
    images, where = _held_out(bench, source, data, split, on)
    asked = {"mistakes": 0, "examples": 0, "keep_logits": True}
    found = bench.measure(replace(opened, temperature=1.0), images, **asked)
    assert found.logits is not None
    fitted = fit(found.logits, found.labels)
    facts = {
        "on": where,
        "n": fitted.n,
        "nll_before": fitted.nll_before,
        "nll_after": fitted.nll_after,
    }
    kind = write_temperature(source, which, fitted.temperature, facts)
    if fitted.at_bound:
        bench.say("the temperature lies at its bound: the images say too little to fit one")
    print(
        f"temperature {fitted.temperature:.4f} fitted on {fitted.n:,} images of {where}: NLL "
        f"{fitted.nll_before:.4f} before, {fitted.nll_after:.4f} after; stored in {source} for "
        f"its {kind} weights",
        file=sys.stderr,
    )
    return replace(opened, temperature=fitted.temperature)


def _held_out(bench: _Bench, source: str, data: str, split: str, on: str) -> tuple[Source, str]:
    """The images to fit a temperature on, and their name."""
    from vitrail.data.folder import SPLITS
    from vitrail.data.sources import open_splits

    if on.lower() not in SPLITS:
        splits = open_splits(on, least_classes=1)
        return splits.get("val") or splits.get("test") or splits["train"], on
    images, _ = _split_to_measure(source, data, on)
    same = SPLITS[on.lower()] == SPLITS[split.lower()]
    if same or set(images.keys) <= set(bench.images.keys):
        bench.say(
            "the temperature was fitted on images that are measured here too, so the calibration "
            "after it flatters"
        )
    return images, SPLITS[on.lower()]


def _findings(
    bench: _Bench,
    opened: _Opened,
    other: _Opened | None,
    *,
    names: tuple[str, str],
    real_labels: Path | None,
    corruptions: list[str] | None,
    severities: tuple[int, ...],
    corruption_images: int | None,
    sizes: tuple[int, ...],
    seed: int,
) -> Findings:
    """Measure all that was asked for."""
    from vitrail.data.loader import order
    from vitrail.evaluation.compare import compare
    from vitrail.evaluation.findings import examine
    from vitrail.evaluation.label_sets import any_of, read_label_sets
    from vitrail.evaluation.robustness import robustness

    images = bench.images
    sets = None
    if real_labels is not None:  # read first: a slip in the file costs no time then
        own = opened.view.labels or [str(number) for number in range(opened.view.num_classes)]
        sets = read_label_sets(real_labels, images.keys, own)
    resized = _at_sizes(opened, sizes)
    result = bench.measure(opened, keep_logits=True)
    stood = None
    if corruptions is not None:
        some = images
        if corruption_images is not None and corruption_images < len(images):
            picked = order(seed, 0, len(images))[:corruption_images]
            some = images.subset(sorted(picked.tolist()))
        stood = robustness(
            opened.view,
            some,
            result,
            corruptions,
            severities,
            seed=seed,
            batch_size=bench.batch_size,
            workers=bench.workers,
            say=lambda line: print(line, file=sys.stderr),
        )
    return examine(
        result,
        images,
        real=None if sets is None else any_of(result, sets),
        robustness=stood,
        sizes=_swept(bench, opened, resized, result),
        comparison=None if other is None else compare(result, bench.measure(other), names),
        notes=bench.notes,
    )


def _at_sizes(opened: _Opened, sizes: tuple[int, ...]) -> dict[int, ImageClassifier]:
    """The model at every size that was asked for; a size that it cannot have is said at once."""
    from vitrail.weights.resized import resized

    return {size: resized(opened.model, size) for size in sorted(set(sizes))}


def _swept(
    bench: _Bench, opened: _Opened, models: dict[int, ImageClassifier], result: Accuracy
) -> list[AtSize]:
    """The rows of a resolution sweep, the model's own size among them."""
    from vitrail.evaluation.robustness import at_size

    if not models:
        return []
    own = opened.model.preprocessing.size
    rows = [at_size(opened.model, result, own=True)]
    for size, model in models.items():
        if (size, size) != own:
            view = replace(opened, model=model, view=bench.view_of(model))
            rows.append(at_size(model, bench.measure(view, mistakes=0, examples=0), own=False))
            print(f"{size} px: top-1 {100 * rows[-1].top1:.2f} %", file=sys.stderr)
    return sorted(rows, key=lambda row: row.size)


def _corruption_names(given: tuple[str, ...]) -> list[str]:
    """The corruptions that were named; all of them where none was."""
    from vitrail.evaluation.severities import CORRUPTIONS

    return list(CORRUPTIONS) if given in ((), ("all",)) else list(given)


def _multi_label(
    bench: _Bench, opened: _Opened, source: str, split: str, as_json: bool, out: Path | None
) -> int:
    """Images with any number of labels: how well each class is found."""
    from vitrail.data.loader import eval_batches
    from vitrail.evaluation.multilabel import evaluate_multi_label
    from vitrail.evaluation.report import multi_label_page

    images, model = bench.images, opened.model
    batches = eval_batches(images, model.preprocessing, bench.batch_size, workers=bench.workers)
    result = evaluate_multi_label(model, batches, images.classes)
    if out is not None:
        page = multi_label_page(result, model=source, split=split, footer=f"Vitrail {__version__}")
        _save(out, result.to_json(), page)
    if as_json:
        print_json(result.to_json())
    else:
        _print_multi_label(result)
    return 0


def _split_to_measure(model: str, data: str, split: str) -> tuple[Source, str]:
    """The images to measure a model on, and a note where they are not plainly what was asked."""
    from vitrail.data.folder import SPLITS
    from vitrail.data.sources import missing_split, open_splits
    from vitrail.weights.read import description_of

    wanted = SPLITS.get(split.lower())
    if wanted is None:
        raise Error(f"no split is called {split!r}: it is train, val or test")
    splits = open_splits(data, least_classes=1)
    if wanted not in splits and wanted == "val":
        # The share that training held out is a function of its recorded fraction and seed.
        facts = (description_of(model) or {}).get("data", {})
        fraction, seed = facts.get("val_fraction", 0), facts.get("split_seed", 0)
        splits = open_splits(data, val_fraction=fraction, seed=seed, least_classes=1)
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
    out: Path, name: str, model: ImageClassifier, split: str, findings: Findings
) -> None:
    """Leave ``evaluation.json`` and ``report.html`` in a folder."""
    from vitrail.evaluation.report import evaluation_page
    from vitrail.training.report import attention_blocks, attention_looks

    page = evaluation_page(
        findings,
        model=name,
        split=split,
        parameters=sum(p.numel() for p in model.parameters()),
        footer=f"Vitrail {__version__}",
    )
    looks = attention_looks(model, findings.accuracy)
    if looks:
        attention_blocks(page.section("Attention"), looks)
    _save(out, findings.to_json(), page)


def _save(out: Path, record: dict[str, Any], page: Page) -> None:
    from vitrail.kit.files import write_text_whole

    out.mkdir(parents=True, exist_ok=True)
    write_text_whole(out / "evaluation.json", json.dumps(record, ensure_ascii=False))
    page.save(out / "report.html")


def _print_findings(findings: Findings) -> None:
    result, served = findings.accuracy, findings.calibration.served
    low, high = findings.intervals["top1"]
    print(
        f"top-1 {100 * result.top1:.2f} %   top-5 {100 * result.top5:.2f} %   "
        f"loss {result.loss:.3f}   on {result.n:,} images"
    )
    print(f"top-1 lies between {100 * low:.1f} and {100 * high:.1f} % (95 %)", end="   ")
    print(f"macro F1 {findings.macro_f1:.3f}", end="")
    print("" if findings.auroc is None else f"   AUROC {findings.auroc:.3f}")
    before = findings.calibration.before
    how = f"temperature {served.temperature:.3f}" if findings.calibration.after else ""
    was = f" (without it {100 * before.ece:.1f} %)" if how else ""
    print(
        f"calibration error {100 * served.ece:.1f} %{was}   NLL {served.nll:.3f}   "
        f"Brier {served.brier:.3f}   {how}".rstrip()
    )
    if result.skipped:
        named = ", ".join(f"{key} ({reason})" for key, reason in result.skipped[:3])
        print(f"{len(result.skipped):,} images could not be read: {named}", file=sys.stderr)
    if findings.real is not None:
        print(f"any of the label sets: {100 * findings.real.top1:.2f} % on {findings.real.n:,}")
    if findings.comparison is not None:
        print(findings.comparison.sentence())
    if findings.robustness is not None:
        stood = findings.robustness
        print(
            f"mean corruption error {100 * stood.mean_error:.1f} %, "
            f"{100 * stood.relative_error:.1f} points above clean"
        )
    for one in findings.sizes:
        print(f"at {one.size[0]} px: top-1 {100 * one.top1:.2f} %")
    worse = [f"{s.kind} {s.name} ({100 * s.top1:.1f} %)" for s in findings.slices.slices if s.worse]
    if worse:
        print(f"worse than the whole beyond chance: {listing(worse, 5)}")
    columns = {"label": "", "n": ",d", "precision": ".3f", "recall": ".3f", "f1": ".3f"}
    print_rows(
        columns, [{name: getattr(row, name) for name in columns} for row in result.per_class]
    )


def _print_multi_label(result: MultiLabel) -> None:
    score = result.mean_average_precision
    said = "none" if score is None else f"{100 * score:.2f} %"
    print(
        f"mean average precision {said}   macro F1 {result.macro_f1:.3f}   "
        f"micro F1 {result.micro_f1:.3f}   on {result.n:,} images"
    )
    rows = [
        dict(vars(one)) | {"average_precision": one.average_precision or 0.0}
        for one in result.per_class
    ]
    print_rows({"label": "", "n": ",d", "average_precision": ".3f", "f1": ".3f"}, rows)
