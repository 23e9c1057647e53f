"""A recipe: everything that decides what a training run computes, as frozen plain data.

Two runs with equal recipes on equal data give equal weights; whatever cannot change the result
(workers, how often to save, where to print) is not in here. `recipes/` holds the functions that
return recipes, `choices` the parts of one; `with_settings` changes single fields by dotted names.
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitrail.data.transforms import Augment
from vitrail.kit.errors import Error, did_you_mean
from vitrail.kit.preprocess import FITS
from vitrail.training.choices import (
    Distill,
    Duration,
    Masked,
    Model,
    Optim,
    Schedule,
    Target,
    Tuning,
    check_one_of,
    check_range,
)

__all__ = [
    "Distill",
    "Duration",
    "Masked",
    "Model",
    "Optim",
    "Recipe",
    "Schedule",
    "Target",
    "Tuning",
    "with_settings",
]

MOST_IMAGES_A_STEP = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run's whole definition but the data.

    Args:
        name: of the function that made it.
        variant: which of that function's settings: a data set, a level of augmentation, a stage.
        tuning: which weights are trained.
        distill: what is learned from a teacher.
        masked: what is learned without labels, in place of `target`.
        duration: length of the run.
        batch_size: examples a step, over all devices.
        seed: of weights, order, augmentation and dropout.
        ema: decay of the average of the weights that is evaluated and saved; None for no average.
        ema_warmup: whether that decay grows from nothing to what `ema` says; False is Polyak
            averaging with one decay from the first step on (ViT paper: 0.9999).
        sampling: ``uniform``, every image once an epoch; ``balanced``, every class alike;
            ``nearby``, images that lie together in a large file come close to each other.
        repeats: how often an image comes in the batches of an epoch, each time augmented anew
            (repeated augmentation: DeiT 3), for as many fewer images.
        rates: learning rates to choose from on the held-out share; empty for `optim.lr` as it is.
        held_out: the share of train that they are compared on, where the data have no validation
            set of their own; None for the usual tenth.
        eval_every: how often to look at the validation set.
        patience: stop after this many looks without a better one; None to go to the end.
        bad_step: what to do with a step whose loss or gradient is not finite, which is never
            applied: ``skip`` it, ``rollback`` to the last checkpoint and pass over the batches
            since, or ``stop``.
        most_bad_steps: after so many skips in a row, or so many rollbacks, the run stops.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``fp64``.
        normalize: where the mean and deviation of pixels come from: ``model`` keeps those that the
            model (or its weights) came with, ``data`` measures them on the training images.
        fit: how a picture of another shape goes in, in training without an inception crop and ever
            after: ``crop``, ``squash`` or ``letterbox``, the whole picture in the last two (see
            `Preprocessing`); None keeps the model's way.
        compile: whether the model runs through `torch.compile`.
        checkpointing: whether blocks are computed again on the way back instead of keeping their
            insides: less memory for a third more arithmetic, and the same result bit for bit.
        weights: where the weights came from, for the record; None for random ones.
        teacher: where the teacher came from, for the record.
    """

    name: str = "scratch"
    variant: str = ""
    model: Model = field(default_factory=Model)
    optim: Optim = field(default_factory=Optim)
    schedule: Schedule = field(default_factory=Schedule)
    target: Target = field(default_factory=Target)
    distill: Distill = field(default_factory=Distill)
    masked: Masked = field(default_factory=Masked)
    tuning: Tuning = field(default_factory=Tuning)
    augment: Augment = field(default_factory=Augment)
    duration: Duration = field(default_factory=lambda: Duration(30, "epochs"))
    batch_size: int = 64
    seed: int = 0
    ema: float | None = 0.9999
    ema_warmup: bool = True
    sampling: str = "uniform"
    repeats: int = 1
    rates: tuple[float, ...] = ()
    held_out: float | None = None
    eval_every: Duration = field(default_factory=lambda: Duration(1, "epochs"))
    patience: int | None = None
    bad_step: str = "skip"
    most_bad_steps: int = 10
    precision: str = "fp32"
    normalize: str = "model"
    fit: str | None = None
    compile: bool = False
    checkpointing: bool = False
    weights: str | None = None
    teacher: str | None = None

    def __post_init__(self):
        check_one_of("bad_step", self.bad_step, ("skip", "rollback", "stop"))
        check_range("most_bad_steps", self.most_bad_steps, 1, math.inf)
        check_one_of("normalize", self.normalize, ("model", "data"))
        check_one_of("precision", self.precision, ("fp32", "bf16", "fp16", "fp64"))
        if self.fit is not None:
            check_one_of("fit", self.fit, FITS)
        if not 1 <= self.batch_size <= MOST_IMAGES_A_STEP:
            raise Error(
                f"batch_size must be at least 1 and at most {MOST_IMAGES_A_STEP:,}, "
                f"not {self.batch_size}"
            )
        if not 0 <= self.seed < 2**63:
            raise Error(f"seed is a whole number from 0 up to 2^63, not {self.seed}")
        if self.patience is not None and self.patience < 1:
            raise Error(f"patience must be at least 1, not {self.patience}")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise Error(f"ema is a decay from 0 up to 1, not {self.ema}")
        check_one_of("sampling", self.sampling, ("uniform", "balanced", "nearby"))
        if self.repeats < 1:
            raise Error(f"repeats must be at least 1, not {self.repeats}")
        if self.held_out is not None and not 0 < self.held_out < 1:
            raise Error(f"held_out is a share between 0 and 1, not {self.held_out}")
        if self.masked.kind != "none":
            self._check_masked()
        if self.distill.kind != "none" and self.target.loss == "bce":
            raise Error("distillation goes with target.loss softmax or sigmoid, not bce")

    def _check_masked(self) -> None:
        clashes = {
            "distill.kind": self.distill.kind != "none",
            "target.mixup": self.target.mixup > 0,
            "target.cutmix": self.target.cutmix > 0,
            "tuning.part": self.tuning.part != "all",
        }
        for name, clash in clashes.items():
            if clash:
                raise Error(f"a masked objective knows no labels, so {name} cannot be set")

    def replace(self, **changes: Any) -> "Recipe":
        """A copy with these fields changed."""
        return dataclasses.replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        """The recipe as plain JSON values; equal recipes give equal JSON."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def with_settings(recipe: Recipe, settings: Mapping[str, Any]) -> Recipe:
    """Change fields by dotted name: ``{"optim.lr": "0.03", "model.depth": 2}``.

    Names under ``model.`` that are not fields of `Model` go to the model's config. Values may be
    strings, as a command line gives them. Durations are written ``30 epochs`` or ``30epochs``.

    Raises:
        Error: an unknown field (the nearest is named) or a value of the wrong kind.
    """
    for name, value in settings.items():
        recipe = _set(recipe, name, name.split("."), value)
    return recipe


def _set(owner: Any, name: str, path: list[str], value: Any) -> Any:
    head, rest = path[0], path[1:]
    hints = typing.get_type_hints(type(owner))
    if isinstance(owner, Model) and (head not in hints or head == "config"):
        key = ".".join(rest if head == "config" else path)
        return dataclasses.replace(owner, config={**owner.config, key: _plain(value)})
    if head not in hints:
        near = did_you_mean(head, hints) or f"; there are {', '.join(hints)}"
        raise Error(f"unknown setting {name!r}{near}")
    if rest:
        inner = getattr(owner, head)
        if not dataclasses.is_dataclass(inner):
            raise Error(f"unknown setting {name!r}: {head} has no parts")
        return dataclasses.replace(owner, **{head: _set(inner, name, rest, value)})
    return dataclasses.replace(owner, **{head: _convert(name, hints[head], value)})


def _plain(value: Any) -> Any:
    """A command line's string as the number, truth value, null or list that it spells."""
    if not isinstance(value, str):
        return value
    spelled = {"none": "null", "true": "true", "false": "false"}.get(value.lower(), value)
    try:
        return json.loads(spelled)
    except ValueError:
        return value


def _convert(name: str, kind: Any, value: Any) -> Any:
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if kinds == (str,) and isinstance(value, str):
        return value  # also where the word is none
    value = _plain(value)
    for one in kinds:
        origin = typing.get_origin(one) or one
        if one is Duration:
            if isinstance(value, Duration):
                return value
            return _duration(name, value)
        if origin is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if origin is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        if origin is tuple and isinstance(value, list | tuple):
            return tuple(value)
        if isinstance(origin, type) and origin not in (int, float) and isinstance(value, origin):
            return value
    expected = " or ".join(getattr(one, "__name__", str(one)) for one in kinds)
    raise Error(f"{name} cannot be {value!r}: it takes {expected.replace('NoneType', 'none')}")


def _duration(name: str, value: Any) -> Duration:
    text = str(value).strip()
    number = text.rstrip("abcdefghijklmnopqrstuvwxyz% ")
    unit = {"": "steps", "%": "percent"}.get(
        text[len(number) :].strip(), text[len(number) :].strip()
    )
    try:
        return Duration(float(number), unit)
    except ValueError as error:
        if isinstance(error, Error):
            raise
        raise Error(f"{name} cannot be {value!r}: write it as 1000 steps or 30 epochs") from None
