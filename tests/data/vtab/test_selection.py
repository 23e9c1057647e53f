"""The published order and its slices."""

import numpy as np
import pytest

from vitrail.data.vtab.selection import cut, published_order, split_of
from vitrail.kit.errors import Error


def test_the_order_is_the_one_that_tensorflow_datasets_publishes():
    # The first ten of `tfds.load("cifar10", split="train")`, as its documentation and Ray's print
    # them: ids train_16399, train_01680, ... Its key is the index; the split is the salt.
    order = published_order([str(i) for i in range(50_000)], "train")
    first = [16399, 1680, 47917, 17307, 27051, 48736, 26263, 1456, 19135, 31598]
    assert order[:10].tolist() == first
    assert sorted(order.tolist()) == list(range(50_000))


def test_the_split_salts_the_order():
    keys = [str(i) for i in range(100)]
    assert published_order(keys, "train").tolist() != published_order(keys, "test").tolist()


@pytest.mark.parametrize(
    ("spec", "low", "high"),
    [
        ("train[:800]", 0, 800),
        ("train[90%:+200]", 1845, 2045),  # 90 % of 2,050, floored
        ("test", 0, 2050),
        ("train[80%:]", 1640, 2050),
        ("test[50%:]", 1025, 2050),
    ],
)
def test_slices(spec, low, high):
    order = np.arange(2050)[::-1]
    assert cut(spec, order).tolist() == order[low:high].tolist()
    assert split_of(spec) == spec.partition("[")[0]


def test_a_slice_of_too_little_is_refused():
    with pytest.raises(Error, match="needs more than the 700 examples"):
        cut("train[:800]", np.arange(700))
