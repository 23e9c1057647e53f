"""Ablations: what is changed and what stays, and what is made of the records."""

import json
import math

import pytest

from vitrail.kit.errors import Error
from vitrail.models.base import checked_config
from vitrail.models.zoo import FAMILIES, resolve
from vitrail.studies.ablation import KIND, define
from vitrail.studies.comparisons import COMPARISONS
from vitrail.studies.definition import Ask, from_json
from vitrail.studies.effects import show
from vitrail.studies.kinds import find_kind

ASK = Ask(seeds=3, train_images=54_000, classes=10, side=28, durations=("100 steps",))


def asked(*axes, **words):
    return define(ASK.replace(axes=axes, **words))


def config_of(point):
    """The whole config of a run's model."""
    entry = resolve(point.model)[1]
    fields = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in {**entry.config, **point.config}.items()
    }
    return checked_config(FAMILIES[entry.family][0], fields)


def differences(one, other):
    """What two runs differ in: config fields by name, settings with their dots, and what else."""
    first, second = config_of(one), config_of(other)
    found = {
        name for name in first.__dataclass_fields__ if getattr(first, name) != getattr(second, name)
    }
    found |= {
        key
        for key in {*one.settings, *other.settings}
        if one.settings.get(key, "recipe's") != other.settings.get(key, "recipe's")
    }
    told = (one.to_json(), other.to_json())
    rest = set(told[0]) - {"id", "line", "axes", "config", "settings"}
    return found | {key for key in rest if told[0][key] != told[1][key]}


@pytest.mark.parametrize("side", [28, 32, 224])
@pytest.mark.parametrize("name", COMPARISONS)
def test_nothing_differs_but_what_is_compared(name, side):
    comparison, definition = COMPARISONS[name], asked(name, side=side)
    by_id = {point.id: point for point in definition.points}
    (told,) = definition.facts["comparisons"]
    baseline, *others = told["variants"]
    assert len(others) >= 1
    base = by_id[next(iter(baseline["rates"].values()))[0]]
    allowed = {"start" if field == "pretrained" else field for field in comparison.fields}
    single = set()
    for variant in others:
        for ids in variant["rates"].values():
            points = [by_id[id] for id in ids]
            assert [point.seed for point in points] == [0, 1, 2]
            changed = differences(base, points[0]) - {"optim.lr"}
            assert changed, variant["label"]
            assert changed <= allowed, variant["label"]
            assert all(differences(points[0], point) <= {"seed", "start"} for point in points)
        single |= changed if len(changed) == 1 else set()
    assert single, "a variant changes one thing alone"
    assert single == allowed or name in ("botnet",), "without attention there is no position"
    assert definition.sha256 == asked(name, side=side).sha256
    assert from_json(definition.to_json()).to_json() == definition.to_json()


def test_every_variant_of_a_sweep_has_as_many_rates():
    for name in ("pooling", "optimizer", "self_supervised"):
        (told,) = asked(name).facts["comparisons"]
        assert len({len(variant["rates"]) for variant in told["variants"]}) == 1
        assert len(told["variants"][0]["rates"]) >= 3


def test_optimizers_decay_weights_alike():
    points = asked("optimizer").points
    assert {point.settings["optim.decay"] for point in points} == {"independent"}
    (decay,) = {point.settings["optim.weight_decay"] for point in points}
    assert decay == pytest.approx(0.05 * 1e-3)  # the recipe's, at its own rate


def test_the_position_table_has_the_papers_cells():
    (told,) = asked("position").facts["comparisons"]
    cells = {tuple(variant["cell"]): variant["published"] for variant in told["variants"]}
    assert cells["none", "stem"] == 0.61382
    assert cells["2-D", "every layer"] == 0.64046
    assert len([value for value in cells.values() if value]) == 8
    baseline = told["variants"][0]
    assert baseline["cell"] == ["1-D", "stem"]


def test_baselines_of_several_comparisons_are_one_run():
    together = asked("depth", "width", "patch", "pooling")
    apart = [asked(name) for name in ("depth", "width", "patch", "pooling")]
    assert len(together.points) == sum(len(one.points) for one in apart) - 3 * ASK.seeds
    titles = [told["title"] for told in together.facts["comparisons"]]
    assert titles == ["depth", "width", "patch", "pooling"]


