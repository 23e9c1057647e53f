"""The search of CvT's space: what is drawn, the limit, and the front that is shown."""

import random
import statistics
from dataclasses import replace
from itertools import product

import pytest

from vitrail.kit.errors import Error
from vitrail.models.cost import cost
from vitrail.models.cvt import CvTConfig
from vitrail.studies.definition import Ask
from vitrail.studies.search import define, sample, show

CVT_13 = CvTConfig()
ASK = Ask(seeds=2, train_images=54_000, classes=10, side=28, durations=("100 steps",))


def macs(config, choice):
    return cost(replace(config, **choice)).macs


def test_samples_are_of_the_space_each_once_and_the_same_again():
    found = sample(CVT_13, 20, None, 0)
    assert found == sample(CVT_13, 20, None, 0)
    assert found != sample(CVT_13, 20, None, 1)
    assert len({repr(choice) for choice in found.values()}) == len(found) == 20 + 4
    for choice in found.values():
        for name, options in (("kv_strides", {1, 2}), ("mlp_ratios", {2.0, 4.0})):
            assert [len(stage) for stage in choice[name]] == [1, 2, 10]
            assert {value for stage in choice[name] for value in stage} <= options
    more = sample(CVT_13, 25, None, 0)
    assert list(more.items())[:24] == list(found.items()), "more samples keep those before"


def test_samples_spread_over_the_compute():
    """Beside fair coins for every block; and each quarter of the way up holds some."""
    found = [macs(CVT_13, c) for name, c in sample(CVT_13, 40, None, 0).items() if "sample" in name]
    low, high = macs(CVT_13, _all(2, 2.0)), macs(CVT_13, _all(1, 4.0))
    draws = random.Random(0)
    coins = [
        {
            name: tuple(tuple(draws.choice(options) for _ in range(depth)) for depth in (1, 2, 10))
            for name, options in (("kv_strides", (1, 2)), ("mlp_ratios", (2.0, 4.0)))
        }
        for _ in range(40)
    ]
    spread, narrow = (
        statistics.stdev((value - low) / (high - low) for value in values)
        for values in (found, [macs(CVT_13, choice) for choice in coins])
    )
    assert spread > 1.3 * narrow
    assert {int(4 * (value - low) / (high - low)) for value in found} == {0, 1, 2, 3}


def _all(stride, ratio):
    depths = (1, 2, 10)
    return {
        "kv_strides": tuple((stride,) * depth for depth in depths),
        "mlp_ratios": tuple((ratio,) * depth for depth in depths),
    }


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 1.0])
def test_no_architecture_is_above_the_limit(share):
    low, high = macs(CVT_13, _all(2, 2.0)), macs(CVT_13, _all(1, 4.0))
    limit = low + share * (high - low)
    found = sample(CVT_13, 8, limit, 0)
    assert all(macs(CVT_13, choice) <= limit for choice in found.values())
    assert "stride 2, ratio 2" in found
    assert ("stride 1, ratio 4" in found) == (share == 1)
    assert len(found) > 1 or share == 0


def test_a_small_space_is_drawn_whole():
    tiny = CvTConfig(depths=(1,), widths=(24,), heads=(1,), image_size=28)
    found = sample(tiny, 50, None, 0)
    drawn = {(c["kv_strides"][0][0], c["mlp_ratios"][0][0]) for c in found.values()}
    assert drawn == set(product((1, 2), (2.0, 4.0)))


def test_a_definition_says_each_run_and_its_cost():
    definition = define(ASK.replace(samples=3, limit=4e6))
    names = list(dict.fromkeys(point.line for point in definition.points))
    assert len(definition.points) == 2 * len(names)
    assert len({point.id for point in definition.points}) == len(definition.points)
    for point in definition.points:
        lists = {key: tuple(map(_tuple, value)) for key, value in point.config.items()}
        config = CvTConfig(**lists, image_size=28, num_classes=10)
        assert point.axes["macs"] == cost(config).macs <= 4e6
    again = define(ASK.replace(samples=3, limit=4e6))
    assert definition.sha256 == again.sha256


