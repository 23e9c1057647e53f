"""`study search`: CvT-13-NAS's space, sampled under a limit, and the front that it holds.

The CvT paper chose for every block of CvT-13 a stride of keys and values, 1 or 2, and an MLP ratio,
2 or 4, by a search (DA-NAS) whose outcome and weights were never published. Here architectures
of the space are drawn, each is trained for a short time, and the ones that nothing cheaper is as
good as are shown. A front is seen where candidates lie along the whole of the compute, and drawing
every block by a coin leaves its ends empty; so a sample first draws a compute, evenly up to the
limit, and is then the nearest to it of a few random architectures. The two corners of the space,
the authors' CvT-13 and the paper's sentence about its find are always among the candidates, as far
as the limit lets them.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np

from vitrail.kit.chart import Line, line_chart
from vitrail.kit.errors import Error
from vitrail.models.base import checked_config
from vitrail.models.cost import cost
from vitrail.models.cvt import CvTConfig
from vitrail.models.zoo import resolve
from vitrail.studies.bases import small_cvt
from vitrail.studies.definition import (
    Ask,
    Candidate,
    Definition,
    Figure,
    Kind,
    Point,
    Record,
    Shown,
    Table,
)
from vitrail.studies.folder import safe_id
from vitrail.studies.grid import (
    alike,
    candidates,
    check_size,
    check_words,
    fixed_settings,
    mean_of,
    validated,
)
from vitrail.studies.statistics import Mean, pareto

STRIDES, RATIOS = (1, 2), (2.0, 4.0)
SAMPLES = 16
DRAWS = 12  # architectures, of which the nearest to the compute wanted is a sample
TRIES = 200  # times so many a sample, before there are fewer samples than asked for
SEEN, MOST_SEEN = 5, 100_000  # pictures that a candidate sees: so often each, up to so many
FEWEST = 10  # architectures, to say what a choice is worth


def define(ask: Ask) -> Definition:
    """The runs of a search: the same for equal words, so that a killed one goes on.

    Raises:
        Error: another family than CvT, more than one model, or a limit below the whole space.
    """
    check_words(ask, "search")
    base = _base(ask)
    config = _config(base, ask)
    found = sample(
        config, SAMPLES if ask.samples is None else ask.samples, ask.limit, ask.first_seed
    )
    images, macs = ask.sizes[0] if ask.sizes and ask.sizes[0] else None, Compute(config)
    seen = min(MOST_SEEN, SEEN * (images or ask.train_images))
    points = tuple(
        Point(
            id=f"{safe_id(name)}-seed{seed}",
            line=name,
            model=base.model,
            config={**base.config, **choice},
            recipe=ask.recipe or "scratch",
            settings={**fixed_settings(ask), **base.settings},
            images=images,
            image_size=ask.image_size,
            duration=(ask.durations or (f"{seen} examples",))[0],
            seed=seed,
            axes={"macs": macs(choice)},
        )
        for name, choice in found.items()
        for seed in ask.all_seeds
    )
    return Definition(
        kind="search", points=points, facts={"limit": ask.limit, "depths": config.depths}
    )


def _base(ask: Ask) -> Candidate:
    side = ask.image_size or ask.side or 224
    found = candidates(ask, (small_cvt(side),))
    if len(found) > 1:
        raise Error("search takes one model, whose blocks it varies")
    if found[0].family != "cvt":
        raise Error(
            f"search varies the blocks of a CvT, and {found[0].model} is of {found[0].family}"
        )
    if len(ask.sizes) > 1 or len(ask.durations) > 1:
        raise Error("search trains every candidate alike: give one of --sizes and of --durations")
    check_size(ask)
    return found[0]


def _config(base: Candidate, ask: Ask) -> CvTConfig:
    fields = {**resolve(base.model)[1].config, **base.config, "num_classes": ask.classes or 1000}
    if ask.image_size is not None:
        fields["image_size"] = ask.image_size
    return checked_config(CvTConfig, fields)


Choice = Mapping[str, Any]  # kv_strides and mlp_ratios, one for every block


def sample(config: CvTConfig, count: int, limit: float | None, seed: int) -> dict[str, Choice]:
    """Architectures of the space by name, each once, none above a limit in multiply-adds.

    Args:
        config: the model whose blocks are varied.
        count: how many are drawn, beside the named ones; fewer, where the space holds no more.
        limit: None for none.
        seed: equal arguments give equal architectures.

    Raises:
        Error: a limit below the cheapest architecture of the space, or fewer than one sample.
    """
    if count < 1:
        raise Error(f"search takes at least one sample, not {count}")
    cheapest, macs = _uniform(config, 2, 2.0), Compute(config)
    least = macs(cheapest)
    if limit is not None and limit < least:
        raise Error(
            f"--max-macs {limit:,.0f} is below the cheapest architecture of the space, which takes "
            f"{least:,}"
        )

    def allowed(choice: Choice) -> bool:
        return limit is None or macs(choice) <= limit

    named = {
        "stride 2, ratio 2": cheapest,
        "stride 2, ratio 4 (CvT-13)": _uniform(config, 2, 4.0),
        "stride 1, ratio 4": _uniform(config, 1, 4.0),
        "the paper's sentence": _sentence(config),
    }
    found: dict[str, Choice] = {}
    taken: set[str] = set()
    for name, choice in named.items():
        if repr(choice) not in taken and allowed(choice):
            found[name] = choice
            taken.add(repr(choice))
    draws = random.Random(seed)
    most = macs(_uniform(config, 1, 4.0))
    top = most if limit is None else min(most, limit)
    whole, drawn = 4 ** sum(config.depths), 0
    for _ in range(TRIES * count):
        if drawn == count or len(taken) == whole:
            break
        target = draws.uniform(least, top)
        lean = (target - least) / (most - least)
        near = [_draw(config, draws, lean) for _ in range(DRAWS)]
        near = [choice for choice in near if repr(choice) not in taken and allowed(choice)]
        if near:
            drawn += 1
            choice = min(near, key=lambda one: abs(macs(one) - target))
            found[f"sample {drawn:03d}"] = choice
            taken.add(repr(choice))
    return found


def _draw(config: CvTConfig, draws: random.Random, lean: float) -> Choice:
    """Every block's options by chance: the costlier ones about as often as ``lean`` says."""
    leans = [min(1.0, 2 * lean * draws.random()) for _ in range(2)]

    def each(cheap: float, costly: float, often: float) -> tuple[tuple[Any, ...], ...]:
        return tuple(
            tuple(costly if draws.random() < often else cheap for _ in range(depth))
            for depth in config.depths
        )

    return {"kv_strides": each(2, 1, leans[0]), "mlp_ratios": each(2.0, 4.0, leans[1])}