def test_before_the_labels_come_other_pictures_and_the_same_model():
    definition = asked("self_supervised", durations=("100 steps", "7 epochs"), seeds=2)
    by_id = {point.id: point for point in definition.points}
    runs = [point for point in definition.points if point.role == "run"]
    befores = [point for point in definition.points if point.role == "trial"]
    assert {point.images for point in definition.points} == {5400}
    assert {point.recipe for point in befores} == {"masked_patch", "mae", "scratch"}
    assert all(point.rest and not point.test for point in befores)
    assert not any(point.rest for point in runs)
    assert {point.duration for point in befores} == {"7 epochs"}
    assert {(point.recipe, point.duration) for point in runs} == {("scratch", "100 steps")}
    for point in runs:
        if point.start is not None:
            before = by_id[point.start]
            assert before.seed == point.seed
            fields = differences(before, point) - {"optim.lr"}
            extra = {field for field in fields if field.startswith("masked.")}
            assert fields - extra <= {
                *("rest", "recipe", "duration", "role", "test", "start", "batch_size"),
            }


def test_own_changes_from_words_and_from_a_file(tmp_path):
    path = tmp_path / "more.json"
    path.write_text(json.dumps({"wide": {"model.width": 192, "optim.lr": 3e-4}}))
    definition = asked(changes=("deep:depth=8", "slow: optim.lr=1e-4 ema=none", str(path)), seeds=1)
    base, deep, slow, wide = definition.points
    assert [point.axes["variant"] for point in definition.points] == [
        *("as it is", "deep", "slow", "wide"),
    ]
    assert differences(base, deep) == {"depth"}
    assert differences(base, slow) == {"optim.lr", "ema"}
    assert differences(base, wide) == {"width", "optim.lr"}
    assert wide.axes["rate"] == 3e-4
    lists = asked(changes=("strides:kv_strides=[1,2,2]",), models=("cvt_13_28",), seeds=1)
    assert lists.points[1].config["kv_strides"] == [1, 2, 2]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ({}, "takes --axis, one or several of pooling"),
        ({"axes": ("poolings",)}, "did you mean 'pooling'"),
        ({"axes": ("depth",), "models": ("cvt_13_28",)}, "cvt_13_28 is of cvt: leave --models out"),
        (
            {"axes": ("depth",), "models": ("vit_nano_patch4_28", "cvt_13_28")},
            "no comparison that was asked for can be put to cvt_13_28",
        ),
        ({"axes": ("depth",), "sizes": (100, 200)}, "give one of --sizes"),
        ({"axes": ("depth",), "durations": ("1 steps",) * 3}, "a second one for pre-training"),
        ({"axes": ("depth",), "mode": "tuned"}, "ablation has no --mode"),
        ({"axes": ("depth",), "samples": 4}, "ablation has no --samples"),
        ({"changes": ("deep",)}, "write LABEL:KEY=VALUE"),
        ({"changes": ("depth=2",)}, "write LABEL:KEY=VALUE"),
        ({"changes": ("a:dept=2",)}, "did you mean 'depth'"),
        ({"changes": ("a:optim.rate=2",)}, "unknown setting 'optim.rate'"),
        ({"changes": ("a:pool=tokens",)}, "did you mean 'token'"),
        ({"changes": ("nowhere.json",)}, "nowhere.json cannot be read"),
        ({"changes": ("a:depth=2", "a:depth=3")}, "there is a variant 'a' already"),
        ({"changes": ("as it is:depth=2",)}, "there is a variant 'as it is' already"),
        ({"axes": ("depth",), "sizes": (5,)}, "there are 10 classes, and each needs a picture"),
        ({"axes": ("depth",), "sizes": (-60,)}, "there are 10 classes, and each needs a picture"),
        ({"axes": ("pooling",), "validation": 0}, "pooling chooses by validation pictures"),
        (
            {"axes": ("self_supervised",), "sizes": (54_000,)},
            "54,000 are all: give fewer",
        ),
        ({"axes": ("self_supervised",), "train_images": 10}, "and 10 are all: give fewer"),
        (
            {"axes": ("width",), "models": ("vit_nano_patch4_28:heads=32",)},
            "32 heads do not divide a width of 48",
        ),
    ],
)
def test_what_cannot_be_asked(words, sentence):
    with pytest.raises(Error, match=sentence):
        define(ASK.replace(**words))


def test_a_label_of_a_file_is_not_written_over(tmp_path):
    path = tmp_path / "more.json"
    path.write_text('{"deep": {"depth": 8}}')
    with pytest.raises(Error, match=r"more\.json: there is a variant 'deep' already"):
        asked(changes=("deep:depth=2", str(path)))


