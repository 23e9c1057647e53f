"""Corrupted sources and what is measured on them."""

import numpy as np
import pytest
import torch

import vitrail
from vitrail.data.examples import ArraySource
from vitrail.data.loader import eval_batches
from vitrail.evaluation.accuracy import evaluate
from vitrail.evaluation.corruptions import corrupt
from vitrail.evaluation.robustness import CorruptedSource, at_size, robustness
from vitrail.kit.errors import Error
from vitrail.weights.resized import resized


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = vitrail.create_model("vit_mu_patch8_32", num_classes=3).set_labels(["a", "b", "c"])
    torch.nn.init.normal_(made.head.weight)
    return made


@pytest.fixture(scope="module")
def source():
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (30, 32, 40, 3), dtype=np.uint8)
    return ArraySource(images, numbers.integers(0, 3, 30), ["a", "b", "c"])


def clean_of(model, source):
    return evaluate(model, eval_batches(source, model.preprocessing, 8), source.classes)


def test_a_corrupted_source_gives_what_the_model_shall_see(model, source):
    made = CorruptedSource(source, model.preprocessing, "fog", 3, seed=5)
    assert len(made) == 30
    seen = model.preprocessing.geometry(source.image(4))
    assert np.array_equal(made.image(4), corrupt(seen, "fog", 3, "4", seed=5))
    as_it_is = model.preprocessing.replace(crop=1.0)
    alone = next(iter(eval_batches(made, as_it_is, 30)))
    by_workers = list(eval_batches(made, as_it_is, 7, workers=2))
    assert torch.equal(torch.cat([batch.images for batch in by_workers]), alone.images)
    assert np.array_equal(alone.images[4].numpy(), made.image(4))


def test_a_centre_crop_is_not_taken_twice(source):
    torch.manual_seed(0)
    model = vitrail.create_model("vit_mu_patch8_32", num_classes=3)
    model.preprocessing = model.preprocessing.replace(crop=0.8)
    made = CorruptedSource(source, model.preprocessing, "jpeg_compression", 1, seed=0)
    batch = next(iter(eval_batches(made, model.preprocessing.replace(crop=1.0), 4)))
    seen = model.preprocessing.geometry(source.image(0))
    assert np.array_equal(batch.images[0].numpy(), corrupt(seen, "jpeg_compression", 1))


def test_errors_are_means_of_what_each_pass_finds(model, source):
    said = []
    found = robustness(
        model, source, clean_of(model, source), ["fog", "snow"], (5, 1), seed=2, say=said.append
    )
    assert found.severities == (1, 5)
    assert list(found.rows) == ["fog", "snow"]
    made = CorruptedSource(source, model.preprocessing, "fog", 5, seed=2)
    again = evaluate(model, eval_batches(made, model.preprocessing, 8), source.classes)
    assert found.rows["fog"][1] == again.top1
    errors = 1 - np.array(list(found.rows.values()))
    assert found.mean_error == pytest.approx(errors.mean())
    assert found.low <= found.mean_error <= found.high
    assert found.relative_error == pytest.approx(errors.mean() - (1 - found.clean))
    assert found.clean == clean_of(model, source).top1
    assert (found.table, found.drawn_frost, len(said)) == ("CIFAR-10-C", False, 2)


def test_some_images_are_compared_with_themselves(model, source):
    clean = clean_of(model, source)
    some = source.subset([3, 7, 20])
    found = robustness(model, some, clean, ["frost"], [1])
    right = (clean.predictions == clean.labels)[[3, 7, 20]]
    assert (found.n, found.clean) == (3, pytest.approx(float(right.double().mean())))
    assert found.drawn_frost


def test_nothing_asked_is_said(model, source):
    clean = clean_of(model, source)
    for names, severities in (([], [1]), (["fog"], [])):
        with pytest.raises(Error, match="at least one"):
            robustness(model, source, clean, names, severities)
    with pytest.raises(Error, match="did you mean 'snow'"):
        robustness(model, source, clean, ["snw"], [1])


def test_a_row_of_a_sweep(model, source):
    large = resized(model, 48)
    result = clean_of(large, source)
    row = at_size(large, result, own=False)
    assert row.size == (48, 48)
    assert row.top1 == result.top1
    assert row.macs > at_size(model, clean_of(model, source), own=True).macs
    assert row.low <= row.top1 <= row.high
