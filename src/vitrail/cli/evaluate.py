"""`vitrail evaluate`."""

from __future__ import annotations  # hints name tyro, which is imported when they are read

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vitrail import __version__
from vitrail.cli.arguments import arg
from vitrail.cli.output import check_out, print_json, print_rows, say_report
from vitrail.kit.errors import Error, listing

if TYPE_CHECKING:
    from vitrail.cli.measuring import Bench, Opened
    from vitrail.evaluation.findings import Findings
    from vitrail.evaluation.multilabel import MultiLabel
    from vitrail.kit.page import Page
    from vitrail.models.base import ImageClassifier


def evaluate(
    source: Annotated[str, arg("MODEL")],
    data: Annotated[str | None, arg("DATA")] = None,
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
    frost_photos: Annotated[Path | None, arg("DIR")] = None,
    sizes: Annotated[tuple[int, ...], arg("PIXELS")] = (),
    real_labels: Annotated[Path | None, arg("FILE")] = None,
    class_map: Annotated[Path | None, arg("FILE")] = None,
    vtab: Annotated[Path | None, arg("ROOT")] = None,
    vtab_protocol: Annotated[Literal["linear", "finetune"], arg("linear|finetune")] = "linear",
    vtab_tasks: Annotated[tuple[str, ...], arg("NAMES")] = (),
    seed: int = 0,
    batch_size: int = 64,
    workers: int = 0,
    classes: Annotated[Path | None, arg("FILE")] = None,
    image_column: Annotated[str | None, arg("NAME")] = None,
    label_column: Annotated[str | None, arg("NAME")] = None,
    device: Annotated[Literal["cpu", "cuda"] | None, arg("cpu|cuda")] = None,
    json: bool = False,
    out: Annotated[Path | None, arg("DIR")] = None,
) -> int:
    """Measure a model on labelled images: accuracy, calibration, the worst slices, robustness.

    Example: vitrail evaluate runs/photos photos/ --split test --calibrate --out page

    Args:
        source: A model folder, or a checkpoint file.
        model: The name of the model, for a file that does not say it.
        data: As for train; not with --vtab. Classes are matched by name.
        split: train, val or test. A folder without splits is used whole.
        which: The weights of the last step, or the best on validation.
        calibrate: Fit a temperature on val, and store it in the model folder.
        calibrate_on: The same on another split, or on data of its own.
        against: Another model, to be compared on the same images.
        against_name: Its name, for a file that does not say it.
        corruptions: Measure under ImageNet-C's corruptions: their names, or all without any.
        severities: Of the corruptions, 1 to 5.
        corruption_images: Measure corruptions on so many images, picked by the seed.
        frost_photos: The original's photographs of ice; without them the ice is drawn.
        sizes: Measure with images of these sizes too.
        real_labels: Several right labels an image: real.json, or JSON lines of key and labels.
        class_map: JSON from the data's classes to the model's.
        vtab: Run VTAB-1k instead: a folder with one for each of its tasks (docs/vtab.md).
        vtab_protocol: Frozen features in minutes, or the paper's fine-tuning (needs --out).
        vtab_tasks: Only these tasks.
        seed: Of the corruptions.
        batch_size: Images at a time.
        workers: Processes that decode images.
        classes: Names of the data's class numbers, as for train.
        image_column: The column or shard field of the pictures; found by default.
        label_column: The column or shard field of the labels; found by default.
        device: The best there is by default.
        json: Print one JSON object on stdout.
        out: A folder for evaluation.json and report.html.
    """
    if vtab is not None:
        if data is not None:
            raise Error(f"--vtab has data of its own: leave {data} out")
        return _vtab(
            source,
            vtab,
            out,
            json,
            protocol=vtab_protocol,
            tasks=vtab_tasks,
            name=model,
            device=device,
            workers=workers,
        )
    if data is None:
        raise Error("evaluate needs DATA, images with labels; or --vtab with a folder of its tasks")
    from vitrail.cli import measuring as work
    from vitrail.evaluation.corruptions import check_names
    from vitrail.kit.devices import pick_device

    check_out(out, data)
    options = {
        "classes": classes,
        "image_column": image_column,
        "label_column": label_column,
    }
    names = None if corruptions is None else work.corruption_names(corruptions)
    if names is not None:
        check_names(names, severities)
    if corruption_images is not None and corruption_images < 1:
        raise Error(f"--corruption-images is at least 1, not {corruption_images}")
    if calibrate or calibrate_on:
        from vitrail.weights.temperature import check_storable

        check_storable(source)
    images, note = work.split_to_measure(source, data, split, options)
    bench = work.Bench(images, batch_size, workers, str(pick_device(device)), class_map)
    bench.say(note)
    opened = bench.open(source, model, which)
    if images.labels.ndim == 2:
        more = (calibrate, calibrate_on, against, names, sizes, real_labels, class_map)
        if any(value not in (None, False, ()) for value in more):
            raise Error("on images of several labels only the ranking of each class is measured")
        return _multi_label(bench, opened, source, split, json, out)
    other = None if against is None else bench.open(against, against_name, "final")
    sets = None if real_labels is None else work.label_sets_for(bench, opened, real_labels)
    at = work.at_sizes(opened, sizes)
    ice = [] if frost_photos is None else work.photographs_in(frost_photos)
    asked = work.Asked(sets, at, names, severities, corruption_images, ice, seed)
    if calibrate or calibrate_on:
        on = calibrate_on or "val"
        opened = work.calibrated(bench, opened, source, data, split, which, on, options)
    findings = work.findings_of(bench, opened, other, (source, against or ""), asked)
    print(*bench.told, sep="\n", end="\n" * bool(bench.told), file=sys.stderr)
    if out is not None:
        _write_evaluation(out, source, opened.model, split, findings)
    if json:
        print_json(findings.to_json())
    else:
        _print_findings(findings)
        say_report(out)
    return 0


