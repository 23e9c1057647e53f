"""What studies say in words, on records whose truth is planted."""

import itertools
import math

import pytest

from tests.studies.planted import points, record
from vitrail.studies.data_size import show as show_sizes
from vitrail.studies.definition import Ask
from vitrail.studies.gaps import answer_of, lead_in_words
from vitrail.studies.page import _validation
from vitrail.studies.scaling import define as scaling_kind
from vitrail.studies.scaling import show as show_scaling

SEEDS = (0, 1, 2)
NOISE = {0: -0.002, 1: 0.0, 2: 0.003}


def scaling(data: float, time: float, size: float):
    """A ViT of two sizes and two durations, that wins this much by a doubling of each."""
    rows, records = [], []
    for (big, long), seed in itertools.product(((0, 0), (0, 1), (1, 0), (1, 1)), SEEDS):
        line, duration = ("large" if big else "small"), f"{100 * 2**long} examples"
        axes = {"family": "ViT", "duration": duration, "data": "all"}
        row = {"id": f"{line}-{long}-{seed}", "line": line, "seed": seed, "axes": axes}
        rows.append((row, 0.4 + time * long + 2 * size * big, 2**long * 4**big, 4**big))
        if big and long:
            half = {**row, "id": f"{row['id']}-half", "axes": {**axes, "data": "half"}}
            rows.append((half, 0.4 + time + 2 * size - data, 8, 4))
    definition = points("scaling", [row for row, *_ in rows])
    for point, (_, top1, flops, macs) in zip(definition.points, rows, strict=True):
        jitter = NOISE[point.seed] * (1.5 if "half" in point.id else 1.0)
        records.append(record(point, top1 + jitter, exaflops=1e-6 * flops, macs=int(1e6 * macs)))
    return definition, records


@pytest.mark.parametrize(
    ("gains", "advice"),
    [
        ({"data": 0.08, "time": 0.02, "size": 0.01}, "more data"),
        ({"data": 0.01, "time": 0.06, "size": 0.02}, "train longer"),
        ({"data": 0.01, "time": 0.02, "size": 0.07}, "larger model"),
    ],
)
def test_the_advice_is_what_brings_most_a_doubling(gains, advice):
    shown = show_scaling(*scaling(**gains), True)
    assert shown.facts["advice"] == advice
    assert shown.answer[0].startswith(f"{advice}: of ViT")
    brought = {one["way"]: one["mean"] for one in shown.facts["brings"]}
    # A model of four times the compute counts as two doublings.
    assert brought["larger model"] == pytest.approx(gains["size"], abs=0.003)
    assert brought["train longer"] == pytest.approx(gains["time"], abs=0.003)
    assert brought["more data"] == pytest.approx(gains["data"], abs=0.003)


def test_no_advice_where_nothing_helps():
    shown = show_scaling(*scaling(data=0.0, time=-0.02, size=-0.01), True)
    assert shown.answer[0].startswith("nothing that was tried helps for certain")


def test_what_is_sure_is_advised_before_what_chance_may_have_brought():
    definition, records = scaling(data=0.08, time=0.03, size=0.01)
    for one in records:  # the gain of more data hangs on the seed
        if "half" in one["id"]:
            one["metrics"]["top1"] += {0: -0.2, 1: 0.0, 2: 0.2}[one["seed"]]
    shown = show_scaling(definition, records, True)
    assert shown.facts["brings"][0]["way"] == "more data"
    assert shown.facts["advice"] == "train longer"


def test_one_seed_is_said_to_be_one():
    definition, records = scaling(data=0.08, time=0.03, size=0.01)
    shown = show_scaling(definition, [r for r in records if r["seed"] == 0], False)
    assert shown.facts["advice"] == "more data"
    assert shown.answer[0].endswith("by one seed, which says nothing of chance")
    three = show_scaling(definition, records, True)
    assert "one seed" not in three.answer[0]


def test_the_same_model_under_another_name_is_the_same_model_for_longer():
    definition = scaling_kind(
        Ask(preset="paper", models=(), seeds=2, train_images=1000, classes=10, side=28)
    )
    records = []
    for point in definition.points:
        longer = point.duration.startswith("14") and point.axes["data"] == "all"
        top1 = 0.5 + (point.axes["family"] == "ViT") * 0.1 + 0.2 * longer + 0.001 * point.seed
        macs = {"L/16": 4, "L/16 x2": 4, "H/14 x2": 4.1}.get(point.line, 1)
        flops = macs * (2 if longer else 1)
        records.append(record(point, top1, exaflops=flops, macs=macs))
    shown = show_scaling(definition, records, True)
    ways = {one["way"]: one for one in shown.facts["brings"]}
    assert (ways["train longer"]["from"], ways["train longer"]["to"]) == ("7 epochs", "14 epochs")
    assert ways["train longer"]["mean"] == pytest.approx(0.2)
    assert "train longer brings +20.00" in shown.answer[0]


