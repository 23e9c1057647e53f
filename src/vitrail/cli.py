"""The command line: one function a verb, each importing its work only when it is called.

This is the one file that knows tyro. Results go to stdout, everything else to stderr. Exit status:
0 done; 2 the user's error, in one line; 3 a gate refused; 130 after Ctrl-C, with everything
saved; 1 is a bug of ours.
"""

from __future__ import annotations  # hints name tyro, which is imported when they are read

import os

# libgomp's threads spin while they wait: with one other job on the machine, training falls to a
# tenth. This costs nothing on an idle machine, and must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import inspect
import json
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vitrail import __version__
from vitrail.kit.errors import Error, did_you_mean

if TYPE_CHECKING:
    from vitrail.data.sources import Source
    from vitrail.evaluation.accuracy import Accuracy
    from vitrail.models.base import ImageClassifier

USAGE = """usage: vitrail VERB ...

Vision Transformers for image classification: train, evaluate, use.

{verbs}

  vitrail VERB --help   what a verb takes, with an example
  vitrail --version     the version
"""


def _arg(metavar: str) -> Any:
    """How an option is shown; hints are only evaluated when a parser is built from them."""
    import tyro

    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


def train(
    data: Annotated[str, _arg("DATA")],
    /,
    *,
    out: Annotated[Path, _arg("DIR")],
    model: Annotated[str | None, _arg("NAME")] = None,
    weights: Annotated[str | None, _arg("SOURCE")] = None,
    recipe: Annotated[str | None, _arg("NAME")] = None,
    epochs: Annotated[float | None, _arg("N")] = None,
    steps: Annotated[int | None, _arg("N")] = None,
    batch_size: Annotated[int | None, _arg("N")] = None,
    image_size: Annotated[int | None, _arg("PIXELS")] = None,
    lr: Annotated[float | None, _arg("X")] = None,
    seed: int = 0,
    workers: int = 0,
    save_every: Annotated[int | None, _arg("STEPS")] = None,
    val_fraction: Annotated[float | None, _arg("X")] = None,
    device: Annotated[Literal["cpu", "cuda"] | None, _arg("cpu|cuda")] = None,
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32",
    compile: bool = False,
    ema: Annotated[bool, _arg("")] = True,
    patience: Annotated[int | None, _arg("N")] = None,
    record_keys: bool = False,
    dry_run: bool = False,
    overwrite: bool = False,
    json: bool = False,
    set: Annotated[tuple[str, ...], _arg("KEY=VALUE")] = (),
) -> int:
    """Train a model on labelled images; the same command again continues or does nothing.

    Example: vitrail train photos/ --model vit_tiny_patch16_224 --out runs/photos

    Args:
        data: A class folder (or train/, val/, test/ of such), CSV or JSONL, or demo:fashion.
        out: Where the model, the records and the report go. A folder of its own.
        model: From `vitrail models`; by default that of --weights, or vit_tiny_patch16_224.
        weights: A model folder or a checkpoint file to start from.
        recipe: scratch, finetune (the default with --weights) or demo.
        epochs: Length in passes over the training images; fitted to the data by default.
        steps: Length in steps; beats --epochs.
        batch_size: Images a step; 64 by default.
        image_size: Pixels; the model's own by default.
        lr: Peak learning rate; the recipe's by default.
        seed: Of weights, order, augmentation and split.
        workers: Processes that decode images; 0 decodes in the main one.
        save_every: Steps between checkpoints; a tenth of the run by default, at most 500.
        val_fraction: Share of train to validate on, where there is no val; 0.1 by default.
        device: The best there is by default.
        precision: Of the arithmetic.
        compile: Run the model through torch.compile.
        ema: Do without the average of the weights, which is what is evaluated and saved.
        patience: Stop after this many looks at the validation set without a better one.
        record_keys: Write the order of the images to keys.jsonl.
        dry_run: Say what would be done, and stop.
        overwrite: Replace the run that --out holds.
        json: Print one JSON object on stdout at the end.
        set: Any field of the recipe or of the model: --set model.depth=2 optim.name=sgd.
    """
    from vitrail.recipes.run import train as work

    run = work(
        data,
        model=model,
        out=out,
        weights=weights,
        recipe=recipe,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        image_size=image_size,
        lr=lr,
        seed=seed,
        workers=workers,
        save_every=save_every,
        val_fraction=val_fraction,
        device=device,
        precision=precision,
        compile=compile,
        ema=ema,
        patience=patience,
        record_keys=record_keys,
        dry_run=dry_run,
        overwrite=overwrite,
        set=_settings(set),
        quiet=False,
        command=_again(),
    )
    if json:
        _print_json(run.to_json())
    elif run.report is not None:
        print(run.summary())
    return 0


