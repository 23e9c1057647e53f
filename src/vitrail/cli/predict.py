"""`vitrail predict`."""

from __future__ import annotations  # hints name tyro, which is imported when they are read

import sys
from pathlib import Path
from typing import Annotated, Literal

from vitrail.cli.arguments import arg
from vitrail.cli.output import check_out_file
from vitrail.kit.errors import Error


def predict(
    source: Annotated[str, arg("MODEL")],
    images: Annotated[tuple[str, ...], arg("IMAGES")],
    /,
    *,
    model: Annotated[str | None, arg("NAME")] = None,
    top: int = 5,
    format: Literal["table", "csv", "jsonl"] = "table",
    out: Annotated[Path | None, arg("FILE")] = None,
    which: Literal["final", "best"] = "final",
    batch_size: int = 32,
    device: Annotated[Literal["cpu", "cuda"] | None, arg("cpu|cuda")] = None,
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

    if not images:
        raise Error("name the pictures: files, folders of them or quoted globs")
    paths = find_images(images)
    check_out_file(out, paths)
    classify = Classifier(source, batch_size=batch_size, device=device, which=which, name=model)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
    failed = write_table(predictions(classify, paths, top), format, out)
    if failed == len(paths):
        print(f"error: none of the {failed} pictures could be read", file=sys.stderr)
        return 2
    if failed:
        print(f"{failed} of {len(paths)} pictures could not be read", file=sys.stderr)
    if out is not None:
        print(f"{out} says what is on {len(paths) - failed:,} pictures", file=sys.stderr)
    return 0
