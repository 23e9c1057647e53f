"""Two models on the same images."""

import numpy as np
import pytest

from tests.evaluation.test_accuracy import ReadsItsAnswer, batches_of, random_data
from vitrail.data.loader import Batch
from vitrail.evaluation.accuracy import evaluate
from vitrail.evaluation.compare import compare
from vitrail.kit.errors import Error
from vitrail.metrics.significance import mcnemar

NAMES = ["ash", "birch", "cedar"]


def answers(predictions, labels, names=NAMES, order=(0, 1, 2)):
    """An evaluation with these answers; ``order`` is where each class stands in the model."""
    pixels = np.zeros((len(labels), 3), int)
    pixels[np.arange(len(labels)), np.array(order)[predictions]] = 99
    model = ReadsItsAnswer([names[list(order).index(k)] for k in range(3)])
    return evaluate(model, batches_of(pixels, labels), names)


def test_the_table_and_its_test():
    labels = [0] * 100
    first = answers([0] * 80 + [1] * 20, labels)
    second = answers([0] * 60 + [1] * 30 + [2] * 5 + [0] * 5, labels)
    found = compare(first, second, ("big", "small"))
    assert (found.both, found.only_first, found.only_second, found.neither) == (60, 20, 5, 15)
    assert (found.top1, found.against_top1) == (0.8, 0.65)
    assert found.difference == pytest.approx(0.15)
    assert found.p == mcnemar(20, 5)
    assert found.low < 0.15 < found.high
    assert found.same_answer == pytest.approx(0.70)
    assert found.low > 0
    assert found.sentence().startswith("big is better than small by 15.00 points (95 %: +")


def test_a_small_difference_is_called_what_it_is():
    labels = [0] * 50
    found = compare(answers([0] * 40 + [1] * 10, labels), answers([0] * 39 + [1] * 11, labels))
    assert found.p == 1
    assert "No difference can be told from chance on 50 images" in found.sentence()
    assert "2.00 points above" in found.sentence()


def test_the_interval_is_paired():
    """Two models that err on the same images differ less than their own intervals say."""
    labels = [0] * 400
    same = compare(answers([0] * 200 + [1] * 200, labels), answers([0] * 196 + [1] * 204, labels))
    assert same.high - same.low < 0.025


def test_models_with_their_classes_in_another_order_agree():
    pixels, labels = random_data(60, 3)
    predictions = pixels.argmax(1)
    found = compare(answers(predictions, labels), answers(predictions, labels, order=(2, 0, 1)))
    assert found.same_answer == 1
    assert found.only_first == found.only_second == 0


def test_images_that_one_could_not_read_are_left_out():
    labels = [0, 1, 2, 0]
    first = answers([0, 1, 2, 1], labels)

    def all_but_the_second():
        for batch in batches_of(np.eye(3, dtype=int)[[0, 1, 2, 0]] * 99, labels):
            kept = [0, 2, 3]
            yield Batch(
                images=batch.images[kept],
                labels=batch.labels[kept],
                keys=[batch.keys[i] for i in kept],
                indices=batch.indices[kept],
            )

    second = evaluate(ReadsItsAnswer(NAMES), all_but_the_second(), NAMES)
    found = compare(first, second)
    assert (found.n, found.only_second, found.both) == (3, 1, 2)


def test_other_images_are_refused():
    with pytest.raises(Error, match="true classes"):
        compare(answers([0, 1], [0, 1]), answers([0, 1], [0, 2]))
