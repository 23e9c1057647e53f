"""The report of a training run: one HTML file for the person who has to trust the model.

It says how good the model is and on what, where it is wrong, where it looks, how training went,
what the data was, with which settings, at what cost, and how to go on. It is made of plain data,
so that it can be written again from a run's folder; what is missing is left out, and said so.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitrail.evaluation.accuracy import Accuracy
from vitrail.evaluation.blocks import (
    accuracy_blocks,
    mistake_blocks,
    multi_label_blocks,
    multi_label_tiles,
)
from vitrail.evaluation.blocks import percent as _percent
from vitrail.evaluation.multilabel import MultiLabel
from vitrail.inspection.draw import attention_maps, overlay
from vitrail.kit.chart import line_chart
from vitrail.kit.errors import Error, listing
from vitrail.kit.page import Page, Picture, Section, show
from vitrail.metrics.accuracy import interval
from vitrail.models.base import ImageClassifier
from vitrail.training.display import duration
from vitrail.training.recorded import curve, flat, is_group, setting

Result = Accuracy | MultiLabel
SPLITS = {"train": "Training", "val": "Validation", "test": "Test"}
ENLARGED = 160  # pixels of the longer side that an attention picture has at the least
NAMED = 20  # skipped files up to which the list stands open


@dataclass(frozen=True)
class Look:
    """Where the model looks in one image.

    Args:
        image: uint8 [h w c], as the model sees it.
        heat: [rows columns], see `inspection.draw.attention_maps`.
        key, label, prediction: the image's name, its class, and the model's answer.
    """

    image: np.ndarray
    heat: np.ndarray
    key: str
    label: str
    prediction: str


def attention_looks(model: ImageClassifier, result: Accuracy, most: int = 12) -> list[Look]:
    """Attention pictures of a result's examples.

    Args:
        model: the one that was evaluated.
        most: how many images.

    Returns:
        Nothing for a model that leaves no attention maps on its tape.
    """
    examples = result.examples[:most]
    if not examples:
        return []
    try:
        images = torch.from_numpy(np.stack([example.picture for example in examples]))
        maps = attention_maps(model, images)
    except Error:
        return []
    return [
        Look(example.picture, heat.numpy(), example.key, example.label, example.prediction)
        for example, heat in zip(examples, maps, strict=True)
    ]


def write_report(
    path: Path | str,
    *,
    model: str,
    records: Iterable[Mapping[str, Any]],
    result: Result | None = None,
    split: str = "test",
    weights: str = "the final weights",
    parameters: int | None = None,
    attention: Sequence[Look] = (),
    data: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    ledger: Mapping[str, Any] | None = None,
    command: str = "",
    footer: str = "",
) -> None:
    """Write ``report.html``, whole or not at all.

    Args:
        path: the file.
        model: the model's name.
        records: of ``metrics.jsonl`` (contract: kinds start, step, eval, save, skip, done).
        result: the accuracy measured (of images with several labels, how well each class is
            found), or None where there was nothing to measure it on.
        split: what it was measured on.
        weights: which weights were measured, to stand after "with".
        parameters: how many the model has.
        attention: see `attention_looks`.
        data: facts by name. ``splits`` {name: images} and the lists ``unreadable`` and
            ``skipped``, of {key, reason} or (key, reason), are known; others are printed.
        settings: the recipe as JSON; nested mappings become groups.
        ledger: `ledger.Ledger.to_json`, or any part of it.
        command: what was typed to make the run, and continues it.
        footer: a last line, such as the version.
    """
    records = list(records)
    split = SPLITS.get(split, split).lower()
    ledger = dict(ledger or {})
    data = dict(data or {})
    masked = (settings or {}).get("masked") or {}
    labelled = masked.get("kind", "none") == "none"
    page = Page(
        _title(model, result, split),
        lead=_lead(result, split, weights, labelled),
        headline=_headline(result, parameters, ledger),
        footer=footer,
    )
    if labelled:
        _accuracy(page.section("Accuracy"), result, split, records)
    if isinstance(result, Accuracy):
        mistake_blocks(page.section("Mistakes"), result)
    if labelled and not isinstance(result, MultiLabel):
        attention_blocks(page.section("Attention"), attention)
    _curves(page.section("Training"), records)
    _data(page.section("Data"), data, result)
    _settings(page.section("Settings"), settings or {})
    _compute(page.section("Compute"), ledger, records)
    _going_on(page.section("Going on"), command, Path(path).parent)
    page.save(path)


# -- what each part says -------------------------------------------------------------------------


def _title(model: str, result: Result | None, split: str) -> str:
    if result is None:
        return model
    if isinstance(result, MultiLabel):
        score = result.mean_average_precision
        said = "-" if score is None else _percent(score)
        return f"{model}: mean average precision {said} on {split} images"
    return f"{model}: {_percent(result.top1)} on {split} images"


def _lead(result: Result | None, split: str, weights: str, labelled: bool) -> str:
    if not labelled:
        return "Learned without labels: the folder holds an encoder to fine-tune from."
    if result is None:
        return "No accuracy was measured: the data had no split for it."
    if isinstance(result, MultiLabel):
        return (
            f"Measured on {result.n:,} {split} images, each with any number of labels, "
            f"with {weights}."
        )
    low, high = interval(result.top1, result.n)
    return (
        f"Measured on {result.n:,} {split} images with {weights}. "
        f"The {_percent(0.95, 0)} interval for so many images: {_percent(low, 1)} to "
        f"{_percent(high, 1)}."
    )


def _headline(
    result: Result | None, parameters: int | None, ledger: Mapping[str, Any]
) -> list[tuple[Any, str]]:
    tiles: list[tuple[Any, str]] = []
    if isinstance(result, MultiLabel):
        tiles += multi_label_tiles(result)
    elif result is not None:
        tiles.append((_percent(result.top1), "top-1 accuracy"))
        if len(result.classes) > 5:
            tiles.append((_percent(result.top5), "top-5 accuracy"))
    if parameters:
        tiles.append((_short(parameters), "parameters"))
    if ledger.get("seconds"):
        tiles.append((duration(ledger["seconds"]), "training time"))
    return tiles


def _accuracy(
    section: Section, result: Result | None, split: str, records: Sequence[Mapping[str, Any]]
) -> None:
    if result is None:
        section.text(_only_validation(records))
        return
    if split == "validation":
        section.note(
            "The run was watched on these images, so the figure flatters a little: "
            "put images aside in a test folder for a figure to rely on."
        )
    if isinstance(result, MultiLabel):
        multi_label_blocks(section, result)
    else:
        accuracy_blocks(section, result)


def _only_validation(records: Sequence[Mapping[str, Any]]) -> str:
    known = [record for record in records if record.get("kind") == "eval"]
    if not known:
        return "Nothing was measured: the run had neither test nor validation images."
    last = known[-1]
    score = last.get("top1", last.get("mean_average_precision"))
    return (
        "No accuracy of the final weights was measured. The last one on the validation images "
        f"is {'-' if score is None else _percent(score)} at step {last['step']:,}."
    )


def attention_blocks(section: Section, attention: Sequence[Look]) -> None:
    """Each image, and beside it where the answer draws from."""
    if not attention:
        section.text("There are no attention pictures: the model made no attention maps.")
        return
    section.text(
        "Each image as the model sees it, and beside it where the answer draws from: attention "
        "rolled out through all layers (Abnar and Zuidema, 2020), yellow most and dark blue "
        "least, scaled within each image. It shows where information flows from, and not why "
        "one class was preferred to another."
    )
    pictures = []
    for look in attention:
        right = look.label == look.prediction
        # A tiny image is enlarged first: its heat is smooth, and not made of the image's pixels.
        times = -(-ENLARGED // max(look.image.shape[:2]))
        large = look.image.repeat(times, 0).repeat(times, 1)
        pictures.append(
            Picture(
                images=[look.image, overlay(large, look.heat)],
                alts=[f"{look.label}, image {look.key}", "The same under its attention map"],
                title=look.label,
                notes=("recognised" if right else f"taken for {look.prediction}", look.key),
            )
        )
    section.gallery(pictures)


def _curves(section: Section, records: Sequence[Mapping[str, Any]]) -> None:
    steps = [record for record in records if record.get("kind") == "step"]
    evals = [record for record in records if record.get("kind") == "eval"]
    watched = [record for record in records if record.get("kind") == "fewshot"]
    if not steps:
        section.text("There are no curves: no step was recorded.")
        return
    last = steps[-1]
    epochs = f" ({last['epoch']:,.1f} epochs)" if last.get("epoch") else ""
    ring = " A ring marks the best point on validation." if evals else ""
    section.text(f"{last['step']:,} steps{epochs}.{ring}")
    _bad_steps(section, [record for record in records if record.get("kind") == "skip"])
    quality = [
        (
            "Loss",
            False,
            [curve("training", steps, "loss"), curve("validation", evals, "loss", "lowest")],
        ),
        (
            "Accuracy",
            True,
            [
                curve("training", steps, "accuracy"),
                curve("validation", evals, "top1", "highest"),
                curve("mean average precision", evals, "mean_average_precision", "highest"),
                # With at most five classes top-5 is always 1.
                curve("top-5", [r for r in evals if r.get("top5") != 1], "top5"),
            ],
        ),
    ]
    shots = dict.fromkeys(name for record in watched for name in record if name.endswith("-shot"))
    if watched:
        section.text("Few-shot accuracy: a ridge regression on the features, of the watched data.")
        quality.append(("Few-shot accuracy", True, [curve(name, watched, name) for name in shots]))
    course = [
        ("Learning rate", False, [curve("learning rate", steps, "lr")]),
        ("Gradient norm", False, [curve("gradient norm", steps, "grad_norm")]),
        ("Images per second", False, [curve("images per second", steps, "images_per_second")]),
    ]
    for row, size in ((quality, (380, 240)), (course, (300, 200))):
        drawn = []
        for title, percent, lines in row:
            known = [line for line in lines if line is not None]
            if known:
                drawn.append((title, line_chart(known, title=title, percent=percent, size=size)))
        if drawn:
            section.charts(drawn)


def _bad_steps(section: Section, bad: Sequence[Mapping[str, Any]]) -> None:
    if bad:
        section.note(f"{len(bad):,} steps were not finite, and were not applied to the weights.")
        rows = [(record.get("step"), ", ".join(record.get("keys", ()))) for record in bad]
        section.details("Their images").table(
            ("step", "images"), rows, "The images of each step that was not finite."
        )


def _data(section: Section, data: dict[str, Any], result: Result | None) -> None:
    splits = data.pop("splits", {})
    skipped = dict(result.skipped) if result is not None else {}
    for entry in (*data.pop("unreadable", ()), *data.pop("skipped", ())):
        key, reason = entry.values() if isinstance(entry, Mapping) else entry
        skipped[key] = reason
    facts = {_words(name): _listed(value) for name, value in data.items()}
    facts |= {f"{SPLITS.get(name, name)} images": count for name, count in splits.items()}
    section.facts({**facts, "Files left out": len(skipped)})
    if skipped:
        inside = section
        if len(skipped) > NAMED:
            inside = section.details(f"The {len(skipped):,} files that were left out")
        rows = list(skipped.items())
        inside.table(("file", "reason"), rows, "Files that could not be read, and were left out.")


def _settings(section: Section, settings: Mapping[str, Any]) -> None:
    if not settings:
        section.text("The settings were not recorded.")
        return
    section.text("The recipe, whole. Any of it can be set on the command line, as in:")
    section.code("vitrail train ... --set optim.lr=0.0005")
    groups = {name: value for name, value in settings.items() if is_group(value)}
    single = {name: value for name, value in settings.items() if not is_group(value)}
    for title, group in {"": single, **groups}.items():
        if inside := flat(group):
            section.facts({name: setting(value) for name, value in inside.items()}, title=title)


def _compute(
    section: Section, ledger: Mapping[str, Any], records: Sequence[Mapping[str, Any]]
) -> None:
    known = {
        "device": ("Device", str),
        "images": ("Images seen", show),
        "seconds": ("Time", duration),
        "images_per_second": ("Images per second, all in all", lambda rate: f"{rate:,.0f}"),
        "training_rate": ("Images per second, of the steps", lambda rate: f"{rate:,.0f}"),
        "macs_per_image": ("Multiply-adds an image", _short),
        "flops": ("Operations, forward and backward", lambda flops: f"{flops:.3g}"),
        "exaflops": ("The same in exaFLOPs", lambda flops: f"{flops:.3g}"),
        "teacher_macs": ("Multiply-adds of the teacher", _short),
        "device_hours": ("Device hours", lambda hours: f"{hours:.3g}"),
        "tpuv3_core_days": ("The same in the ViT paper's TPUv3-core-days", lambda n: f"{n:.3g}"),
        "passes": ("A training step, in forward passes", lambda passes: f"{passes:.3g}"),
        "matmul_peak": (
            "The device's best matrix product, measured",
            lambda peak: f"{peak / 1e9:,.0f} GFLOP/s",
        ),
        "mfu": ("The share of it that training used (MFU)", lambda share: _percent(share, 1)),
    }
    facts = {
        title: words(ledger[name])
        for name, (title, words) in known.items()
        if ledger.get(name) is not None and (ledger[name] or name != "teacher_macs")
    }
    starts = sum(record.get("kind") == "start" for record in records)
    if starts > 1:
        facts["Started"] = f"{starts} times"
    if not facts:
        section.text("The compute spent was not recorded.")
        return
    section.facts(facts)
    section.text(
        "Operations are counted from the layers, two a multiply-add, and a training step as three "
        "forward passes where all of the model is trained: they do not depend on the machine. "
        "A TPUv3-core-day is what the ViT paper's L/16 made of one: 2.3 exaFLOPs."
    )


def _going_on(section: Section, command: str, folder: Path) -> None:
    if command:
        section.text("This run's command. If it was stopped, the same command goes on from there.")
        section.code(command)
    section.text("The model is in this report's folder, and ready to use:")
    quoted = shlex.quote(str(folder))
    section.code(f"vitrail predict {quoted} IMAGES\nvitrail evaluate {quoted} DATA")


# -- numbers and words ---------------------------------------------------------------------------


def _listed(value: Any) -> Any:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return listing([show(item) for item in value], most=12)
    return value


def _words(name: str) -> str:
    words = str(name).replace("_", " ")
    return words[:1].upper() + words[1:]


def _short(count: float) -> str:
    """1,312,000 as 1.31 million."""
    for unit, word in ((1e9, "billion"), (1e6, "million")):
        if count >= unit:
            return f"{count / unit:.3g} {word}"
    return f"{count:,.0f}"
