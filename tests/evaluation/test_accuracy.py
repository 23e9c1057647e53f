"""A model whose logits are its pixels: what it answers is written in the picture."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score
from torch import nn

from vitrail.data.loader import Batch
from vitrail.evaluation.accuracy import align, evaluate
from vitrail.kit.errors import Error
from vitrail.kit.preprocess import Preprocessing
from vitrail.models.base import ImageClassifier


@dataclass(frozen=True)
class Config:
    num_classes: int
    image_size: tuple[int, int]
    in_channels: int


class ReadsItsAnswer(ImageClassifier):
    """Images of 1 x k pixels and one channel: pixel i is logit i, in tenths."""

    def __init__(self, classes, dtype=torch.float32):
        k = len(classes)
        super().__init__(Config(num_classes=k, image_size=(1, k), in_channels=1))
        self.preprocessing = Preprocessing(size=(1, k), mean=(0,), std=(10 / 255,))
        self.head = nn.Linear(k, k, bias=False, dtype=dtype)
        nn.init.eye_(self.head.weight)
        self.set_labels(classes)

    def features(self, images, tape=None):
        assert not self.training
        assert not torch.is_grad_enabled()
        return images.flatten(1)


def batches_of(pixels, labels, size=7, skipped=()):
    """uint8 pixels [n k] and labels [n] as the batches of a loader."""
    for start in range(0, len(pixels), size):
        part = torch.as_tensor(pixels[start : start + size], dtype=torch.uint8)
        yield Batch(
            images=part[:, None, :, None],
            labels=torch.as_tensor(labels[start : start + size]),
            keys=[f"{i}.png" for i in range(start, start + len(part))],
            indices=torch.arange(start, start + len(part)),
            skipped=list(skipped) if start == 0 else [],
        )


def random_data(n, k, seed=0):
    """Pixels all different within a row, so that no answer hangs on a tie."""
    generator = np.random.default_rng(seed)
    pixels = np.stack([generator.permutation(200)[:k] for _ in range(n)])
    labels = generator.integers(0, k, n)
    pixels[np.arange(n), labels] += 40  # a model that is right more often than not
    return pixels, labels


NAMES = ["ash", "birch", "cedar", "elm", "fir", "gum", "hazel", "oak"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_figures_equal_scikit_learns_however_the_data_is_cut(dtype):
    pixels, labels = random_data(100, 8)
    probabilities = torch.tensor(pixels / 10).softmax(1).numpy()
    for size in (7, 100):
        found = evaluate(ReadsItsAnswer(NAMES, dtype), batches_of(pixels, labels, size), NAMES)
        assert found.n == 100
        assert found.top1 == accuracy_score(labels, pixels.argmax(1))
        assert found.top5 == top_k_accuracy_score(labels, pixels, k=5)
        assert found.loss == pytest.approx(log_loss(labels, probabilities), rel=1e-5)
        assert found.predictions.tolist() == pixels.argmax(1).tolist()
        assert found.labels.tolist() == labels.tolist()
        assert found.keys[99] == "99.png"
        torch.testing.assert_close(
            found.probabilities, torch.tensor(probabilities.max(1)).float(), rtol=1e-5, atol=1e-7
        )


def test_json_has_the_agreed_keys_and_survives_a_round_trip():
    pixels, labels = random_data(50, 3)
    model = ReadsItsAnswer(["ash", "birch", "cedar"])
    found = evaluate(model, batches_of(pixels, labels, skipped=[("x.png", "cut short")]))
    fields = json.loads(json.dumps(found.to_json()))
    assert fields["top1"] == found.top1
    assert fields["top5"] == 1.0  # of three classes the true one is always among five
    assert fields["n"] == 50
    assert fields["classes"] == ["ash", "birch", "cedar"]
    assert [list(entry) for entry in fields["per_class"]] == [
        ["label", "n", "precision", "recall", "f1"]
    ] * 3
    assert sum(entry["n"] for entry in fields["per_class"]) == 50
    assert np.trace(fields["confusion"]) == round(50 * found.top1)
    assert [sum(row) for row in fields["confusion"]] == np.bincount(labels).tolist()
    assert fields["skipped"] == [{"key": "x.png", "reason": "cut short"}]


def test_classes_in_another_order_are_matched_by_name():
    pixels, labels = random_data(100, 8)
    model = ReadsItsAnswer(NAMES)
    straight = evaluate(model, batches_of(pixels, labels), NAMES)
    order = [5, 2, 7, 0, 6, 1, 4, 3]  # the data's class i is the model's class order[i]
    theirs = [order.index(label) for label in labels]
    found = evaluate(model, batches_of(pixels, theirs), [NAMES[i] for i in order])
    assert found.to_json() == straight.to_json()
    by_number = evaluate(model, batches_of(pixels, theirs))
    assert by_number.top1 < straight.top1 / 2  # what a match by position would have said


def test_some_of_the_models_classes_are_enough():
    pixels, labels = random_data(100, 8)
    kept = [label in (3, 6) for label in labels]
    theirs = [0 if label == 6 else 1 for label in labels[kept]]
    found = evaluate(ReadsItsAnswer(NAMES), batches_of(pixels[kept], theirs), ["hazel", "elm"])
    assert found.n == sum(kept)
    assert [entry.label for entry in found.per_class if entry.n] == ["elm", "hazel"]
    assert found.top1 == accuracy_score(labels[kept], pixels[kept].argmax(1))


def test_align_names_what_does_not_fit():
    assert align(["b", "a"], ["a", "b", "c"]).tolist() == [1, 0]
    assert align(["a", "a"], ["a", "a"]).tolist() == [0, 1]  # equal lists need no matching
    with pytest.raises(Error, match=r"1 of the data's 2 classes: 'brich'; did you mean 'birch'"):
        align(["ash", "brich"], NAMES)
    with pytest.raises(Error, match=r"'x', 'y'; its own are 'ash', 'birch', .* and 3 more"):
        align(["x", "ash", "y"], NAMES)
    with pytest.raises(Error, match="'crane' is the name of several"):
        align(["crane"], ["crane", "fox", "crane"])


def test_a_model_without_labels_takes_the_datas():
    pixels, labels = random_data(20, 3)
    model = ReadsItsAnswer(["a", "b", "c"])
    model.labels = None
    named = evaluate(model, batches_of(pixels, labels), ["x", "y", "z"])
    assert named.classes == ("x", "y", "z")
    assert evaluate(model, batches_of(pixels, labels)).classes == ("0", "1", "2")


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_the_mode_it_was_in(training):
    pixels, labels = random_data(5, 3)
    model = ReadsItsAnswer(["a", "b", "c"]).train(training)
    evaluate(model, batches_of(pixels, labels))
    assert model.training is training
    with pytest.raises(Error):
        evaluate(model, batches_of(pixels, labels + 3))
    assert model.training is training


def test_mistakes_are_the_most_confident_ones_with_their_pictures():
    pixels = [[250, 0, 0], [0, 90, 0], [0, 0, 70], [0, 0, 99], [120, 0, 0], [0, 120, 0]]
    labels = [0, 0, 1, 2, 2, 0]
    model = ReadsItsAnswer(["a", "b", "c"])
    found = evaluate(model, batches_of(pixels, labels, size=2), mistakes=3)
    worst = found.mistakes()
    # 4 and 5 are equally sure: the first seen comes first.
    assert [mistake.key for mistake in worst] == ["4.png", "5.png", "1.png"]
    assert (worst[0].label, worst[0].prediction) == ("c", "a")
    assert worst[0].probability == pytest.approx(1 - 2 * np.exp(-12), abs=1e-7)
    assert worst[2].picture.tolist() == [[[0], [90], [0]]]
    assert [mistake.key for mistake in found.mistakes(most=1)] == ["4.png"]
    assert evaluate(model, batches_of(pixels, labels), mistakes=0).mistakes() == []


@pytest.mark.parametrize(("asked", "each"), [(16, 2), (15, 1), (8, 1)])
def test_examples_show_every_class_although_folders_are_sorted_by_class(asked, each):
    labels = np.repeat(np.arange(8), 30)
    pixels = np.eye(8, dtype=int)[labels] * 200
    found = evaluate(ReadsItsAnswer(NAMES), batches_of(pixels, labels), examples=asked)
    assert [example.label for example in found.examples] == [n for n in NAMES for _ in range(each)]
    first = [f"{30 * label + i}.png" for label in range(8) for i in range(each)]
    assert [example.key for example in found.examples] == first
    few = evaluate(ReadsItsAnswer(NAMES), batches_of(pixels, labels), examples=3)
    assert [example.label for example in few.examples] == NAMES[:3]


def test_skipped_images_are_left_out_and_named():
    pixels, labels = random_data(10, 3)
    skipped = [("a.png", "cut short"), ("b.png", "empty")]
    found = evaluate(ReadsItsAnswer(["a", "b", "c"]), batches_of(pixels, labels, skipped=skipped))
    assert found.n == 10
    assert found.skipped == tuple(skipped)
    nothing = Batch(
        images=torch.zeros(0, 1, 3, 1, dtype=torch.uint8),
        labels=torch.zeros(0, dtype=torch.int64),
        keys=[],
        indices=torch.zeros(0, dtype=torch.int64),
        skipped=skipped,
    )
    with pytest.raises(Error, match=r"evaluate on; 2 were skipped: a\.png cut short"):
        evaluate(ReadsItsAnswer(["a", "b", "c"]), [nothing])
    with pytest.raises(Error, match="no image to evaluate on"):
        evaluate(ReadsItsAnswer(["a", "b", "c"]), [])


def test_a_broken_model_is_not_scored():
    pixels, labels = random_data(10, 3)
    model = ReadsItsAnswer(["a", "b", "c"])
    with torch.no_grad():
        model.head.weight[0, 0] = float("nan")
    with pytest.raises(Error, match=r"answer for 0\.png is not a finite number"):
        evaluate(model, batches_of(pixels, labels))


def test_a_class_number_that_the_model_does_not_have_is_named():
    pixels, labels = random_data(10, 3)
    labels[4] = 3
    with pytest.raises(Error, match=r"4\.png is of class number 3, but the model has 3 classes"):
        evaluate(ReadsItsAnswer(["a", "b", "c"]), batches_of(pixels, labels))


def test_what_the_further_figures_need_is_kept():
    pixels, labels = random_data(30, 8)
    plain = evaluate(ReadsItsAnswer(NAMES), batches_of(pixels, labels), NAMES)
    assert plain.logits is None
    found = evaluate(
        ReadsItsAnswer(NAMES), batches_of(pixels, labels), NAMES, temperature=4.0, keep_logits=True
    )
    assert found.logits.shape == (30, 8)
    assert found.logits.dtype == torch.float32
    assert found.logits.numpy() == pytest.approx(pixels / 10, rel=1e-5)
    assert found.to_json() == plain.to_json()  # no answer and no loss hangs on a temperature
    confident = torch.tensor(pixels / 40).softmax(1).amax(1)
    assert found.probabilities.numpy() == pytest.approx(confident.numpy(), rel=1e-5)
    assert (found.probabilities < plain.probabilities).all()
    assert found.indices.tolist() == list(range(30))
    assert found.brightness.numpy() == pytest.approx(pixels.mean(1) / 255, rel=1e-5)
    assert float(found.top5_right.double().mean()) == found.top5