def test_a_step_too_short_to_be_made_a_doubling_is_not_taken():
    """Two models nearly of one size, whose difference would count tenfold."""
    definition, records = scaling(data=0.01, time=0.02, size=0.01)
    twin = [
        {
            **one,
            "id": f"twin-{one['id']}",
            "config": {**one["config"], "line": "twin"},
            "metrics": {
                **one["metrics"],
                "macs": 1.05 * one["metrics"]["macs"],
                "exaflops": 1.05 * one["metrics"]["exaflops"],
                "top1": one["metrics"]["top1"] + 0.02,
            },
        }
        for one in records
        if one["config"]["line"] == "large" and "half" not in one["id"]
    ]
    shown = show_scaling(definition, [*records, *twin], True)
    ways = {one["way"]: one for one in shown.facts["brings"]}
    assert (ways["larger model"]["from"], ways["larger model"]["to"]) == ("small", "twin")
    assert ways["larger model"]["mean"] == pytest.approx(0.04 / math.log2(4.2), abs=0.003)


def families(count: int, flattered: str = "", **accuracies):
    """One-model families of so many durations: accuracy by place, for every seed."""
    rows = [
        {
            "id": f"{family}-{place}-{seed}",
            "line": family,
            "seed": seed,
            "axes": {"family": family, "duration": f"{100 * 2**place} examples", "data": "all"},
        }
        for family in accuracies
        for place in range(count)
        for seed in SEEDS
    ]
    definition = points("scaling", rows)
    records = []
    for point in definition.points:
        family, place, seed = point.id.split("-")
        top1 = accuracies[family](int(place)) + NOISE[int(seed)]
        val = top1 + (0.2 if point.id.startswith(flattered) and flattered else 0)
        flops = 1e-6 * 2 ** int(place)
        records.append(record(point, top1, exaflops=flops, val_top1=val, final_val_top1=val))
    return definition, records


def test_families_that_are_alike_are_still_resampled_apart():
    def rising(place):
        return 0.3 + 0.08 * place + 0.03 * (place % 2)

    shown = show_scaling(*families(6, one=rising, other=rising), True)
    one, other = shown.facts["laws"]["one"], shown.facts["laws"]["other"]
    assert one["exponent"] == other["exponent"]
    assert (one["low"], one["high"]) != (other["low"], other["high"])
    middle = shown.facts["ratios"][1]
    assert middle["ratio"] == pytest.approx(1)
    assert middle["low"] < 0.99 < 1.01 < middle["high"], "as drawn in pairs all of them were 1"
    assert "fitted front" in "".join(table.caption for table in shown.tables)
    drawn = {figure.name: figure for figure in shown.figures}["scaling-laws"].svg
    for compute in (1e-6, 32e-6):  # the least and the most that was measured
        error = one["scale"] * (compute / one["at_exaflops"]) ** -one["exponent"]
        assert f"{100 * (1 - error):.1f} % at {compute:.1e}" in drawn


def test_few_groups_have_a_law_and_no_interval():
    def rising(place):
        return 0.3 + 0.1 * place

    shown = show_scaling(*families(4, one=rising, other=lambda place: rising(place) - 0.05), True)
    assert shown.facts["laws"]["one"]["exponent"] > 0
    assert shown.facts["laws"]["one"]["low"] is None
    assert shown.facts["ratios"][0]["high"] is None
    assert "not told" in shown.tables[1].rows[0]
    assert "not told" in shown.tables[2].rows[0]
    assert "an interval takes 5 groups of each" in shown.answer[-1]


def test_the_front_is_one_of_validation_pictures():
    shown = show_scaling(
        *families(4, flattered="one-1", one=lambda place: 0.3 + 0.05 * place), True
    )
    durations = [one["duration"] for one in shown.facts["front"]]
    assert durations == ["100 examples", "200 examples"]


def test_ratios_are_of_accuracies_that_fronts_reach():
    # The last and longest of one is far below its front; it is not where a front begins.
    def falling(place):
        return (0.5, 0.6, 0.7, 0.8, 0.1)[place]

    shown = show_scaling(*families(5, one=falling, other=lambda place: 0.05 + 0.2 * place), True)
    assert min(one["accuracy"] for one in shown.facts["ratios"]) > 0.5


def test_the_front_leaves_out_what_costs_more_and_gives_less():
    shown = show_scaling(*scaling(data=0.05, time=0.05, size=-0.05), True)
    assert {one["line"] for one in shown.facts["front"]} == {"small"}
    rows = {(row[0], row[1]): row[-1] for row in shown.tables[0].rows}
    assert rows["small", "100 examples"] is True
    assert rows["large", "200 examples"] is False


def test_records_without_accuracy_are_told_not_drawn():
    definition, records = scaling(0.1, 0.1, 0.1)
    shown = show_scaling(definition, [{**r, "metrics": {"top1": None}} for r in records], True)
    assert shown.answer == ["No run has been measured on test pictures yet."]


