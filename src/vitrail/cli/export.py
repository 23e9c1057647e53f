"""`vitrail export`."""

from __future__ import annotations  # hints name tyro, which is imported when they are read

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vitrail.cli.arguments import arg
from vitrail.cli.output import print_json
from vitrail.kit.errors import Error

if TYPE_CHECKING:
    from vitrail.data.examples import Source
    from vitrail.export.check import Gate
    from vitrail.export.make import Made
    from vitrail.models.base import ImageClassifier

REFUSED = 3


def export(
    source: Annotated[str, arg("MODEL")],
    /,
    *,
    to: Literal["onnx", "openvino", "torch"],
    out: Annotated[Path, arg("DIR")],
    check: Annotated[str | None, arg("DATA")] = None,
    samples: Annotated[int, arg("N")] = 512,
    max_drop: Annotated[float, arg("POINTS")] = 0.5,
    no_check: bool = False,
    fp16: bool = False,
    int8: bool = False,
    int8_weights: bool = False,
    attention: bool = False,
    merge_tokens: Annotated[int, arg("R")] = 0,
    keep_anyway: bool = False,
    overwrite: bool = False,
    model: Annotated[str | None, arg("NAME")] = None,
    which: Literal["final", "best"] = "final",
    split: Annotated[Literal["test", "val", "train"] | None, arg("test|val|train")] = None,
    json: bool = False,
) -> int:
    """Export a model as a bundle, checked on your own images: no accuracy is lost in silence.

    Example: vitrail export runs/photos --to onnx --check photos/ --out bundle

    The bundle holds the graph, from bytes to probabilities, the labels, the preprocessing, the
    calibration and a README with an example that needs no Vitrail. Exit status 3, and no bundle,
    when it is worse than allowed.

    Args:
        source: A model folder, or a checkpoint file.
        to: What shall run it. torch leaves a model folder.
        out: The bundle's folder, new.
        check: Labelled images, as for train; those of its test split, else val, else all.
        samples: How many of them to compare the model and the export on.
        max_drop: Points of top-1 accuracy that may be lost.
        no_check: Export without looking; the bundle says so.
        fp16: Weights in half the size; LayerNorm and softmax stay in float32.
        int8: Compute in 8 bits, calibrated on the data; layers that hurt stay in float.
        int8_weights: Weights in a quarter of the size; the arithmetic stays in float.
        attention: Let it say too where the model looked: a small map a picture.
        merge_tokens: Merge R tokens in each block of a plain ViT: faster, and not exact.
        keep_anyway: Leave the bundle even when the check refuses it.
        overwrite: Let a bundle in --out go.
        model: The name of the model, for a file that does not say it.
        which: The weights of the last step, or the best on validation.
        split: Of the data to check on, instead of the choice above.
        json: Print one JSON object on stdout.
    """
    chosen = [name for name, on in _precisions(fp16, int8, int8_weights).items() if on]
    _check_flags(to, chosen, check, no_check, samples, max_drop)
    if merge_tokens < 0:
        raise Error(f"--merge-tokens is 0 or more tokens a block, not {merge_tokens}")
    if merge_tokens and attention:
        raise Error(
            "--attention and --merge-tokens exclude each other, because merged tokens have no "
            "place in the picture: give one"
        )
    made, gate = _exported(
        source, to, out, chosen[0] if chosen else "fp32",
        check=check, samples=samples, max_drop=max_drop, keep_anyway=keep_anyway,
        overwrite=overwrite, model=model, which=which, split=split, attention=attention,
        merge_tokens=merge_tokens,
    )  # fmt: skip
    refused = gate is not None and not gate.passed
    if no_check:
        print("warning: --no-check: nobody measured this bundle, and it says so", file=sys.stderr)
    if json:
        print_json({"out": str(out), "written": made.written, **made.manifest.to_json()})
    else:
        _print(out, made)
    if gate is not None and refused:
        print(f"refused: {'; '.join(gate.reasons)}", file=sys.stderr)
        left = f"kept in {out} all the same" if made.written else "no bundle was left"
        print(f"{left}; --keep-anyway keeps one, --max-drop allows more", file=sys.stderr)
    return REFUSED if refused else 0