def test_labels_that_no_folder_can_tell_apart_are_runs_of_their_own():
    definition = asked(changes=("λ:optim.lr=1e-4", "μ:optim.lr=1e-2", "a b:depth=2", "a_b:depth=3"))
    variants = definition.facts["comparisons"][0]["variants"]
    by_id = {point.id: point for point in definition.points}
    assert len(by_id) == 5 * ASK.seeds
    for variant, rate, depth in zip(
        variants, (None, 1e-4, 1e-2, None, None), (None, None, None, 2, 3), strict=True
    ):
        for id in next(iter(variant["rates"].values())):
            assert by_id[id].axes["variant"] == variant["label"]
            assert by_id[id].settings.get("optim.lr") == rate
            assert by_id[id].config.get("depth") == depth


def test_without_validation_a_comparison_that_sweeps_nothing_is_done():
    assert asked("depth", validation=0).points


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"a": 3}'])
def test_a_file_of_changes_that_is_none(tmp_path, content):
    path = tmp_path / "changes.json"
    path.write_text(content)
    with pytest.raises(Error, match=r"changes\.json"):
        asked(changes=(str(path),))


# -------------------------------------------------------------------------------------------------
# What is shown


def records_of(definition, accuracy):
    """Records as a study leaves them, with accuracies by a rule: (val, test) of a point."""
    found = []
    for point in definition.points:
        val, test = accuracy(point)
        metrics = {"final_val_top1": val, "top1": test, "parameters": 1000, "macs": 2e6}
        found.append(
            {"id": point.id, "config": point.to_json(), "seed": point.seed, "metrics": metrics}
        )
    return found


RATES = {  # by variant and rate: validation, test. Test would choose other rates.
    ("class token", 3e-4): (0.60, 0.90),
    ("class token", 1e-3): (0.70, 0.50),
    ("class token", 3e-3): (0.65, 0.90),
    ("mean", 3e-4): (0.71, 0.52),
    ("mean", 1e-3): (0.50, 0.40),
    ("mean", 3e-3): (0.40, 0.95),
    ("attention", 3e-4): (0.30, 0.30),
    ("attention", 1e-3): (0.30, 0.30),
    ("attention", 3e-3): (0.80, 0.60),
}
BY_SEED = {"class token": (0.0, 0.10, 0.20), "mean": (0.01, 0.10, 0.19), "attention": (0.0,) * 3}


def planted(point):
    val, test = RATES[point.axes["variant"], round(point.axes["rate"], 6)]
    return val, test + BY_SEED[point.axes["variant"]][point.seed]


def test_rates_are_chosen_on_validation_and_differences_paired_by_seed():
    definition = asked("pooling")
    shown = show(definition, records_of(definition, planted), True)
    token, mean, attention = shown.facts["pooling"]
    assert [row["rate"] for row in (token, mean, attention)] == [1e-3, 3e-4, 3e-3]
    assert token["accuracy"]["mean"] == pytest.approx(0.6)
    assert mean["accuracy"]["mean"] == pytest.approx(0.62)
    # Seed by seed 0.03, 0.02 and 0.01, though each spreads over 0.2: t of 2 degrees is 4.3027.
    half = 4.302653 * 0.01 / math.sqrt(3)
    assert mean["difference"]["mean"] == pytest.approx(0.02)
    assert mean["difference"]["high"] - mean["difference"]["mean"] == pytest.approx(half, rel=1e-4)
    assert mean["verdict"] == "not told apart"
    assert attention["difference"]["mean"] == pytest.approx(0.0)
    rows = {row[0]: row for row in shown.tables[0].rows}
    assert rows["mean"][3] == "+2.00 ± 2.48"
    assert rows["class token"][4] == "the baseline"
    sentence = next(line for line in shown.answer if line.startswith("mean against"))
    assert "each at its own rate (0.0003 and 0.001); both at 0.001 it would be -10.00" in sentence
    assert {figure.name for figure in shown.figures} == {
        "ablation-pooling-rates",
        "ablation-pooling-differences",
    }


def test_a_rate_at_the_end_of_the_sweep_is_said_to_be_there():
    definition = asked("pooling")
    shown = show(definition, records_of(definition, planted), True)
    assert shown.answer[-1].endswith("find a better one: mean (0.0003), attention (0.003).")
    assert "bands are 95 % t intervals" in shown.figures[0].caption
    one = asked("pooling", seeds=1)
    shown = show(one, records_of(one, planted), False)
    assert all("95 %" not in figure.caption for figure in shown.figures)
    inner = asked("depth")
    shown = show(inner, records_of(inner, lambda point: (0.5, 0.5)), True)
    assert not any("sweep" in sentence for sentence in shown.answer)


