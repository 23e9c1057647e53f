"""The parts of a recipe: durations, optimiser, schedule, target, teacher, masks, what is trained.

Frozen plain data that checks itself; `recipe` puts them together, and its functions change them.
Rates and durations stand here in the units in which papers state them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitrail.kit.errors import Error, did_you_mean
from vitrail.models.base import Size

UNITS = ("steps", "epochs", "examples", "percent")
OPTIMIZERS = ("adamw", "sgd", "lamb", "adafactor")
CURVES = ("cosine", "linear", "constant", "rsqrt", "staircase")


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise an Error unless ``value`` is a finite number from ``low`` to ``high``."""
    if not isinstance(value, int | float) or not low <= value <= high or math.isinf(value):
        span = f"at least {low:g}" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise Error(f"{name} is a number {span}, not {value!r}")


def check_one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise an Error that names the nearest word unless ``value`` is among those allowed."""
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
        return f"{self.value:.12g} {self.unit}"


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimiser and what shapes its steps.

    Args:
        name: ``adamw``, ``sgd``, ``lamb`` or ``adafactor`` (torch's: `lr` is the largest relative
            step, which is multiplied by the size of each tensor's weights).
        lr: the peak learning rate.
        weight_decay: on weight matrices only: not on biases, norms, tokens and position tables.
        decay: what ``weight_decay`` is multiplied by. ``torch``: by the learning rate, as torch,
            timm and the papers' tables have it; for SGD it is then the classic penalty on the
            gradient, and for LAMB a part of the update that the trust ratio scales.
            ``independent``: by the schedule's share of its peak alone (big_vision), for every
            optimiser; 1e-4 there is 0.1 at a rate of 1e-3 here.
        betas: of AdamW and LAMB; momentum: SGD's.
        eps: of AdamW and LAMB; None for 1e-8 and 1e-6.
        layer_decay: the rate is multiplied by this for each step away from the head; 1 for none.
        clip_norm: the largest global norm of the gradient; None for no clipping.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    decay: str = "torch"
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    eps: float | None = None
    layer_decay: float = 1.0
    clip_norm: float | None = 1.0

    def __post_init__(self):
        check_one_of("optim.name", self.name, OPTIMIZERS)
        check_range("optim.lr", self.lr, 0, math.inf)
        check_range("optim.weight_decay", self.weight_decay, 0, math.inf)
        check_one_of("optim.decay", self.decay, ("torch", "independent"))
        check_range("optim.momentum", self.momentum, 0, 1)
        check_range("optim.layer_decay", self.layer_decay, 0, 1)
        if len(self.betas) != 2:
            raise Error(f"optim.betas are two numbers, not {self.betas!r}")
        for beta in self.betas:
            check_range("optim.betas", beta, 0, 1)
        if self.eps is not None and not self.eps > 0:
            raise Error(f"optim.eps is above 0, or none, not {self.eps}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise Error(f"optim.clip_norm is above 0, or none, not {self.clip_norm}")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate goes: a linear warm-up, then a curve.

    Args:
        kind: ``cosine`` or ``linear`` down to the floor; ``constant``; ``rsqrt``, the reciprocal
            square root of the steps; ``staircase``, a tenth of the rate after each stair (BiT).
        warmup: length of the warm-up.
        start: the rate that the warm-up begins from.
        floor: the rate that ``cosine`` and ``linear`` end at.
        cooldown: the last part of the run. ``rsqrt`` goes down linearly to 0 in it (ViT-G); the
            others stay at the floor (timm's cooldown epochs).
        over: the curve runs over the ``rest`` after the warm-up (Google), or over the ``whole``
            run, of which the warm-up hides the beginning (timm: DeiT, CvT, T2T-ViT, PVT).
        timescale: of ``rsqrt``: after so much more than the warm-up the rate is down by the root
            of two.
        stairs: of ``staircase``: where they lie, in percent of the run.
    """

    kind: str = "cosine"
    warmup: Duration = Duration(5, "percent")
    start: float = 0.0
    floor: float = 0.0
    cooldown: Duration = Duration(0, "steps")
    over: str = "rest"
    timescale: Duration = Duration(10_000, "steps")
    stairs: tuple[float, ...] = (30, 60, 90)

    def __post_init__(self):
        check_one_of("schedule.kind", self.kind, CURVES)
        check_one_of("schedule.over", self.over, ("rest", "whole"))
        for name in ("warmup", "cooldown"):
            length = getattr(self, name)
            if length.unit == "percent":
                check_range(f"schedule.{name} in percent", length.value, 0, 100)
        for name in ("start", "floor"):
            check_range(f"schedule.{name}", getattr(self, name), 0, math.inf)
        for stair in self.stairs:
            check_range("schedule.stairs", stair, 0, 100)


