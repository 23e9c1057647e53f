"""Records as a study would have left them, with figures that the test knows."""

from collections.abc import Mapping
from typing import Any

from vitrail.studies.definition import Definition, Point


def record(point: Point, top1: float | None, **metrics: Any) -> dict[str, Any]:
    """The record of a run with this accuracy."""
    config = point.to_json()
    known: Mapping[str, Any] = {"top1": top1, "exaflops": 1e-6, "macs": 1_000_000, "images": 100}
    known = {**known, "parameters": 1000, "steps": 10, "best_step": 8, "seconds": 1.0}
    return {
        "id": point.id,
        "config": config,
        "seed": point.seed,
        "metrics": {**known, **metrics},
    }


def points(kind: str, rows: list[dict[str, Any]], **facts: Any) -> Definition:
    """A definition of these points."""
    made = tuple(Point(**{"model": "vit_nano_patch7_28", **row}) for row in rows)
    return Definition(kind=kind, points=made, facts=facts)
