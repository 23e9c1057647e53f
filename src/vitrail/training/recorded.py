"""What a run recorded, ready to be shown: curves of its records, and settings as they are typed."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitrail.kit.chart import Line

POINTS = 160  # of a curve in a chart: more cannot be seen


def curve(
    name: str, records: Sequence[Mapping[str, Any]], field: str, best: str = ""
) -> Line | None:
    """A field of records over their steps, thinned to what can be seen; None if there is none."""
    points = [(float(r["step"]), float(r[field])) for r in records if r.get(field) is not None]
    if not points:
        return None
    steps, values = np.array(points).T
    if len(points) > POINTS:  # the mean of each stretch: a curve of averages hides no trend
        stretches = np.array_split(np.arange(len(points)), POINTS)
        steps = np.array([steps[s].mean() for s in stretches])
        values = np.array([values[s].mean() for s in stretches])
    return Line(name, steps.tolist(), values.tolist(), dots=len(points) <= 40, best=best)


def is_group(value: Any) -> bool:
    """Whether a setting has parts; a duration, {"value": 5, "unit": "epochs"}, is one thing."""
    return isinstance(value, Mapping) and set(value) != {"value", "unit"}


def flat(group: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    found: dict[str, Any] = {}
    for name, value in group.items():
        if is_group(value):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def setting(value: Any) -> str:
    """As it would be typed: no commas in numbers, unlike in prose."""
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return f"{value['value']:g} {value['unit']}"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(setting(item) for item in value) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