def _tuple(value):
    return tuple(value) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({"limit": 1e6}, "below the cheapest architecture of the space"),
        ({"limit": float("nan")}, "below the cheapest architecture of the space"),
        ({"samples": 0}, "at least one sample"),
        ({"sizes": (5,)}, "there are 10 classes, and each needs a picture"),
        ({"validation": 0}, "search chooses by validation pictures, and there are none"),
        ({"models": ("vit_nano_patch4_28",)}, "vit_nano_patch4_28 is of vit"),
        ({"models": ("cvt_13_28", "cvt_21_28")}, "search takes one model"),
        ({"sizes": (100, 200)}, "give one of --sizes"),
        ({"axes": ("depth",)}, "search has no --axis"),
        ({"preset": "page"}, "search has no --preset"),
    ],
)
def test_what_cannot_be_asked(words, sentence):
    with pytest.raises(Error, match=sentence):
        define(ASK.replace(**words))


def records_of(definition, val, test=lambda point: 0.5):
    return [
        {
            "id": point.id,
            "config": point.to_json(),
            "seed": point.seed,
            "metrics": {"final_val_top1": val(point), "top1": test(point), "parameters": 1},
        }
        for point in definition.points
    ]


def test_the_front_is_taken_on_validation():
    definition = define(ASK.replace(samples=6))
    chosen = ("stride 2, ratio 2", "sample 002", "stride 1, ratio 4")
    order = {name: place for place, name in enumerate(chosen)}

    def val(point):
        place = order.get(point.line)
        return 0.1 if place is None else 0.5 + 0.1 * place

    shown = show(definition, records_of(definition, val), True)
    assert shown.facts["front"] == list(chosen)
    table = shown.tables[0]
    compute = [row[1] for row in table.rows]
    assert compute == sorted(compute)
    assert [row[0] for row in table.rows if row[5] == "yes"] == list(chosen)
    first = table.rows[0]
    assert first[6:] == ["2 2 22", "2 2 22"]
    assert "stride 1, ratio 4, has 70.00" in shown.answer[0]
    assert show(definition, [], True).answer == ["No candidate has been trained yet."]


def test_the_best_is_compared_with_cvt_13_on_pictures_that_did_not_choose_it():
    definition = define(ASK.replace(samples=2, seeds=3))
    best, own = "stride 1, ratio 4", "stride 2, ratio 4 (CvT-13)"

    def val(point):
        return {best: 0.9, own: 0.5}.get(point.line, 0.1)

    def test(point):  # seed by seed 0.03, 0.02 and 0.01, though each spreads over 0.2
        return 0.5 + 0.1 * point.seed + (point.line == best) * (0.03 - 0.01 * point.seed)

    shown = show(definition, records_of(definition, val, test), True)
    assert "that is +2.00 ± 2.48 points (not told apart) on test pictures" in shown.answer[1]
    shown = show(definition, records_of(definition, val, lambda point: None), True)
    assert "that is +40.00 ± 0.00 points on validation pictures" in shown.answer[1]


def test_what_a_choice_is_worth_is_found_again():
    """Accuracy planted as a sum of shares: least squares has to give the summands back."""
    definition = define(ASK.replace(samples=30, seeds=1))

    def val(point):
        strides, ratios = point.config["kv_strides"], point.config["mlp_ratios"]
        last = [value == 4 for value in ratios[2]]
        return 0.5 + 0.03 * (strides[0][0] == 1) + 0.02 * sum(last) / len(last)

    shown = show(definition, records_of(definition, val), False)
    worth = {row[0]: row[1:] for row in shown.tables[1].rows}
    assert worth["stride 1 instead of 2, stage 1"] == [3.0, 3.0, 3.0]
    assert worth["ratio 4 instead of 2, stage 3"] == [2.0, 2.0, 2.0]
    assert worth["ratio 4 instead of 2, stage 1"] == [pytest.approx(0, abs=1e-9)] * 3
    few = define(ASK.replace(samples=6, seeds=1))
    assert len(show(few, records_of(few, val), False).tables) == 1