def _precisions(fp16: bool, int8: bool, int8_weights: bool) -> dict[str, bool]:
    return {"fp16": fp16, "int8": int8, "int8-weights": int8_weights}


def _check_flags(
    to: str, chosen: list[str], check: str | None, no_check: bool, samples: int, max_drop: float
) -> None:
    if len(chosen) > 1:
        raise Error(f"--{' and --'.join(chosen)} exclude each other: give one")
    if to == "torch" and chosen:
        raise Error(f"--{chosen[0]} is for --to onnx and --to openvino")
    if (check is None) != no_check:
        raise Error(
            "give --check DATA, labelled images to compare the model and the export on, or "
            "--no-check to go without: one of the two"
        )
    if no_check and "int8" in chosen:
        raise Error("--int8 is calibrated on your own images: give --check DATA")
    if samples < 1 or not 0 <= max_drop <= 100:
        raise Error("--samples is at least 1, and --max-drop is points from 0 to 100")


def _exported(
    source: str, to: str, out: Path, precision: str, **given: Any
) -> tuple[Made, Gate | None]:
    from vitrail.export.bundle import check_free
    from vitrail.export.make import Wanted, make_bundle
    from vitrail.weights.folder import load_model
    from vitrail.weights.read import description_of

    check_free(out, given["overwrite"])
    opened = load_model(source, name=given["model"], which=given["which"])
    several = bool((description_of(source) or {}).get("several_labels"))
    temperature, digest = _calibration(source, given["which"])
    images, others = _images(given["check"], given["split"])
    if to == "torch":
        given["several"] = several
        made = _torch_bundle(opened, out, images, temperature, digest, given)
        return made, made.gate
    wanted = Wanted(
        to=to,
        precision=precision,
        source=images,
        calibration=others,
        samples=given["samples"],
        max_drop=given["max_drop"],
        keep_anyway=given["keep_anyway"],
        overwrite=given["overwrite"],
        attention=given["attention"],
        several=several,
        merge_tokens=given["merge_tokens"],
    )

    def say(words: str) -> None:
        print(words, file=sys.stderr)

    made = make_bundle(opened, out, wanted, temperature=temperature, source_sha256=digest, say=say)
    return made, made.gate


def _calibration(source: str, which: str) -> tuple[float, str | None]:
    """The temperature of a model folder's weights, and their hash."""
    from vitrail.kit.files import sha256_of
    from vitrail.weights.read import BEST_FILE, MODEL_FILE
    from vitrail.weights.temperature import read_temperature

    path = Path(source).expanduser()
    if path.is_dir():
        best = path / BEST_FILE
        path = best if which == "best" and best.exists() else path / MODEL_FILE
    return read_temperature(source, which), sha256_of(path) if path.is_file() else None


def _images(data: str | None, split: str | None) -> tuple[Source | None, Source | None]:
    """The images to check on, and others for calibration where the data have them."""
    from vitrail.data.sources import missing_split, open_splits

    if data is None:
        return None, None
    splits = open_splits(data, least_classes=1)
    wanted = split or next(name for name in ("test", "val", "train") if name in splits)
    if wanted not in splits:
        raise missing_split(wanted, splits)
    others = splits.get("train") if wanted != "train" else None
    return splits[wanted], others


