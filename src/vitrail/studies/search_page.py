"""What a search shows: every candidate, the front, and what each stage's choices are worth."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vitrail.kit.chart import Line, line_chart
from vitrail.studies.definition import Definition, Figure, Record, Shown, Table
from vitrail.studies.grid import FINAL, alike, mean_of, paired, signed, verdict
from vitrail.studies.statistics import Mean, pareto

FEWEST = 10  # architectures, to say what a choice is worth


def written(values: Sequence[Sequence[float]]) -> str:
    """Every block's choice, stage by stage: ``1 21 2211``."""
    return " ".join("".join(f"{value:g}" for value in stage) for stage in values)


def show(definition: Definition, records: Sequence[Record], intervals: bool) -> Shown:
    """The front of accuracy and multiply-adds, and what each stage's choices are worth.

    The front is taken on validation pictures, and its accuracy on test pictures stands beside it:
    the best of many on the same pictures is flattered.
    """
    runs: dict[str, list[Record]] = {}
    for record in records:
        runs.setdefault(record["config"]["line"], []).append(record)
    names = [name for name, found in runs.items() if mean_of(found, FINAL) is not None]
    if not names:
        return Shown(["No candidate has been trained yet."])
    macs = [runs[name][0]["config"]["axes"]["macs"] / 1e6 for name in names]
    on_val = [_known(runs[name], FINAL, intervals) for name in names]
    front = pareto(macs, [mean.mean for mean in on_val])
    on_test = {name: mean_of(runs[name], "top1", intervals) for name in names}
    rows = [
        [
            names[i],
            round(macs[i], 2),
            alike(runs[names[i]], "parameters"),
            on_val[i].words(),
            None if (test := on_test[names[i]]) is None else test.words(),
            "yes" if i in front else "",
            written(runs[names[i]][0]["config"]["config"]["kv_strides"]),
            written(runs[names[i]][0]["config"]["config"]["mlp_ratios"]),
        ]
        for i in sorted(range(len(names)), key=lambda i: macs[i])
    ]
    columns = (
        *("architecture", "million MACs", "parameters", "validation, %", "test, %", "front"),
        *("KV strides", "MLP ratios"),
    )
    caption = (
        "Every candidate, the cheapest first; strides and ratios block by block, stages apart. On "
        "the front nothing as cheap is better on validation pictures."
    )
    tables = [Table(columns, rows, caption)]
    worth = _worth(names, runs, on_val)
    if worth:
        words = (
            "What a choice is worth: points of validation accuracy for all of a stage's blocks, by "
            "least squares over the candidates; 95 % by bootstrap over them."
        )
        tables.append(Table(("choice", "points", "from", "to"), worth, words))
    return Shown(
        _answer(names, macs, runs, on_val, front, definition.facts["limit"]),
        tables,
        [_figure(macs, on_val, front)],
        {
            "front": [names[i] for i in front],
            "candidates": {
                names[i]: {
                    "macs": 1e6 * macs[i],
                    "val_top1": on_val[i].to_json(),
                    "top1": (test := on_test[names[i]]) and test.to_json(),
                }
                for i in range(len(names))
            },
        },
    )


def _known(runs: Sequence[Record], name: str, intervals: bool) -> Mean:
    mean = mean_of(runs, name, intervals)
    assert mean is not None
    return mean


def _answer(
    names: Sequence[str],
    macs: Sequence[float],
    runs: Mapping[str, Sequence[Record]],
    on_val: Sequence[Mean],
    front: Sequence[int],
    limit: float | None,
) -> list[str]:
    best = front[-1]
    under = "" if limit is None else f" under {limit / 1e6:,.4g} million multiply-adds"
    said = [
        f"Of {len(names)} architectures{under} {len(front)} are on the front. The best, "
        f"{names[best]}, has {on_val[best].words()} % on validation pictures at "
        f"{macs[best]:,.4g} million multiply-adds."
    ]
    whole = next((i for i, name in enumerate(names) if "CvT-13" in name), None)
    if whole is not None and best != whole:
        one, other = runs[names[best]], runs[names[whole]]
        gap, where = paired(one, other, "top1"), "on test pictures, which did not choose it"
        if gap is None:
            gap, where = paired(one, other, FINAL), "on validation pictures"
        if gap is not None:
            told = verdict(gap)
            sure = f" ({told})" if told == "not told apart" else ""
            said.append(
                f"Against CvT-13's own choice that is {signed(gap)} points{sure} {where}, at "
                f"{macs[best] / macs[whole]:.2f} times the multiply-adds."
            )
    return said


def _worth(
    names: Sequence[str], runs: Mapping[str, Sequence[Record]], on_val: Sequence[Mean]
) -> list[list[Any]]:
    """Points of accuracy for stride 1, and for ratio 4, in all blocks of each stage.

    None where candidates are too few for as many unknowns, or a choice was never varied.
    """
    shares, labels = [], []
    configs = [runs[name][0]["config"]["config"] for name in names]
    for field, option, what in (
        ("kv_strides", 1, "stride 1 instead of 2"),
        ("mlp_ratios", 4.0, "ratio 4 instead of 2"),
    ):
        for stage in range(len(configs[0][field])):
            share = [np.mean([value == option for value in c[field][stage]]) for c in configs]
            shares.append(share)
            labels.append(f"{what}, stage {stage + 1}")
    x = np.column_stack([np.ones(len(names)), *shares])
    y = 100 * np.array([mean.mean for mean in on_val])
    if len(names) < max(FEWEST, 2 * x.shape[1]) or np.linalg.matrix_rank(x) < x.shape[1]:
        return []
    fit = np.linalg.lstsq(x, y, rcond=None)[0]
    numbers = np.random.default_rng(0)
    draws = []
    while len(draws) < 500:
        rows = numbers.integers(len(y), size=len(y))
        if np.linalg.matrix_rank(x[rows]) == x.shape[1]:
            draws.append(np.linalg.lstsq(x[rows], y[rows], rcond=None)[0])
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    return [
        [label, *(round(float(part[i]), 2) for part in (fit, low, high))]
        for i, label in enumerate(labels, 1)
    ]


def _figure(macs: Sequence[float], on_val: Sequence[Mean], front: Sequence[int]) -> Figure:
    accuracy = [mean.mean for mean in on_val]
    lines = [
        Line("candidates", macs, accuracy, dots=True, joined=False),
        Line("the front", [macs[i] for i in front], [accuracy[i] for i in front], dots=True),
    ]
    svg = line_chart(
        lines,
        title="Validation accuracy over multiply-adds",
        x_label="million multiply-adds a picture",
        percent=True,
        x_format=",.4g",
    )
    return Figure(
        "search-front", svg, "Every candidate, and those that nothing as cheap is better than."
    )