def test_a_seed_that_failed_is_left_out_and_the_others_count():
    definition, records = scaling(0.08, 0.02, 0.01)
    lost = {"large-1-1", "small-0-0", "large-1-1-half"}
    failed = {"failed": "its numbers were no longer finite", "top1": None}
    broken = [{**r, "metrics": failed} if r["id"] in lost else r for r in records]
    shown = show_scaling(definition, broken, True)
    assert shown.facts["advice"] == "more data"
    seeds = {(row[0], row[1]): row[-2] for row in shown.tables[0].rows}
    assert seeds == {
        ("small", "100 examples"): 2,
        ("small", "200 examples"): 3,
        ("large", "100 examples"): 3,
        ("large", "200 examples"): 2,
    }


def sizes(small: float, large: float, noise: float = 1):
    """A CNN and a ViT at two sizes; the CNN is this much better at each."""
    rows, accuracies = [], []
    for (line, images), seed in itertools.product(
        (("CNN", 100), ("CNN", 1000), ("ViT", 100), ("ViT", 1000)), SEEDS
    ):
        id = f"{line}-{images}-{seed}"
        rows.append({"id": id, "line": line, "seed": seed, "axes": {"images": images}})
        ahead = (small if images == 100 else large) if line == "CNN" else 0.0
        accuracies.append(
            0.3
            + 0.2 * (images == 1000)
            + ahead
            # Of the ViT twice as large, and it differs from size to size.
            + noise * NOISE[(seed + (images == 1000)) % 3] * (1 + (line == "ViT"))
        )
    facts = {"mode": "fixed", "sizes": [100, 1000], "duration": "10 steps"}
    definition = points("data-size", rows, **facts)
    pairs = zip(definition.points, accuracies, strict=True)
    return definition, [record(point, top1) for point, top1 in pairs]


@pytest.mark.parametrize(
    ("small", "large", "noise", "how"),
    [
        (0.1, -0.05, 1, "the gap turns"),
        (0.1, 0.02, 1, "the gap closes"),
        (0.02, 0.1, 1, "the gap widens"),
        (0.001, -0.1, 1, "the gap widens, in favour of ViT"),
        # With such noise none of these is more than chance.
        (0.1, -0.05, 40, "no change of the gap is told apart"),
        (0.1, 0.02, 40, "no change of the gap is told apart"),
        (0.02, 0.1, 40, "no change of the gap is told apart"),
    ],
)
def test_the_gap_does_what_its_interval_is_sure_of(small, large, noise, how):
    shown = show_sizes(*sizes(small, large, noise), True)
    gap = next(sentence for sentence in shown.answer if "against" in sentence)
    assert gap.endswith(f"; {how}.")
    assert gap.startswith("CNN against ViT: ")
    assert shown.answer[0].startswith(("With 100 pictures CNN leads", "With 100 pictures CNN has"))
    table = shown.tables[0]
    assert [row[0] for row in table.rows] == ["CNN", "ViT"]
    assert "±" in table.rows[0][1]


def test_one_seed_tells_no_change_of_a_gap():
    definition, records = sizes(0.1, -0.05)
    shown = show_sizes(definition, [r for r in records if r["seed"] == 0], False)
    assert next(s for s in shown.answer if "against" in s).endswith(
        "no change of the gap is told apart."
    )


def test_means_stand_alone_without_intervals():
    shown = show_sizes(*sizes(0.1, 0.1), False)
    assert "±" not in shown.tables[0].rows[0][1]


def test_who_leads_is_said_only_where_seeds_agree():
    def runs(values):
        return [
            {"id": str(k), "config": {}, "seed": k, "metrics": {"top1": value}}
            for k, value in enumerate(values)
        ]

    def said(**groups):
        means = {name: sum(r["metrics"]["top1"] for r in g) / len(g) for name, g in groups.items()}
        return lead_in_words(max(means, key=means.get), means, groups, "top1")

    sure = {"one": runs([0.50, 0.51, 0.52]), "other": runs([0.30, 0.31, 0.33])}
    assert said(**sure) == "one leads, with 51.00 %"
    tie = {"one": runs([0.5, 0.3, 0.4]), "other": runs([0.3, 0.5, 0.39])}
    assert said(**tie) == "one has the most, 40.00 %, not told apart from other"


def test_one_model_alone_is_told_what_it_reaches():
    _, records = sizes(0.1, 0.02)
    alone = [one for one in records if one["config"]["line"] == "CNN"]
    said, compared = answer_of(
        ["CNN"], [100, 1000], {("CNN", 100, None): alone[:3], ("CNN", 1000, None): alone[3:]}, None
    )
    assert said[0].startswith("CNN: ")
    assert " with 100 pictures, " in said[0]
    assert said[0].endswith(" with 1,000 pictures.")
    assert not compared


def test_the_page_shows_the_validation_accuracy_of_what_was_measured():
    def row(which, **metrics):
        return {"config": {"which": which}, "metrics": metrics}

    looked = {"val_top1": 0.9, "final_val_top1": 0.2}
    assert _validation(row("final", **looked)) == 0.2, "as trials are chosen"
    assert _validation(row("best", **looked)) == 0.9
    assert _validation(row("final", val_top1=0.5)) == 0.5
    assert _validation(row("final")) is None
