"""`vitrail predict`."""

from __future__ import annotations  # hints name tyro, which is imported when they are read

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from vitrail.cli.arguments import arg
from vitrail.cli.output import check_out, check_out_file, print_json
from vitrail.cli.progress import Progress
from vitrail.kit.errors import Error

if TYPE_CHECKING:
    from vitrail.serving.forms import Tally
    from vitrail.serving.predict import Plan, Told

MANY = 10_000  # pictures in one file, which a kill loses: the folder is recommended


def predict(
    source: Annotated[str, arg("MODEL")],
    images: Annotated[tuple[str, ...], arg("IMAGES")],
    /,
    *,
    model: Annotated[str | None, arg("NAME")] = None,
    top: int = 5,
    format: Annotated[
        Literal["table", "csv", "jsonl", "parquet"] | None, arg("table|csv|jsonl|parquet")
    ] = None,
    out: Annotated[str | None, arg("FILE|DIR")] = None,
    shard: Annotated[str | None, arg("I/N")] = None,
    piece_size: Annotated[int, arg("N")] = 2000,
    workers: Annotated[int | None, arg("N")] = None,
    threads: Annotated[int | None, arg("N")] = None,
    which: Literal["final", "best"] = "final",
    batch_size: int = 32,
    device: Annotated[Literal["cpu", "cuda"] | None, arg("cpu|cuda")] = None,
    json: bool = False,
) -> int:
    """Say what is on pictures: labels with probabilities, one line or record a picture.

    Example: vitrail predict runs/photos new/*.jpg --top 3 --format csv

    A folder as --out takes any number of pictures, in numbered pieces; the same command again goes
    on after the last whole one, and does nothing when all are there.

    Args:
        source: A model folder, a bundle, or a checkpoint file.
        model: The name of the model, for a file that does not say it.
        images: Picture files, folders of them (searched all the way down) or quoted globs.
        top: How many labels a picture.
        format: table to read; csv, jsonl or parquet to go on with. By default what the ending of
            --out says, jsonl in a folder, and else table.
        out: Write here instead of to stdout: a file (a name with an ending) or a folder.
        shard: Only the I-th of N parts of the pictures, 1/N to N/N, for many machines; all may
            write into one folder.
        piece_size: Pictures in a piece, where --out is a folder; 2,000 by default.
        workers: Threads that read, decode and resize; one a core by default.
        threads: Threads for the arithmetic; the runtime's own choice by default.
        which: The weights of the last step, or the best on validation.
        batch_size: Pictures at a time.
        device: The best there is by default.
        json: A summary as one JSON value on stdout; needs --out.
    """
    folder, form = _target(out, format, json)
    for flag, number in (("--top", top), ("--piece-size", piece_size)):
        if number < 1:
            raise Error(f"{flag} must be at least 1, not {number}")
    if workers is not None and workers < 0:
        raise Error(f"--workers is a number of threads from 0, not {workers}")

    from vitrail.serving.classifier import Classifier
    from vitrail.serving.images import find_images, read_share
    from vitrail.serving.predict import Plan, Share

    share = read_share(shard) if shard else Share()
    if not images:
        raise Error("name the pictures: files, folders of them or quoted globs")
    try:
        names = find_images(images)
    except Error:
        Classifier(source, threads, batch_size, device, which, model)  # the two may be swapped
        raise
    if folder and out is not None:
        _check_folder(Path(out), images)
    else:
        check_out_file(Path(out) if out else None, (Path(names.path(i)) for i in range(len(names))))
        if out and share.n > 1 and Path(out).is_file():
            raise Error(
                f"{out} exists, and part {share.i} of {share.n} would take its place: give each "
                "part a file of its own, or all of them one folder"
            )
    classify = Classifier(source, threads, batch_size, device, which, model)
    plan = Plan(names, share, top, form, workers, piece_size)
    return _run(classify, plan, Path(out) if out else None, folder, json)


