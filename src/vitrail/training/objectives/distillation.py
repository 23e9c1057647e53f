"""Learning from labels and from a teacher (Touvron et al., DeiT, arXiv 2012.12877, section 4).

A distilled model answers with two heads: the class token's learns from the labels, the
distillation token's from the teacher. A model with one head learns from both with that one.
The teacher sees the very pictures that the student sees, cropped, mixed and all, brought to its
own size and normalised as it is used to.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from vitrail.evaluation.accuracy import align
from vitrail.kit.errors import Error
from vitrail.kit.preprocess import Preprocessing
from vitrail.models.base import ImageClassifier, height_width
from vitrail.models.cost import cost
from vitrail.models.tape import Tape
from vitrail.training.objectives.base import Example, Loss, Objective, full_precision
from vitrail.training.objectives.supervised import Supervised

HEADS = ("class_logits", "distillation_logits")


class Distillation(Objective):
    """(1 - share) of the supervised loss and ``share`` of the teacher's.

    Args:
        supervised: the labels' loss.
        student: the model that is trained.
        teacher: any model of these classes, in evaluation mode; never changed, and no part of the
            objective's state.
        kind: ``hard``: cross-entropy against the teacher's answer. ``soft``: the divergence of the
            two distributions at a temperature, times its square, averaged over the batch (the
            paper's formula; its code divides by the number of classes too).
        share: the teacher's part.
        temperature: of ``soft``.

    Raises:
        Error: the teacher does not know the student's classes.
    """

    def __init__(
        self,
        supervised: Supervised,
        student: ImageClassifier,
        teacher: ImageClassifier,
        kind: str = "hard",
        share: float = 0.5,
        temperature: float = 3.0,
    ):
        super().__init__()
        self.supervised = supervised
        self.kind, self.share, self.temperature = kind, share, temperature
        self.two_heads = bool(getattr(student.config, "distilled", False))
        self.preprocessing = student.preprocessing
        # In a tuple, so that it is neither trained nor saved nor counted.
        self._teacher = (teacher.eval().requires_grad_(False),)
        self.places = _places(student, teacher)

    def forward(self, model: Callable[..., Tensor], batch: Example) -> Loss:
        """Parts: ``accuracy`` of the class head, ``agreement`` of the other with the teacher."""
        if self.two_heads:
            tape = Tape(only=HEADS)
            model(batch.images, tape)
            by_label, by_teacher = (tape[name] for name in HEADS)
        else:
            by_label = by_teacher = model(batch.images)
        loss = self.supervised.compare(by_label, batch)
        answers = full_precision(by_teacher)
        wanted = self.ask(batch.images)
        if self.kind == "hard":
            taught = F.cross_entropy(answers, wanted.argmax(dim=-1))
        else:
            t = self.temperature
            taught = t**2 * F.kl_div(
                F.log_softmax(answers / t, dim=-1),
                F.log_softmax(wanted.to(answers.dtype) / t, dim=-1),
                reduction="batchmean",
                log_target=True,
            )
        agreement = (answers.detach().argmax(-1) == wanted.argmax(-1)).float().mean()
        value = (1 - self.share) * loss.value + self.share * taught
        return Loss(value, {**loss.parts, "agreement": agreement})

    @property
    def teacher_macs(self) -> int:
        """Multiply-adds of the teacher's look at one picture."""
        return cost(self._teacher[0]).macs

    @torch.no_grad()
    def ask(self, images: Tensor) -> Tensor:
        """The teacher's logits [b k], in the student's classes, for the student's pictures."""
        teacher = self._teacher[0]
        weight = next(teacher.parameters())
        if weight.device != images.device:
            teacher.to(images.device)
        pictures = renormalized(images, self.preprocessing, teacher.preprocessing)
        size = height_width(teacher.image_size)
        if pictures.shape[-2:] != size:
            pictures = F.interpolate(pictures, size, mode="bicubic", antialias=True)
        logits = full_precision(teacher(pictures.to(weight.dtype)))
        return logits[:, self.places.to(logits.device)]

    def describe(self) -> str:
        """How the teacher sees the pictures, in a sentence."""
        teacher = self._teacher[0]
        ours, theirs = self.preprocessing, teacher.preprocessing
        height, width = height_width(teacher.image_size)
        resized = f"scaled to {height}x{width}" if ours.size != (height, width) else "as they are"
        normalized = "its own mean and deviation"
        if (ours.mean, ours.std) == (theirs.mean, theirs.std):
            normalized = "the same mean and deviation"
        said = f"the teacher sees the student's pictures {resized}, with {normalized}"
        if not self.two_heads:
            said += "; the student has no distillation token, so its one head learns from both"
        return said


def renormalized(images: Tensor, before: Preprocessing, after: Preprocessing) -> Tensor:
    """Pictures [b c h w] normalised one way, normalised another."""
    if (before.mean, before.std) == (after.mean, after.std):
        return images

    def column(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, dtype=images.dtype, device=images.device)[:, None, None]

    pixels = images * column(before.std) + column(before.mean)
    return (pixels - column(after.mean)) / column(after.std)


def _places(student: ImageClassifier, teacher: ImageClassifier) -> Tensor:
    """Where each class of the student stands among the teacher's logits."""
    if student.labels and teacher.labels:
        return align(student.labels, teacher.labels)
    if student.num_classes != teacher.num_classes:
        raise Error(
            f"the teacher knows {teacher.num_classes} classes and the student learns "
            f"{student.num_classes}: give a teacher of these classes"
        )
    return torch.arange(student.num_classes)
