"""`vitrail verify`."""

from __future__ import annotations  # hints name tyro, which is imported when they are read

import sys
from typing import TYPE_CHECKING, Annotated

from vitrail.cli.arguments import arg
from vitrail.cli.output import print_json, print_rows
from vitrail.kit.errors import Error

if TYPE_CHECKING:
    from vitrail.export.verify import BundleVerdict

REFUSED = 3
WORDS = {True: "ok", False: "FAILED", None: "-"}


def verify(
    source: Annotated[str, arg("MODEL|BUNDLE")],
    /,
    *,
    against: Annotated[str | None, arg("MODEL")] = None,
    check: Annotated[str | None, arg("DATA")] = None,
    split: str = "test",
    samples: int = 512,
    max_drop: float = 0.5,
    json: bool = False,
) -> int:
    """Check that a model folder or a bundle is what was saved, and a bundle as good as its model.

    Example: vitrail verify runs/photos
    Example: vitrail verify bundle --against runs/photos --check photos/

    Exit status 3, and the file that is to blame, when something fails.

    Args:
        source: A model folder, hf-hub:org/name, or a bundle of `vitrail export`.
        against: For a bundle: the model that it was made from.
        check: For a bundle: images to compare the two on.
        split: Of those images.
        samples: How many of them.
        max_drop: Points of top-1 accuracy that the bundle may lose.
        json: Print one JSON object on stdout.
    """
    from vitrail.weights.verify import read_kind, verify_model

    if read_kind(source) == "bundle":
        verdict = _verified_bundle(source, against, check, split, samples, max_drop)
    elif against or check:
        raise Error(f"{source} is a model folder: --against and --check are for bundles")
    else:
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
    for failed in verdict.failures:
        said = f"{failed.file}: {failed.name}: {failed.detail}"
        print(f"refused: {verdict.path}/{said}", file=sys.stderr)
    return 0 if verdict.passed else REFUSED


def _verified_bundle(
    source: str,
    against: str | None,
    check: str | None,
    split: str,
    samples: int,
    max_drop: float,
) -> BundleVerdict:
    from vitrail.export.verify import verify_bundle

    if (against is None) != (check is None):
        raise Error(
            "--against MODEL and --check DATA go together: the one is compared on the other"
        )
    if against is None or check is None:
        return verify_bundle(source)
    from vitrail.data.sources import open_source
    from vitrail.weights.folder import load_model
    from vitrail.weights.read import description_of
    from vitrail.weights.temperature import read_temperature

    return verify_bundle(
        source,
        load_model(against),
        open_source(check, split),
        temperature=read_temperature(against, "final"),
        several=bool((description_of(against) or {}).get("several_labels")),
        samples=samples,
        max_drop=max_drop,
        load=load_model,
    )