def evaluate(
    source: Annotated[str, _arg("MODEL")],
    data: Annotated[str, _arg("DATA")],
    /,
    *,
    model: Annotated[str | None, _arg("NAME")] = None,
    split: str = "test",
    which: Literal["final", "best"] = "final",
    batch_size: int = 64,
    workers: int = 0,
    device: Annotated[Literal["cpu", "cuda"] | None, _arg("cpu|cuda")] = None,
    json: bool = False,
    out: Annotated[Path | None, _arg("DIR")] = None,
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
    images, note = _split_to_measure(source, data, split)
    batches = eval_batches(images, opened.preprocessing, batch_size, workers=workers)
    result = measure(opened, batches, images.classes)
    if note:
        print(note, file=sys.stderr)
    if out is not None:
        _write_evaluation(out, source, opened, split, result)
    if json:
        _print_json(result.to_json())
    else:
        _print_accuracy(result)
    return 0


def predict(
    source: Annotated[str, _arg("MODEL")],
    images: Annotated[tuple[str, ...], _arg("IMAGES")],
    /,
    *,
    model: Annotated[str | None, _arg("NAME")] = None,
    top: int = 5,
    format: Literal["table", "csv", "jsonl"] = "table",
    out: Annotated[Path | None, _arg("FILE")] = None,
    which: Literal["final", "best"] = "final",
    batch_size: int = 32,
    device: Annotated[Literal["cpu", "cuda"] | None, _arg("cpu|cuda")] = None,
) -> int:
    """Say what is on pictures: labels with probabilities, one line or record a picture.

    Example: vitrail predict runs/photos new/*.jpg --top 3 --format csv

    Args:
        source: A model folder, or a checkpoint file.
        model: The name of the model, for a file that does not say it.
        images: Picture files, folders of them (searched all the way down) or quoted globs.
        top: How many labels a picture.
        format: table to read, csv or jsonl to go on with.
        out: Write here instead of to stdout.
        which: The weights of the last step, or the best on validation.
        batch_size: Pictures at a time.
        device: The best there is by default.
    """
    from vitrail.serving.classifier import Classifier
    from vitrail.serving.predict import find_images, predictions, write_table

    paths = find_images(images)
    classify = Classifier(source, batch_size=batch_size, device=device, which=which, name=model)
    failed = write_table(predictions(classify, paths, top), format, out)
    if failed == len(paths):
        print(f"error: none of the {failed} pictures could be read", file=sys.stderr)
        return 2
    if failed:
        print(f"{failed} of {len(paths)} pictures could not be read", file=sys.stderr)
    return 0


def models(
    pattern: Annotated[str, _arg("NAME")] = "*",
    /,
    *,
    layers: bool = False,
    json: bool = False,
) -> int:
    """List the models, or show one layer by layer.

    Example: vitrail models 'vit_base*'
    Example: vitrail models vit_base_patch16_224 --layers

    Args:
        pattern: A name, or a pattern with * and ? (quote it).
        layers: Show the layers of one model: shape, parameters and multiply-adds of each.
        json: Print one JSON value on stdout.
    """
    from vitrail.models import catalog

    if layers:
        rows = catalog.layer_rows(pattern)
        _print_json(rows) if json else _print_rows(catalog.LAYER_COLUMNS, rows)
        return 0
    rows = catalog.model_rows(pattern)
    _print_json(rows) if json else _print_rows(catalog.MODEL_COLUMNS, rows)
    return 0


def demo(
    *,
    out: Annotated[Path, _arg("DIR")] = Path("vitrail-demo"),
    as_folder: Annotated[Path | None, _arg("DIR")] = None,
    seed: int = 0,
    overwrite: bool = False,
) -> int:
    """Train a small Vision Transformer on 10,000 pictures of clothes, and use it; a few minutes.

    Example: vitrail demo --out runs/demo
    Example: vitrail demo --as-folder fashion/

    Args:
        out: Where the model and its report go.
        as_folder: Only write the pictures there, as a folder to train on.
        seed: Of the run.
        overwrite: Replace the run that --out holds.
    """
    from vitrail.data.fashion import write_folder

    if as_folder is not None:
        write_folder(as_folder)
        print(f"train on it with: vitrail train {as_folder} --recipe demo --out runs/clothes")
        return 0
    from vitrail.recipes.run import train as work

    run = work(
        "demo:fashion",
        recipe="demo",
        out=out,
        val_fraction=0.05,
        seed=seed,
        overwrite=overwrite,
        quiet=False,
        command=_again(),
    )
    print(run.summary())
    _show_off(out)
    return 0


_given: list[str] = []  # the words of the command that is running
VERBS: dict[str, Callable[..., int]] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "models": models,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    _given[:] = argv
    debug = "--debug" in argv
    if debug:
        argv.remove("--debug")
    if not argv or argv[0] in ("-h", "--help"):
        lines = [f"  {name:<10} {_first_line(verb)}" for name, verb in VERBS.items()]
        print(USAGE.format(verbs="\n".join(lines)), end="")
        return 0
    if argv[0] == "--version":
        print(f"vitrail {__version__}")
        return 0
    # Pillow warns of what is odd in a picture; what matters of it becomes a sentence of ours.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        if argv[0] not in VERBS:
            near = did_you_mean(argv[0], VERBS) or f"; the verbs are {', '.join(VERBS)}"
            raise Error(f"there is no verb {argv[0]!r}{near}")
        return _call(argv[0], VERBS[argv[0]], argv[1:])
    except Error as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or 'stopped'}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `vitrail models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if debug or error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    except Exception:
        if not debug:
            print("this is a bug in Vitrail: please report it with these lines", file=sys.stderr)
        raise


def _call(name: str, verb: Callable[..., int], argv: list[str]) -> int:
    import tyro

    return tyro.cli(
        verb,
        prog=f"vitrail {name}",
        args=_gathered(argv),
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _gathered(argv: list[str]) -> list[str]:
    """All of ``--set a=1 b=2 ... --set c=3`` behind one ``--set``, so that it may be repeated."""
    rest: list[str] = []
    settings: list[str] = []
    inside = first = False
    for word in argv:
        if word == "--set":
            inside = first = True
        elif word.startswith("--set="):
            settings.append(word.removeprefix("--set="))
            inside = True
        elif inside and not word.startswith("-") and (first or "=" in word):
            settings.append(word)
            first = False
        else:
            inside = first = False
            rest.append(word)
    return [*rest, "--set", *settings] if settings else rest


def _settings(pairs: Sequence[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise Error(f"--set takes KEY=VALUE, not {pair!r}")
    return dict(pair.split("=", 1) for pair in pairs)


def _again() -> str:
    """This very command, to be shown as the way to go on."""
    return shlex.join(["vitrail", *(word for word in _given if word != "--overwrite")])


def _first_line(verb: Callable[..., int]) -> str:
    return (inspect.getdoc(verb) or "").partition("\n")[0]


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


def _show_off(folder: Path) -> None:
    """Use the demo's model on a few test pictures, and say what to try next."""
    from vitrail.data.sources import open_source
    from vitrail.serving.classifier import Classifier

    source, classify = open_source("demo:fashion", "test"), Classifier(folder)
    print("\nfive test pictures, and what the model says of them:")
    for example in (source.example(i) for i in range(0, len(source), len(source) // 5)):
        (answer,) = classify([example.image], top_k=2)
        said = ", ".join(f"{label} {100 * chance:.0f} %" for label, chance in answer)
        print(f"  {source.classes[example.label]:<16} -> {said}")
    print(
        f"\nopen {folder / 'report.html'} to see where it looks and what it mistakes.\n"
        "next, on a folder of your own images (one folder a class):\n"
        "  vitrail train photos/ --model vit_tiny_patch16_224 --out runs/photos\n"
        "  vitrail predict runs/photos new/*.jpg --top 3"
    )


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))


def _print_rows(columns: dict[str, str], rows: Sequence[dict[str, Any]]) -> None:
    """Rows as a table: ``columns`` from field to format, numbers right-aligned."""
    cells = [[_cell(row[name], form) for name, form in columns.items()] for row in rows]
    table = [list(columns), *cells]
    widths = [max(len(row[i]) for row in table) for i in range(len(columns))]
    for row in table:
        padded = [
            cell.rjust(width) if form.endswith(("d", "f")) else cell.ljust(width)
            for cell, width, form in zip(row, widths, columns.values(), strict=True)
        ]
        print("  ".join(padded).rstrip())


def _cell(value: Any, form: str) -> str:
    if isinstance(value, list | tuple):  # a shape, or names
        return ("x" if all(isinstance(item, int) for item in value) else " ").join(map(str, value))
    return format(value, form) if form else str(value).replace("\n", "\\n")


def _print_accuracy(result: Accuracy) -> None:
    print(
        f"top-1 {100 * result.top1:.2f} %   top-5 {100 * result.top5:.2f} %   "
        f"loss {result.loss:.3f}   on {result.n:,} images"
    )
    if result.skipped:
        named = ", ".join(f"{key} ({reason})" for key, reason in result.skipped[:3])
        print(f"{len(result.skipped):,} images could not be read: {named}", file=sys.stderr)
    columns = {"label": "", "n": ",d", "precision": ".3f", "recall": ".3f", "f1": ".3f"}
    _print_rows(
        columns, [{name: getattr(row, name) for name in columns} for row in result.per_class]
    )
