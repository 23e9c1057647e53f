import pytest
import torch
import torch.nn.functional as F

from tests.conftest import randomise
from vitrail.kit.errors import Error
from vitrail.models.tape import Tape
from vitrail.models.zoo import create_model
from vitrail.training.objectives import Distillation, Example, Supervised
from vitrail.training.objectives.distillation import renormalized


def models():
    student = create_model("deit_tiny_distilled_patch16_224", 3, 32, depth=1)
    teacher = create_model("vit_mu_patch16_48", 3, 48)
    randomise(student, 1)
    randomise(teacher, 2)
    teacher.preprocessing = teacher.preprocessing.replace(mean=(0.2, 0.3, 0.4), std=(0.1, 0.2, 0.3))
    student.set_labels(["a", "b", "c"])
    teacher.set_labels(["c", "a", "b"])
    return student, teacher


def batch() -> Example:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 32, 32, generator=generator) * 2 - 1
    return Example(images, torch.tensor([0, 1, 2, 0]))


def answers_of(student, teacher, images):
    """The heads of the student, and the teacher's logits in the student's order of classes."""
    tape = Tape()
    student(images, tape)
    ours = student.preprocessing
    mean, std = (torch.tensor(v)[:, None, None] for v in (ours.mean, ours.std))
    pixels = images * std + mean
    mean, std = (
        torch.tensor(v)[:, None, None]
        for v in (teacher.preprocessing.mean, teacher.preprocessing.std)
    )
    seen = F.interpolate((pixels - mean) / std, (48, 48), mode="bicubic", antialias=True)
    return tape["class_logits"], tape["distillation_logits"], teacher(seen)[:, [1, 2, 0]]


def test_hard_and_soft_distillation_are_the_papers_formulas():
    student, teacher = models()
    example = batch()
    by_label, by_teacher, wanted = answers_of(student, teacher, example.images)
    labels = F.cross_entropy(by_label, example.labels)
    hard = Distillation(Supervised(), student, teacher, "hard", share=0.3)
    expected = 0.7 * labels + 0.3 * F.cross_entropy(by_teacher, wanted.argmax(1))
    torch.testing.assert_close(hard(student, example).value, expected)
    soft = Distillation(Supervised(), student, teacher, "soft", share=0.3, temperature=2.0)
    log_ours, log_theirs = (by_teacher / 2).log_softmax(1), (wanted / 2).log_softmax(1)
    divergence = (log_theirs.exp() * (log_theirs - log_ours)).sum(1).mean()
    torch.testing.assert_close(soft(student, example).value, 0.7 * labels + 0.3 * 4 * divergence)
    assert "scaled to 48x48" in soft.describe()


def test_a_student_with_one_head_learns_from_both_with_it():
    student, teacher = create_model("vit_mu_patch16_32", 3), models()[1]
    randomise(student, 3)
    student.set_labels(["a", "b", "c"])
    example = batch()
    objective = Distillation(Supervised(), student, teacher, "hard")
    logits, wanted = student(example.images), objective.ask(example.images)
    expected = F.cross_entropy(logits, example.labels) + F.cross_entropy(logits, wanted.argmax(1))
    torch.testing.assert_close(objective(student, example).value, expected / 2)


def test_the_teacher_is_no_part_of_what_is_trained():
    student, teacher = models()
    objective = Distillation(Supervised(), student, teacher)
    assert not list(objective.parameters())
    assert not objective.state_dict()
    before = {name: p.clone() for name, p in teacher.state_dict().items()}
    objective(student, batch()).value.backward()
    assert all(torch.equal(before[name], p) for name, p in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert student.head_dist.weight.grad is not None


def test_a_teacher_of_other_classes_is_refused():
    student, teacher = models()
    teacher.set_labels(["a", "b", "d"])
    with pytest.raises(Error, match="does not know"):
        Distillation(Supervised(), student, teacher)
    teacher.labels = None
    student.labels = None
    Distillation(Supervised(), student, teacher)
    with pytest.raises(Error, match="knows 5 classes"):
        Distillation(Supervised(), student, create_model("vit_mu_patch16_32", 5))


def test_pictures_of_the_same_statistics_are_left_alone():
    images, same = torch.rand(1, 3, 4, 4), create_model("vit_mu_patch16_32").preprocessing
    assert renormalized(images, same, same) is images
