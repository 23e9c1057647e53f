"""The ledger: what a run cost, in units that can be compared with the papers'.

Arithmetic is counted from the model's layers, never timed: two operations a multiply-add, and a
layer that is trained costs three passes, one forward and two backward (the gradient of its input
and that of its weights). The ViT paper's Table 6 is reproduced by this rule: L/16 for 14 epochs of
JFT-300M gives 1,567 exaFLOPs. Where weights are frozen, what has no gradient is not counted: with
the head alone trained a step costs a forward pass and hardly more.

A TPUv3-core-day is what the paper's L/16 made of one: 1,567 exaFLOPs (Table 6) in 680 core-days
(Table 2), 2.30 exaFLOPs a core-day, or 26.7 TFLOP/s sustained. A core's peak is 61.5 TFLOP/s (half
of a chip's 123), so that is a utilisation of 43 %. The paper's own runs differ by a third: H/14
made 1.70 exaFLOPs of a core-day.
"""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from vitrail.kit.peak import matmul_peak
from vitrail.models.base import ImageClassifier
from vitrail.models.cost import cost
from vitrail.training.tuning import enter

if TYPE_CHECKING:
    from vitrail.training.engine import Engine
    from vitrail.training.objectives import Learner

FLOPS_PER_MAC = 2
TRAINING_PASSES = 3  # one forward; the backward pass costs two
EXAFLOPS_PER_CORE_DAY = 1567 / 680


@dataclass(frozen=True)
class Ledger:
    """What one run has cost so far.

    Args:
        device: in words.
        macs_per_image: of one forward pass.
        images: seen in training, again and again counted.
        seconds: of training, evaluation and saving included, over all restarts.
        passes: what an image costs in training, in forward passes: 3 where everything is trained;
            the mean over the run, where first the head alone is.
        teacher_macs: of one forward pass of a teacher, which looks at every image once.
        devices: how many worked at it.
        training_rate: images a second while training: the median of the steps; None if unknown.
        matmul_peak: operations a second of one device's best matrix product in the run's
            precision, measured; None if it was not.
    """

    device: str
    macs_per_image: int
    images: int = 0
    seconds: float = 0.0
    passes: float = TRAINING_PASSES
    teacher_macs: int = 0
    devices: int = 1
    training_rate: float | None = None
    matmul_peak: float | None = None

    @property
    def flops_per_image(self) -> float:
        """Operations of one image in training, forward and backward, and the teacher's."""
        return FLOPS_PER_MAC * (self.passes * self.macs_per_image + self.teacher_macs)

    @property
    def flops(self) -> int:
        """Operations of all training steps, forward and backward."""
        return round(self.flops_per_image * self.images)

    @property
    def mfu(self) -> float | None:
        """The share of the devices' best matrix product that training made use of."""
        if not self.training_rate or not self.matmul_peak:
            return None
        return self.training_rate * self.flops_per_image / (self.devices * self.matmul_peak)

    def to_json(self) -> dict[str, Any]:
        """Fields and derived figures, for the model folder and the report."""
        exaflops = self.flops / 1e18
        return {
            **asdict(self),
            "flops": self.flops,
            "exaflops": exaflops,
            "tpuv3_core_days": exaflops / EXAFLOPS_PER_CORE_DAY,
            "device_hours": self.seconds * self.devices / 3600,
            "images_per_second": self.images / self.seconds if self.seconds else None,
            "mfu": self.mfu,
        }


def account(
    learner: "Learner",
    engine: "Engine",
    *,
    images: int,
    seconds: float,
    records: Iterable[Mapping[str, Any]] = (),
    head_share: float = 0.0,
) -> Ledger:
    """The ledger of a run at its end.

    Args:
        learner: its model, with what is frozen still frozen. An objective that runs the model on
            less than the whole picture says what an image costs by a method ``macs(model)``, one
            with a teacher says that one's by ``teacher_macs``.
        engine: where it ran; its matrix product is measured now, in a fifth of a second.
        images, seconds: seen and spent, over all restarts.
        records: the run's, of which the steps say how fast they were.
        head_share: of the steps, those that trained the head alone (`tuning.enter`).
    """
    model, counted = learner.model, getattr(learner.objective, "macs", None)
    rates = [
        record["images_per_second"]
        for record in records
        if record.get("kind") == "step" and record.get("images_per_second")
    ]
    return Ledger(
        device=engine.name,
        macs_per_image=cost(model).macs if counted is None else counted(model),
        images=images,
        seconds=seconds,
        passes=_mean_passes(model, head_share),
        teacher_macs=getattr(learner.objective, "teacher_macs", 0),
        devices=getattr(engine, "world", 1),
        training_rate=statistics.median(rates) if rates else None,
        matmul_peak=matmul_peak(str(engine.device), engine.precision, torch.get_num_threads()),
    )


def _mean_passes(model: ImageClassifier, head_share: float) -> float:
    """`passes_of`, over the phases of a run whose last step the model is at."""
    if not head_share:
        return passes_of(model)
    head_alone = bool(model.held)
    enter(model, step=0, head_steps=1)
    first = passes_of(model)
    enter(model, step=1, head_steps=1)
    rest = passes_of(model)
    enter(model, step=0 if head_alone else 1, head_steps=1)
    return head_share * first + (1 - head_share) * rest


def passes_of(model: ImageClassifier) -> float:
    """What a training step costs in forward passes, by what is frozen: 3 where nothing is.

    A layer's input needs a gradient where anything before it is trained; its weights, where they
    are, in proportion to how many of them are (narrow additions to a frozen matrix cost as much
    less as they are smaller). A first layer that is trained counts the gradient of the picture,
    which nobody computes, so that a model that is trained whole comes to the papers' factor of 3.
    """
    layers = cost(model).layers
    trained: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for owner in (name, name.rpartition(".")[0]):  # a layer is named by either
                trained[owner] = trained.get(owner, 0) + parameter.numel()
    total = sum(layer.macs for layer in layers)
    needed = next(layer.name for layer in layers if layer.macs) in trained
    spent = float(total)
    for layer in layers:
        numbers = trained.get(layer.name, 0)
        if layer.parameters:
            spent += layer.macs * (needed + min(1.0, numbers / layer.parameters))
        else:  # a product of two activations: both have gradients, or neither
            spent += 2 * layer.macs * needed
        needed = needed or numbers > 0
    return spent / total if total else float(TRAINING_PASSES)
