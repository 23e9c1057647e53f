import math

import pytest
import torch
import torch.nn.functional as F

from vitrail.kit.errors import Error
from vitrail.training.objectives import Example, Supervised, balanced_weights
from vitrail.training.recipe import Target

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 1.0, -2.0]], dtype=torch.float64)
LABELS = torch.tensor([0, 2])
IMAGES = torch.zeros(2, 3, 4, 4)


def loss(objective: Supervised, labels=LABELS, targets=None) -> float:
    return objective(lambda _: LOGITS, Example(IMAGES, labels, targets)).value.item()


def bce(logit: float, target: float) -> float:
    yes = 1 / (1 + math.exp(-logit))
    return -(target * math.log(yes) + (1 - target) * math.log(1 - yes))


def by_hand(targets: list[list[float]]) -> list[list[float]]:
    rows = zip(LOGITS.tolist(), targets, strict=True)
    return [[bce(x, t) for x, t in zip(row, target, strict=True)] for row, target in rows]


def test_sigmoid_sums_over_classes_and_averages_over_pictures():
    parts = by_hand([[1, 0, 0], [0, 0, 1]])
    assert loss(Supervised(loss="sigmoid")) == pytest.approx(sum(map(sum, parts)) / 2)


def test_sigmoid_takes_mixed_targets_and_smoothing():
    mixed = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.4, 0.6]])
    smooth = [[t * 0.9 + 0.1 / 3 for t in row] for row in mixed.tolist()]
    found = loss(Supervised(0.1, "sigmoid"), targets=mixed)
    assert found == pytest.approx(sum(map(sum, by_hand(smooth))) / 2, rel=1e-6)


def test_bce_takes_every_class_that_is_there_for_present_and_averages_over_all():
    mixed = torch.tensor([[0.99, 0.01, 0.0], [0.0, 0.4, 0.6]])
    found = loss(Supervised(loss="bce"), targets=mixed)
    assert found == pytest.approx(sum(map(sum, by_hand([[1, 1, 0], [0, 1, 1]]))) / 6)


def test_bce_with_smoothing_would_teach_everything_and_is_refused():
    with pytest.raises(Error, match="label_smoothing to 0"):
        Target(loss="bce", label_smoothing=0.1)


def test_several_labels_a_picture():
    several = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    objective = Supervised(loss="sigmoid")
    found = objective(lambda _: LOGITS, Example(IMAGES, several))
    assert found.value.item() == pytest.approx(sum(map(sum, by_hand(several.tolist()))) / 2)
    assert found.parts["accuracy"].item() == 0.5  # its surest answers are classes 0 and 1
    with pytest.raises(Error, match=r"need target\.loss sigmoid, not softmax"):
        loss(Supervised(), labels=several)


def test_balanced_weights_make_every_class_count_alike():
    weights = balanced_weights([10, 30, 0])
    assert weights.tolist() == pytest.approx([2.0, 2 / 3, 0.0])
    assert (10 * weights[0] + 30 * weights[1]).item() / 40 == pytest.approx(1)
    objective = Supervised(class_weights=balanced_weights([3, 1, 2]))
    each = F.cross_entropy(LOGITS, LABELS, reduction="none")
    expected = (each * torch.tensor([6 / 9, 6 / 6])).mean()
    assert loss(objective) == pytest.approx(expected.item(), rel=1e-6)
    onehot = F.one_hot(LABELS, 3).double()
    assert loss(objective, targets=onehot) == pytest.approx(expected.item(), rel=1e-6)
