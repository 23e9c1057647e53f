"""`vitrail models`."""

from __future__ import annotations  # hints name tyro, which is imported when they are read

from typing import Annotated

from vitrail.cli.arguments import arg
from vitrail.cli.output import print_json, print_rows
from vitrail.kit.errors import Error


def models(
    pattern: Annotated[str, arg("NAME")] = "*",
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

    if layers and pattern == "*":
        raise Error("--layers shows one model: name it, as in `vitrail models B/16 --layers`")
    if layers:
        rows = catalog.layer_rows(pattern)
        print_json(rows) if json else print_rows(catalog.LAYER_COLUMNS, rows)
        return 0
    rows = catalog.model_rows(pattern)
    print_json(rows) if json else print_rows(catalog.MODEL_COLUMNS, rows)
    return 0