@dataclass(frozen=True, kw_only=True)
class Target:
    """What the model is taught by labels.

    Args:
        loss: ``softmax``; ``sigmoid``, a yes or no for each class, summed over the classes
            (big_vision; what multi-label data need); or ``bce``, its mean over the classes against
            1 for every class that is in the picture at all, however little (DeiT-III).
        label_smoothing: the share of probability spread evenly over all classes.
        mixup, cutmix: the parameter of the Beta distribution; 0 for none. Where both are given
            each batch gets one of the two.
        mixup_prob: the probability that a batch is mixed at all, by either.
        cutmix_share: the probability of CutMix, where both are given (timm's ``switch_prob``).
        class_weights: ``none``, or ``balanced``: each class weighs by the reciprocal of its number
            of training images.
        head_bias: what the bias of a fresh head begins at, in every class; a sigmoid loss wants
            about minus the logarithm of the number of classes (AugReg: -6.9).
    """

    loss: str = "softmax"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mixup_prob: float = 1.0
    cutmix_share: float = 0.5
    class_weights: str = "none"
    head_bias: float = 0.0

    def __post_init__(self):
        check_one_of("target.loss", self.loss, ("softmax", "sigmoid", "bce"))
        for name in ("label_smoothing", "mixup_prob", "cutmix_share"):
            check_range(f"target.{name}", getattr(self, name), 0, 1)
        if self.loss == "bce" and self.label_smoothing:
            raise Error(
                "target.loss bce takes every class with any probability for present, and label "
                "smoothing gives one to all: set target.label_smoothing to 0"
            )
        check_one_of("target.class_weights", self.class_weights, ("none", "balanced"))
        check_range("target.head_bias", self.head_bias, -100, 100)
        for name in ("mixup", "cutmix"):
            check_range(f"target.{name}", getattr(self, name), 0, math.inf)


@dataclass(frozen=True, kw_only=True)
class Distill:
    """How a model learns from a teacher (DeiT).

    Args:
        kind: ``none``, ``hard`` (the teacher's answer is a label) or ``soft`` (its probabilities).
        share: the teacher's part of the loss; the labels have the rest.
        temperature: of ``soft``.
    """

    kind: str = "none"
    share: float = 0.5
    temperature: float = 3.0

    def __post_init__(self):
        check_one_of("distill.kind", self.kind, ("none", "hard", "soft"))
        check_range("distill.share", self.share, 0, 1)
        if not self.temperature > 0:
            raise Error(f"distill.temperature is above 0, not {self.temperature}")


@dataclass(frozen=True, kw_only=True)
class Masked:
    """Learning without labels: what is hidden and what is to be found out about it.

    Args:
        kind: ``none``; ``patch``, the ViT paper's masked patch prediction (appendix B.1.2); or
            ``mae``, the masked autoencoder.
        share: of the patches that are corrupted (``patch``) or taken away (``mae``).
        predict: of ``patch``: ``color``, the mean colour of 3 bits a channel (512 classes);
            ``color4x4``, the same of each cell of a 4x4 grid; ``pixels``, all of them, by L2.
        normalize_pixels: of ``mae``: whether each patch is to be found normalised by its own mean
            and deviation.
        decoder_width, decoder_depth, decoder_heads: of ``mae``.
    """

    kind: str = "none"
    share: float = 0.5
    predict: str = "color"
    normalize_pixels: bool = True
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16

    def __post_init__(self):
        check_one_of("masked.kind", self.kind, ("none", "patch", "mae"))
        check_one_of("masked.predict", self.predict, ("color", "color4x4", "pixels"))
        if not 0 < self.share < 1:
            raise Error(f"masked.share lies between 0 and 1, not at {self.share}")
        for name in ("decoder_width", "decoder_depth", "decoder_heads"):
            check_range(f"masked.{name}", getattr(self, name), 1, math.inf)
        if self.decoder_width % self.decoder_heads or self.decoder_width % 4:
            raise Error(
                "masked.decoder_width must be a multiple of decoder_heads and of 4, not "
                f"{self.decoder_width} for {self.decoder_heads} heads"
            )


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Which weights of the model are trained.

    Args:
        part: ``all``; ``head``, the rest frozen and in evaluation mode (its dropout and the
            statistics of its batch norms too); ``head_then_all``, first the head, then everything;
            or ``lora``, low-rank additions to the frozen matrices of every block, and the head.
        head_for: how long ``head_then_all`` trains the head alone.
        head_lr: the peak learning rate of that time, which is a run of its own as to the schedule.
        rank, alpha: of LoRA: an addition has this rank and is multiplied by alpha / rank.
        lora_mlp: whether the MLPs have additions too, besides attention.
    """

    part: str = "all"
    head_for: Duration = Duration(25, "percent")
    head_lr: float = 1e-3
    rank: int = 8
    alpha: float = 16.0
    lora_mlp: bool = False

    def __post_init__(self):
        check_one_of("tuning.part", self.part, ("all", "head", "head_then_all", "lora"))
        check_range("tuning.head_lr", self.head_lr, 0, math.inf)
        check_range("tuning.rank", self.rank, 1, math.inf)
        check_range("tuning.alpha", self.alpha, 0, math.inf)
        if self.head_for.unit == "percent":
            check_range("tuning.head_for in percent", self.head_for.value, 0, 100)


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