def test_a_rate_at_which_a_seed_diverged_is_not_chosen():
    definition = asked("pooling")
    records = records_of(definition, planted)
    for record in records:
        axes = record["config"]["axes"]
        if axes["variant"] == "mean" and axes["rate"] == 3e-4 and record["seed"] == 1:
            record["metrics"] = {"failed": "its numbers were no longer finite", "top1": None}
    rates = {
        row["variant"]: row["rate"] for row in show(definition, records, True).facts["pooling"]
    }
    assert rates == {"class token": 1e-3, "mean": 1e-3, "attention": 3e-3}


def test_where_every_rate_lost_a_seed_the_one_with_most_of_them_counts():
    definition = asked("pooling")
    records = records_of(definition, planted)
    lost = {1e-4: {0}, 3e-4: {1, 2}, 1e-3: {2}, 3e-3: {0, 1, 2}}
    for record in records:
        axes = record["config"]["axes"]
        rate = round(axes["rate"], 6)
        if axes["variant"] == "mean" and record["seed"] in lost.get(rate, {0, 1, 2}):
            record["metrics"] = {"failed": "its numbers were no longer finite", "top1": None}
    shown = show(definition, records, True)
    _, mean, _ = shown.facts["pooling"]
    assert mean["rate"] == 1e-3, "3e-4 has the best figure, of the one seed that came through"
    assert mean["accuracy"]["n"] == 2
    assert {row[0]: row[-1] for row in shown.tables[0].rows}["mean"] == 2


def test_rates_are_chosen_by_the_weights_that_are_tested():
    definition = asked("pooling")
    records = records_of(definition, planted)
    for record in records:
        best = record["metrics"]["val_top1"] = record["metrics"]["final_val_top1"]
        record["metrics"]["final_val_top1"] = best - (record["config"]["axes"]["rate"] > 5e-4)
    rates = {r["variant"]: r["rate"] for r in show(definition, records, True).facts["pooling"]}
    assert all(rate <= 5e-4 for rate in rates.values())


def test_a_difference_that_is_sure_is_called_so():
    definition = asked("cvt_kv_stride")
    better = {"stride 2": 0.0, "stride 1": 0.05, "stride 4": -0.05}

    def accuracy(point):
        own = better[point.axes["variant"]] + 0.001 * point.seed * (point.seed - 1)
        return own + 0.5, own + 0.6 + 0.1 * point.seed

    shown = show(definition, records_of(definition, accuracy), True)
    verdicts = {row["variant"]: row["verdict"] for row in shown.facts["cvt_kv_stride"]}
    assert verdicts == {"stride 2": None, "stride 1": "better", "stride 4": "worse"}
    assert "published" in shown.tables[0].columns
    assert [row[4] for row in shown.tables[0].rows] == ["81.6", "82.3", None]


def test_the_position_table_in_the_papers_form():
    definition = asked("position", seeds=1)
    shown = show(definition, records_of(definition, lambda point: (0.5, 0.25)), False)
    _, crossed = shown.tables
    assert crossed.columns[1:] == ["stem", "every layer", "every layer, shared"]
    rows = {row[0]: row[1:] for row in crossed.rows}
    assert rows["1-D"] == ["25.00"] * 3
    assert rows["relative"] == ["25.00", None, None]


def test_a_study_that_is_not_done_or_diverged_is_shown_as_far_as_it_is():
    definition = asked("pooling", "depth")
    assert "No run" in show(definition, [], True).answer[0]
    records = records_of(definition, lambda point: (0.5, 0.5))
    records = [
        {**record, "metrics": {"failed": "not finite", "top1": None}}
        if record["config"]["axes"].get("variant") == "mean"
        else record
        for record in records
        if record["seed"] == 0
    ]
    shown = show(definition, records, True)
    rows = {row[0]: row for row in shown.tables[0].rows}
    assert rows["mean"][2:4] == [None, None]
    assert rows["class token"][2] == "50.00"
    assert "ablation-shape" in {figure.name for figure in shown.figures}


def test_without_test_pictures_validation_is_shown_and_said():
    definition = asked("depth", seeds=2)
    shown = show(definition, records_of(definition, lambda point: (0.5, None)), True)
    assert shown.tables[0].columns[1] == "validation accuracy, %"


def test_kinds_are_known_by_their_names():
    assert find_kind("ablation") is KIND
    assert find_kind("search").name == "search"