def _target(out: str | None, form: str | None, json: bool) -> tuple[bool, str]:
    """Whether ``--out`` is a folder, and the form that is written."""
    if out is None:
        if json:
            raise Error(
                "--json gives a summary and needs --out; the predictions are --format jsonl"
            )
        if form == "parquet":
            raise Error("parquet is written to a file or a folder: give --out")
        return False, form or "table"
    from vitrail.serving.forms import ENDINGS, schema

    path = Path(out)
    if form == "parquet" or ENDINGS.get(path.suffix.lower()) == "parquet":
        schema()  # which says what has to be installed for it
    folder = path.is_dir() or not (path.exists() or path.suffix) or out.endswith("/")
    if folder and form == "table":
        raise Error(f"--out {out} is a folder, which takes csv, jsonl or parquet, not table")
    return folder, form or ("jsonl" if folder else ENDINGS.get(path.suffix.lower(), "table"))


def _check_folder(out: Path, images: Sequence[str]) -> None:
    for name in images:
        check_out(out, name)


def _run(classify: Any, plan: Plan, out: Path | None, folder: bool, json: bool) -> int:
    """Predict, say what came of it, and give the exit status."""
    from vitrail.serving.predict import predict_to_file, predict_to_folder

    count, before, began = len(plan.places), 0, time.monotonic()
    if out is not None and not folder:
        out.parent.mkdir(parents=True, exist_ok=True)
        if count > MANY:
            print(
                f"{count:,} pictures into one file: a folder as --out could be gone on with",
                file=sys.stderr,
            )
    with nullcontext() if out is None else Progress(rate="images") as progress:
        told = _told(progress)
        if folder and out is not None:
            tally, before = predict_to_folder(classify, plan, out, told)
        else:
            tally = predict_to_file(classify, plan, out, told)
    seconds = time.monotonic() - began
    if count and tally.failed == count:
        print(f"error: none of the {count:,} pictures could be read", file=sys.stderr)
        return 2
    _say(plan, tally, out, before, seconds)
    if json:
        print_json(_summary(plan, tally, out, before, seconds))
    return 0


def _told(progress: Progress | None) -> Told:
    def told(before: int, done: int, count: int) -> None:
        if progress is not None and before + done < count:  # the end is said in other words
            if done == 1:
                progress("predict", before, count)
            progress("predict", before + done, count)

    return told


def _say(plan: Plan, tally: Tally, out: Path | None, before: int, seconds: float) -> None:
    if tally.failed:
        named = "; ".join(f"{path}: {reason}" for path, reason in tally.named)
        more = "" if tally.failed <= len(tally.named) else "; ..."
        print(
            f"{tally.failed:,} of {len(plan.places):,} pictures could not be read ({named}{more})",
            file=sys.stderr,
        )
    if out is not None:
        part = f"part {plan.share.i} of {plan.share.n}" if plan.share.n > 1 else ""
        now = tally.records - before
        told = [f"{before:,} were there before"] if before else []
        told += [f"{now / seconds:,.0f} images/s"] if now else []
        if before and not now:
            of = f" of {part}" if part else ""
            said = f"nothing to do: all {before:,} pictures{of} are in {out} already"
            print(said, file=sys.stderr)
            return
        print(
            f"{out} says what is on {tally.records - tally.failed:,} pictures"
            + (f", {part}" if part else "")
            + (f" ({'; '.join(told)})" if told else ""),
            file=sys.stderr,
        )


def _summary(
    plan: Plan, tally: Tally, out: Path | None, before: int, seconds: float
) -> dict[str, Any]:
    now = tally.records - before
    return {
        "out": str(out),
        "format": plan.form,
        "shard": f"{plan.share.i}/{plan.share.n}",
        "images": tally.records,
        "failed": tally.failed,
        "errors": [{"path": path, "error": reason} for path, reason in tally.named],
        "images_this_run": now,
        "seconds": seconds,
        "images_per_second": now / seconds if now else None,
    }
