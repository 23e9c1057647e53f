"""Everything that follows from a model's answers, and the page that says it."""

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score

from tests.evaluation.test_accuracy import ReadsItsAnswer, batches_of, random_data
from tests.kit.reading import check_readable, check_self_contained
from vitrail.data.examples import ArraySource
from vitrail.evaluation.accuracy import evaluate
from vitrail.evaluation.compare import compare
from vitrail.evaluation.findings import examine, macro_f1_interval
from vitrail.evaluation.label_sets import AnyOf
from vitrail.evaluation.multilabel import score
from vitrail.evaluation.report import evaluation_page, multi_label_page
from vitrail.evaluation.robustness import AtSize, Robustness

NAMES = ["ash", "birch", "cedar", "elm", "fir", "gum", "hazel", "oak"]


def findings(k=8, n=300, temperature=1.0, seed=0, shift=0, **more):
    pixels, labels = random_data(n, k, seed)
    names = NAMES[:k]
    result = evaluate(
        ReadsItsAnswer(names),
        batches_of(pixels, (labels + shift) % k),
        names,
        temperature=temperature,
        keep_logits=True,
    )
    source = ArraySource(np.zeros((n, 1, k, 3), np.uint8), (labels + shift) % k, names)
    return pixels, labels, examine(result, source, **more)


@pytest.mark.parametrize("k", [2, 3, 8])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_f1_and_auroc_are_scikit_learns(k, temperature):
    pixels, labels, found = findings(k, temperature=temperature)
    assert found.macro_f1 == pytest.approx(f1_score(labels, pixels.argmax(1), average="macro"))
    chances = (found.accuracy.logits.double() / temperature).softmax(1).numpy()
    theirs = (
        roc_auc_score(labels, chances[:, 1])
        if k == 2
        else roc_auc_score(labels, chances, multi_class="ovr", average="macro")
    )
    assert found.auroc == pytest.approx(theirs, abs=1e-12)


def test_classes_that_nobody_speaks_of_do_not_count_in_the_macro_f1():
    pixels = np.eye(4, dtype=int)[[0, 1, 1, 2]] * 99
    labels = [0, 1, 0, 0]
    names = NAMES[:4]
    result = evaluate(ReadsItsAnswer(names), batches_of(pixels, labels), names, keep_logits=True)
    found = examine(result, ArraySource(np.zeros((4, 1, 4, 3), np.uint8), labels, names))
    assert found.macro_f1 == pytest.approx(f1_score(labels, [0, 1, 1, 2], average="macro"))


def test_images_of_one_class_have_no_area():
    pixels = np.eye(3, dtype=int)[[0, 1, 0]] * 99
    names = NAMES[:3]
    result = evaluate(ReadsItsAnswer(names), batches_of(pixels, [0] * 3), names, keep_logits=True)
    found = examine(result, ArraySource(np.zeros((3, 1, 3, 3), np.uint8), [0] * 3, names))
    assert found.auroc is None
    json.dumps(found.to_json(), allow_nan=False)


def test_intervals_hold_their_figures_and_narrow_with_more_images():
    _, _, found = findings()
    for name, value in (("top1", found.accuracy.top1), ("macro_f1", found.macro_f1)):
        low, high = found.intervals[name]
        assert low < value < high
    _, _, more = findings(n=2400)
    few, many = found.intervals["top1"], more.intervals["top1"]
    assert many[1] - many[0] < 0.5 * (few[1] - few[0])
    numbers = np.random.default_rng(0)
    labels = numbers.integers(0, 4, 400)
    answers = np.where(numbers.random(400) < 0.8, labels, (labels + 1) % 4)
    low, high = macro_f1_interval(labels, answers)
    assert low < f1_score(labels, answers, average="macro") < high


def everything():
    _, _, found = findings(seed=1)
    _, _, other = findings(seed=1, shift=0)
    stood = Robustness(
        clean=0.8,
        n=300,
        severities=(1, 5),
        rows={"fog": (0.7, 0.2), "frost": (0.6, 0.3)},
        mean_error=0.55,
        low=0.5,
        high=0.6,
        relative_error=0.35,
        table="CIFAR-10-C",
        drawn_frost=True,
    )
    sizes = [
        AtSize((24, 24), 0.7, 0.9, 1.0, 0.6, 0.8, 10**8, False),
        AtSize((32, 32), 0.8, 0.9, 0.9, 0.7, 0.9, None, True),
    ]
    _, _, whole = findings(
        temperature=2.0,
        real=AnyOf(0.9, 0.85, 0.95, 280, 20),
        robustness=stood,
        sizes=sizes,
        comparison=compare(found.accuracy, other.accuracy, ("<big>", "small")),
        notes=["Something to be known."],
    )
    return whole


def test_json_keeps_the_agreed_keys_and_adds_the_rest():
    fields = json.loads(json.dumps(everything().to_json(), allow_nan=False))
    assert {"top1", "top5", "n", "classes", "per_class", "confusion"} <= fields.keys()
    assert {"macro_f1", "auroc", "intervals", "calibration", "slices", "notes"} <= fields.keys()
    assert fields["calibration"]["temperature"] == 2
    assert fields["calibration"]["before"]["nll"] == pytest.approx(fields["loss"], abs=1e-6)
    assert fields["corruptions"]["rows"][0] == {
        "name": "fog",
        "top1": [0.7, 0.2],
        "mean_error": pytest.approx(0.55),
    }
    assert fields["sizes"][0]["size"] == [24, 24]
    assert fields["real"]["left_out"] == 20
    assert fields["comparison"]["p"] == 1
    _, _, plain = findings()
    assert not {"corruptions", "sizes", "real", "comparison"} & plain.to_json().keys()


def test_the_page_says_all_of_it_and_needs_nothing():
    page = evaluation_page(everything(), model="runs/<b>", split="test", parameters=2_500_000)
    html = page.html()
    check_self_contained(html)
    check_readable(html)
    headings = [section.heading for section in page.sections]
    assert headings == [
        "Accuracy",
        "Label sets",
        "Comparison",
        "Calibration",
        "Slices",
        "Corruptions",
        "Resolution",
        "Mistakes",
    ]
    for words in ("Something to be known.", "2.5 million", "drawn ice", "&lt;big&gt;", "McNemar"):
        assert words in html
    assert "temperature 2.000" in html


def test_a_page_of_little_is_a_page_too():
    _, _, found = findings(k=2, n=10)
    page = evaluation_page(found, model="m", split="val")
    check_readable(page.html())
    assert "no slices of at least 20 images" in page.html()
    assert "No temperature is stored" in page.html()


def test_several_labels_have_a_page():
    numbers = np.random.default_rng(0)
    truth = numbers.random((40, 3)) < 0.3
    truth[:, 2] = False
    result = score(numbers.normal(size=(40, 3)), truth, ["a", "b", "<c>"], (("x.png", "empty"),))
    html = multi_label_page(result, model="m", split="test").html()
    check_self_contained(html)
    check_readable(html)
    assert "mean average precision" in html
