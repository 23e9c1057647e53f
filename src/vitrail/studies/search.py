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
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from typing import Any

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
    Kind,
    Point,
)
from vitrail.studies.folder import safe_id
from vitrail.studies.grid import (
    candidates,
    check_size,
    check_validation,
    check_words,
    fixed_settings,
)
from vitrail.studies.search_page import show
from vitrail.studies.sides import side_for

STRIDES, RATIOS = (1, 2), (2.0, 4.0)
SAMPLES = 16
DRAWS = 12  # architectures, of which the nearest to the compute wanted is a sample
TRIES = 200  # times so many a sample, before there are fewer samples than asked for
SEEN, MOST_SEEN = 5, 100_000  # pictures that a candidate sees: so often each, up to so many


def define(ask: Ask) -> Definition:
    """The runs of a search: the same for equal words, so that a killed one goes on.

    Raises:
        Error: another family than CvT, more than one model, a limit below the whole space, or no
            pictures to choose by.
    """
    check_words(ask, "search")
    check_validation(ask, "search")
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
            image_size=side_for(base, ask),
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
    size = side_for(base, ask)
    if size is not None:
        fields["image_size"] = size
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
    if limit is not None and not limit >= least:  # nor is what is no number
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


KIND = Kind("search", "Architectures under a limit of multiply-adds", define, show)
