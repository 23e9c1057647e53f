"""A recipe: everything that decides what a training run computes, as frozen plain data.

Two runs with equal recipes on equal data give equal weights; whatever cannot change the result
(workers, how often to save, where to print) is not in here. `recipes/` holds the functions that
return recipes; `with_settings` changes single fields by their dotted names.
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
from vitrail.models.base import Size

MOST_IMAGES_A_STEP = 1_000_000
UNITS = ("steps", "epochs", "examples", "percent")


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not isinstance(value, int | float) or not low <= value <= high or math.isinf(value):
        span = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise Error(f"{name} is a number {span}, not {value!r}")


def _check_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        near = did_you_mean(value, allowed) or f"; it is one of {', '.join(allowed)}"
        raise Error(f"{name} cannot be {value!r}{near}")


@dataclass(frozen=True)
class Duration:
    """A length of training in the unit that its paper uses.

    Args:
        value: how many; at least 0.
        unit: ``steps``, ``epochs``, ``examples`` or ``percent`` of the whole run.
    """

    value: float
    unit: str = "steps"

    def __post_init__(self):
        if self.unit not in UNITS:
            raise Error(
                f"unknown unit {self.unit!r} of a duration; it is one of {', '.join(UNITS)}"
            )
        if not 0 <= self.value < math.inf:
            raise Error(f"a duration cannot be {self.value} {self.unit}")

    def steps(self, examples: int, batch_size: int, total: int | None = None) -> int:
        """This duration in steps.

        Args:
            examples: of one epoch.
            batch_size: the global one.
            total: steps of the whole run, which ``percent`` is of.

        Raises:
            Error: percent of an unknown whole.
        """
        if self.unit == "percent":
            if total is None:
                raise Error("the length of a run cannot be a percentage of itself")
            return round(self.value / 100 * total)
        factor = {"steps": batch_size, "epochs": examples, "examples": 1}[self.unit]
        return round(self.value * factor / batch_size)

    def __str__(self) -> str:
        return f"{self.value:g} {self.unit}"


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimiser and what shapes its steps.

    Args:
        name: ``adamw`` or ``sgd``.
        lr: the peak learning rate.
        weight_decay: decoupled, torch's convention (multiplied by the learning rate); on weight
            matrices only: not on biases, norms, tokens and position tables. For SGD it is the
            classic penalty on the gradient.
        betas: AdamW's; momentum: SGD's.
        layer_decay: the rate is multiplied by this for each step away from the head; 1 for none.
        clip_norm: the largest global norm of the gradient; None for no clipping.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    layer_decay: float = 1.0
    clip_norm: float | None = 1.0

    def __post_init__(self):
        _check_one_of("optim.name", self.name, ("adamw", "sgd"))
        _check_range("optim.lr", self.lr, 0, math.inf)
        _check_range("optim.weight_decay", self.weight_decay, 0, math.inf)
        _check_range("optim.momentum", self.momentum, 0, 1)
        _check_range("optim.layer_decay", self.layer_decay, 0, 1)
        if len(self.betas) != 2:
            raise Error(f"optim.betas are two numbers, not {self.betas!r}")
        for beta in self.betas:
            _check_range("optim.betas", beta, 0, 1)
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise Error(f"optim.clip_norm is above 0, or none, not {self.clip_norm}")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate goes: a linear warm-up from 0, then this curve down to 0.

    Args:
        kind: ``cosine``, ``linear`` or ``constant``.
        warmup: length of the warm-up.
    """

    kind: str = "cosine"
    warmup: Duration = Duration(5, "percent")

    def __post_init__(self):
        _check_one_of("schedule.kind", self.kind, ("cosine", "linear", "constant"))
        if self.warmup.unit == "percent":
            _check_range("schedule.warmup in percent", self.warmup.value, 0, 100)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the model is taught.

    Args:
        label_smoothing: the share of probability spread evenly over all classes.
        mixup, cutmix: the parameter of the Beta distribution; 0 for none. Where both are given
            each batch gets one of the two, by the toss of a fair coin.
    """

    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self):
        _check_range("target.label_smoothing", self.label_smoothing, 0, 1)
        for name in ("mixup", "cutmix"):
            _check_range(f"target.{name}", getattr(self, name), 0, math.inf)


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which model.

    Args:
        name: a name of the zoo; with ``family``, only what to call it.
        family: where the whole config is given, of which family it is; else None.
        image_size: pixels, or (height, width); None for the name's own.
        config: fields of the family's config that differ from the name's.
    """

    name: str = "vit_tiny_patch16_224"
    family: str | None = None
    image_size: Size | None = None
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training run's whole definition but the data.

    Args:
        name: of the function that made it.
        duration: length of the run.
        batch_size: examples a step, over all devices.
        seed: of weights, order, augmentation and dropout.
        ema: decay of the average of the weights that is evaluated and saved; None for no average.
        eval_every: how often to look at the validation set.
        patience: stop after this many looks without a better one; None to go to the end.
        bad_step: what to do with a step whose loss or gradient is not finite, which is never
            applied: ``skip`` it, ``rollback`` to the last checkpoint and pass over the batches
            since, or ``stop``.
        most_bad_steps: after so many skips in a row, or so many rollbacks, the run stops.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``fp64``.
        normalize: where the mean and deviation of pixels come from: ``model`` keeps those that the
            model (or its weights) came with, ``data`` measures them on the training images.
        compile: whether the model runs through `torch.compile`.
        weights: where the weights came from, for the record; None for random ones.
    """

    name: str = "scratch"
    model: Model = Model()
    optim: Optim = Optim()
    schedule: Schedule = Schedule()
    target: Target = Target()
    augment: Augment = field(default_factory=Augment)
    duration: Duration = Duration(30, "epochs")
    batch_size: int = 64
    seed: int = 0
    ema: float | None = 0.9999
    eval_every: Duration = Duration(1, "epochs")
    patience: int | None = None
    bad_step: str = "skip"
    most_bad_steps: int = 10
    precision: str = "fp32"
    normalize: str = "model"
    compile: bool = False
    weights: str | None = None

    def __post_init__(self):
        _check_one_of("bad_step", self.bad_step, ("skip", "rollback", "stop"))
        _check_range("most_bad_steps", self.most_bad_steps, 1, math.inf)
        _check_one_of("normalize", self.normalize, ("model", "data"))
        _check_one_of("precision", self.precision, ("fp32", "bf16", "fp16", "fp64"))
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
    value = _plain(value)
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
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