def _uniform(config: CvTConfig, stride: int, ratio: float) -> Choice:
    return {
        "kv_strides": tuple((stride,) * depth for depth in config.depths),
        "mlp_ratios": tuple((ratio,) * depth for depth in config.depths),
    }


def _sentence(config: CvTConfig) -> Choice:
    """Stride and ratio 2 in the first and last stages, stride 1 and ratio 4 between them."""
    last = len(config.depths) - 1
    ends = [stage in (0, last) for stage in range(last + 1)]
    return {
        "kv_strides": tuple(
            (2 if end else 1,) * depth for end, depth in zip(ends, config.depths, strict=True)
        ),
        "mlp_ratios": tuple(
            (2.0 if end else 4.0,) * depth for end, depth in zip(ends, config.depths, strict=True)
        ),
    }


class Compute:
    """The multiply-adds of an architecture: what a block's choice adds hangs on no other block.

    So they are counted once for every block and pair of options, and then summed.
    """

    def __init__(self, config: CvTConfig):
        least = _uniform(config, 2, 2.0)
        self.least = _macs(config, least)
        self.more: dict[tuple[int, int, int, float], int] = {}
        for stage, depth in enumerate(config.depths):
            for block, stride, ratio in product(range(depth), STRIDES, RATIOS):
                one = {
                    "kv_strides": _replaced(least["kv_strides"], stage, block, stride),
                    "mlp_ratios": _replaced(least["mlp_ratios"], stage, block, ratio),
                }
                self.more[stage, block, stride, ratio] = _macs(config, one) - self.least

    def __call__(self, choice: Choice) -> int:
        """Of one architecture."""
        return self.least + sum(
            self.more[stage, block, stride, ratio]
            for stage, (strides, ratios) in enumerate(
                zip(choice["kv_strides"], choice["mlp_ratios"], strict=True)
            )
            for block, (stride, ratio) in enumerate(zip(strides, ratios, strict=True))
        )


def _replaced(values: Any, stage: int, block: int, value: float) -> Any:
    rows = [list(row) for row in values]
    rows[stage][block] = value
    return tuple(map(tuple, rows))


def _macs(config: CvTConfig, choice: Choice) -> int:
    chosen: Any = replace(config, **choice)
    return cost(chosen).macs


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
    measure = validated(records)
    names = [name for name, found in runs.items() if mean_of(found, measure) is not None]
    if not names:
        return Shown(["No candidate has been trained yet."])
    macs = [runs[name][0]["config"]["axes"]["macs"] / 1e6 for name in names]
    on_val = [_known(runs[name], measure, intervals) for name in names]
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
        _answer(names, macs, on_val, front, len(names), definition),
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
    on_val: Sequence[Mean],
    front: Sequence[int],
    count: int,
    definition: Definition,
) -> list[str]:
    best = front[-1]
    limit = definition.facts["limit"]
    under = "" if limit is None else f" under {limit / 1e6:,.4g} million multiply-adds"
    said = [
        f"Of {count} architectures{under} {len(front)} are on the front. The best, {names[best]}, "
        f"has {on_val[best].words()} % on validation pictures at {macs[best]:,.4g} million "
        "multiply-adds."
    ]
    whole = next((i for i, name in enumerate(names) if "CvT-13" in name), None)
    if whole is not None and best != whole:
        gap = 100 * (on_val[best].mean - on_val[whole].mean)
        said.append(
            f"Against CvT-13's own choice that is {gap:+.2f} points at "
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


KIND = Kind("search", "Architectures under a limit of multiply-adds", define, show)
