"""One command, several runs: the same with other seeds, or with every rate of a grid and then the
best.

Each run is an ordinary one in a folder of its own, so the same command again goes on with the one
that was interrupted and passes over those that are done.
"""

import json
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.kit.errors import Error
from vitrail.kit.files import write_text_whole
from vitrail.kit.records import Records
from vitrail.training.display import Display, duration
from vitrail.training.engine import first_process
from vitrail.training.finish import Run
from vitrail.training.recipe import Recipe

Train = Callable[..., Run]
SEEDS_FILE = "seeds.json"


@dataclass(frozen=True)
class Seeds(Run):
    """What several runs of one recipe left behind: a `Run` whose figures are means.

    Args:
        runs: by seed.
    """

    runs: Mapping[int, Run]

    @property
    def top1(self) -> float | None:
        """The mean accuracy, where there is one."""
        return _mean([run.top1 for run in self.runs.values()])

    @property
    def score(self) -> float | None:
        """The mean of what the runs are better by."""
        return _mean([run.score for run in self.runs.values()])

    @property
    def deviation(self) -> float | None:
        """The standard deviation of that over the seeds (of a sample), where there are two."""
        known = [run.score for run in self.runs.values() if run.score is not None]
        return statistics.stdev(known) if len(known) > 1 else None

    def to_json(self) -> dict[str, Any]:
        """Each run's JSON with its seed, and mean and deviation of the accuracy (of the mean
        average precision, where images have several labels).
        """
        name = "top1" if self.top1 is not None or self.score is None else "mean_average_precision"
        return {
            "seeds": [{"seed": seed, **run.to_json()} for seed, run in self.runs.items()],
            name: {"mean": self.score, "std": self.deviation},
        }

    def summary(self) -> str:
        """A few lines for a person."""
        name = "top-1" if self.top1 is not None else "mean average precision"
        lines = []
        for seed, run in self.runs.items():
            figure = "no accuracy" if run.score is None else f"{name} {100 * run.score:.2f} %"
            lines.append(f"seed {seed:<3} {figure}   {run.folder}")
        if self.score is not None:
            spread = "" if self.deviation is None else f" +- {100 * self.deviation:.2f}"
            lines.append(
                f"mean     {name} {100 * self.score:.2f}{spread} %   "
                f"({len(self.runs)} seeds, {duration(self.seconds)})"
            )
        return "\n".join(lines)


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def over_seeds(train: Train, given: Mapping[str, Any], display: Display) -> Run:
    """Run ``given["seeds"]`` times, with the seed and the ones after it, in ``OUT/seed-K``.

    Mean and deviation are left in ``OUT/seeds.json`` too.

    Args:
        train: runs once, with the words of ``given``.
        given: what the user said.
        display: for what a person sees.

    Raises:
        Error: the folder holds a run itself, or what ``train`` raises.
    """
    out, first = Path(given["out"]), given["seed"]
    if (out / "config.json").exists() or (out / "checkpoints").exists():
        raise Error(f"{out} holds a run of its own; several seeds need a folder without one")
    runs: dict[int, Run] = {}
    for seed in range(first, first + given["seeds"]):
        display.say(f"seed {seed} ({seed - first + 1} of {given['seeds']})")
        runs[seed] = train(**{**given, "seeds": 1, "seed": seed, "out": out / f"seed-{seed}"})
    together = Seeds(
        folder=out,
        steps=sum(run.steps for run in runs.values()),
        steps_this_run=sum(run.steps_this_run for run in runs.values()),
        metrics={},
        seconds=sum(run.seconds for run in runs.values()),
        report=next(iter(runs.values())).report,
        runs=runs,
    )
    if not given["dry_run"] and first_process():
        write_text_whole(out / SEEDS_FILE, json.dumps(together.to_json(), indent=1) + "\n")
    return together


def over_rates(
    train: Train, given: Mapping[str, Any], recipe: Recipe, own_val: bool, display: Display
) -> Run:
    """Try every rate of a recipe on held-out images, then train on all of train with the best.

    The trials are in ``OUT/rates/<rate>``. Of equals the lowest rate is taken. The choice stands in
    the final model folder's `config.json` as ``vitrail.chosen``.

    A rate at which the numbers are no longer finite is left out.

    Args:
        train, given, display: as for `over_seeds`.
        recipe: its ``rates`` and ``held_out``.
        own_val: whether the data have validation images of their own; then nothing is held out.

    Raises:
        Error: what ``train`` raises.
    """
    out = Path(given["out"])
    share = given["val_fraction"]
    if share is None and not own_val:
        share = recipe.held_out
    if share == 0 and not own_val:
        raise Error(
            "a rate is chosen on held-out images, and there are none: leave --val-fraction out, or "
            "give the --lr"
        )
    if given["dry_run"]:
        rates = ", ".join(f"{rate:g}" for rate in recipe.rates)
        display.say(f"rates: {rates}, each as below; then the best of them on all of train")
        return train(**{**given, "lr": recipe.rates[0], "val_fraction": share})
    tried: dict[float, float] = {}
    for number, rate in enumerate(recipe.rates, 1):
        display.say(f"rate {rate:g} ({number} of {len(recipe.rates)})")
        trial = {"lr": rate, "val_fraction": share, "out": out / "rates" / f"{rate:g}"}
        try:
            tried[rate] = _on_val(train(**{**given, **trial}))
        except Error as error:
            if not diverged(trial["out"]):
                raise
            display.say(f"rate {rate:g} is left out: {error}")
    if not tried:
        raise Error(f"every rate of the grid diverged, down to {min(recipe.rates):g}: try --lr")
    best = max(tried, key=lambda rate: (tried[rate], -rate))
    display.say(f"the best rate is {best:g}: validation score {100 * tried[best]:.2f} %")
    chosen = {
        "rate": best,
        "held_out": None if own_val else share,
        "top1_by_rate": {f"{rate:g}": top1 for rate, top1 in tried.items()},
    }
    final = {"lr": best, "val_fraction": 0.0, "record": {"chosen": chosen}}
    return train(**{**given, **final})


def _on_val(run: Run) -> float:
    """What a trial is better by, on the images that it did not learn."""
    figures = run.metrics["val"]
    score = figures.get("top1", figures.get("mean_average_precision"))
    return 0.0 if score is None else score


def diverged(folder: Path) -> bool:
    """Whether a run ended because its steps were not finite: its last record is one of those."""
    records = list(Records(folder / "metrics.jsonl").read())
    return bool(records) and records[-1]["kind"] == "skip"