def _vtab(source: str, root: Path, out: Path | None, as_json: bool, **options: Any) -> int:
    """VTAB-1k: the tasks that are there, what is missing, and means over whole groups."""
    from vitrail.cli.progress import Progress
    from vitrail.kit.files import write_text_whole
    from vitrail.recipes.vtab import vtab as run

    with Progress() as progress:
        result = run(source, root, out=out, progress=progress, **options)
    found = result.to_json()
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_text_whole(out / "vtab.json", json.dumps(found, ensure_ascii=False, indent=1))
    if as_json:
        print_json(found)
        return 0
    rows = [row | {"top1": 100 * row["top1"]} for row in found["tasks"]]
    print_rows({"name": "", "group": "", "top1": ".2f", "n": ",d", "classes": "d"}, rows)
    for name, mean in (found["groups"] | {"all 19": found["mean"]}).items():
        print(f"{name:<12} {'not whole' if mean is None else f'{100 * mean:.2f} %'}")
    for name, reason in ((entry["name"], entry["reason"]) for entry in found["failed"]):
        print(f"{name} cannot be read: {reason}", file=sys.stderr)
    for missing in result.missing:
        print(f"missing: {missing}", file=sys.stderr)
    return 0


def _multi_label(
    bench: Bench, opened: Opened, source: str, split: str, as_json: bool, out: Path | None
) -> int:
    """Images with any number of labels: how well each class is found."""
    from vitrail.data.loader import eval_batches
    from vitrail.evaluation.multilabel import evaluate_multi_label
    from vitrail.evaluation.report import multi_label_page

    images, model = bench.images, opened.model
    batches = eval_batches(images, model.preprocessing, bench.batch_size, workers=bench.workers)
    result = evaluate_multi_label(model, batches, images.classes)
    print(*bench.told, sep="\n", end="\n" * bool(bench.told), file=sys.stderr)
    if out is not None:
        page = multi_label_page(result, model=source, split=split, footer=f"Vitrail {__version__}")
        _save(out, result.to_json(), page)
    if as_json:
        print_json(result.to_json())
    else:
        _print_multi_label(result)
        say_report(out)
    return 0


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
    was = f" ({100 * before.ece:.1f} % without the temperature)" if how else ""
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
