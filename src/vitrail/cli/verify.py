"""`vitrail verify`."""

from __future__ import annotations  # hints name tyro, which is imported when they are read

import sys
from typing import Annotated

from vitrail.cli.arguments import arg
from vitrail.cli.output import print_json, print_rows
from vitrail.kit.errors import Error

REFUSED = 3
WORDS = {True: "ok", False: "FAILED", None: "-"}


def verify(source: Annotated[str, arg("MODEL")], /, *, json: bool = False) -> int:
    """Check that a model folder is what was saved: hashes, shapes, finite values, golden logits.

    Example: vitrail verify runs/photos

    Exit status 3, and the file that is to blame, when something fails.

    Args:
        source: A model folder, or hf-hub:org/name.
        json: Print one JSON object on stdout.
    """
    from vitrail.weights.verify import read_kind, verify_model

    if read_kind(source) == "bundle":
        raise Error(f"{source} is a bundle, and this version of Vitrail verifies model folders")
    verdict = verify_model(source)
    if json:
        print_json(verdict.to_json())
    else:
        columns = {"file": "", "check": "", "result": "", "detail": ""}
        rows = [
            {"file": c.file, "check": c.name, "result": WORDS[c.passed], "detail": c.detail}
            for c in verdict.checks
        ]
        print_rows(columns, rows)
    for check in verdict.failures:
        print(
            f"refused: {verdict.path}/{check.file}: {check.name}: {check.detail}", file=sys.stderr
        )
    return 0 if verdict.passed else REFUSED