def _torch_bundle(
    model: ImageClassifier,
    out: Path,
    images: Source | None,
    temperature: float,
    digest: str | None,
    given: dict[str, Any],
) -> Made:
    """A model folder with a manifest; what is compared is the model saved and opened again."""
    import shutil
    import tempfile

    from vitrail.export.attention import attention_view
    from vitrail.export.blame import explained_merging
    from vitrail.export.bundle import Manifest, write_bundle
    from vitrail.export.check import check_kind, check_names, compare, draw_samples, reference_of
    from vitrail.export.make import Made, names_of
    from vitrail.export.names import ATTENTION, OUTPUTS
    from vitrail.export.verify import torch_logits
    from vitrail.weights.folder import load_model, save_model

    if given["attention"]:
        attention_view(model)  # says so where there is none
    labels, gate = names_of(model, images), None
    several, merge = given["several"], given["merge_tokens"]
    with tempfile.TemporaryDirectory(prefix="vitrail-export-") as name:
        work = Path(name)
        details = {"temperature": {"final": temperature}, "several_labels": several}
        save_model(model, work, labels, details=details)
        if images is not None:
            check_kind(images, several)
            samples = draw_samples(images, model.preprocessing, given["samples"])
            check_names(samples, labels)
            saved = load_model(work)
            size = sum(path.stat().st_size for path in work.iterdir())
            gate = compare(
                samples,
                reference_of(model, model.preprocessing),
                torch_logits(saved, merge),
                labels=labels,
                exported_labels=saved.labels,
                temperature=temperature,
                exact=not merge,
                max_drop=given["max_drop"],
                sizes=(size, size),
            )
            if merge:
                gate = explained_merging(gate, samples, model, merge, labels)
        manifest = Manifest(
            runtime="torch",
            precision="fp32",
            labels=labels,
            preprocessing=model.preprocessing,
            temperature=temperature,
            source_sha256=digest,
            gate=None if gate is None else gate.to_json(),
            outputs=(*OUTPUTS, ATTENTION) if given["attention"] else OUTPUTS,
            several_labels=several,
            merge_tokens=merge,
        )
        if gate is not None and not gate.passed and not given["keep_anyway"]:
            return Made(manifest, gate, False)

        def moved(folder: Path) -> None:
            for path in work.iterdir():  # not their folder, which is closed to others
                shutil.copyfile(path, folder / path.name)

        return Made(write_bundle(out, manifest, moved, given["overwrite"]), gate, True)


def _print(out: Path, made: Made) -> None:
    gate, manifest = made.gate, made.manifest
    if gate is not None:
        print(f"{'':22}{'model':>12}{'exported':>12}   on {gate.n} images")
        name, before, after = gate.figures
        rows = [
            (name, f"{100 * before:.2f} %", f"{100 * after:.2f} %"),
            ("calibration error", f"{gate.reference_ece:.4f}", f"{gate.exported_ece:.4f}"),
            ("ms an image", f"{gate.reference_ms:.2f}", f"{gate.exported_ms:.2f}"),
            ("MB", f"{gate.reference_bytes / 1e6:.2f}", f"{gate.exported_bytes / 1e6:.2f}"),
        ]
        for name, before, after in rows:
            print(f"{name:22}{before:>12}{after:>12}")
        print(
            f"same answer {100 * gate.agreement:.2f} %, largest difference of a logit "
            f"{gate.max_logit_gap:.2g} (the largest logit is {gate.max_logit:.3g})"
        )
        if gate.attention_gap is not None:
            print(f"largest difference of its attention {gate.attention_gap:.2g}")
        for step in gate.steps:
            print(f"  {step.name:32} {100 * step.figure:8.2f} %   logits move by {step.moved:.2g}")
    if manifest.quantisation:
        layers = manifest.quantisation["layers"]
        print(f"{sum(layer['int8'] for layer in layers)} of {len(layers)} layers in int8; worst:")
        for layer in layers[:5]:
            kept = "int8" if layer["int8"] else "float"
            print(f"  {layer['name']:40} {100 * layer['hurt']:8.3f} %  {kept}")
    if made.written:
        print(f"{out}: {manifest.runtime}, {manifest.precision}, {len(manifest.labels)} classes")
