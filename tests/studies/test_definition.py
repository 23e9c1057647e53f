"""Definitions: their hash, what they refuse, and models as the command line gives them."""

import pytest

from vitrail.kit.errors import Error
from vitrail.studies.ablation import define as ablation
from vitrail.studies.data_size import define as data_size
from vitrail.studies.definition import Ask, Definition, Point, candidate, from_json
from vitrail.studies.presets import DATA_SIZE, SCALING
from vitrail.studies.scaling import define as scaling
from vitrail.studies.scaling import macs_of
from vitrail.studies.search import define as search
from vitrail.studies.study import length_of

ASK = Ask(train_images=1000, classes=10, side=28, seeds=2)


def point(id: str = "a", **fields) -> Point:
    return Point(**{"id": id, "line": "ViT", "model": "vit_nano_patch7_28", **fields})


def test_a_definition_survives_json_and_its_hash_sees_every_field():
    whole = Definition(kind="x", points=(point(), point("b", choose=("a",), axes={"x": 1})))
    again = from_json(whole.to_json())
    assert again.sha256 == whole.sha256
    assert again.points[1].choose == ("a",)
    for changed in (
        Definition(kind="y", points=whole.points),
        Definition(kind="x", points=whole.points, shots=(5,)),
        Definition(kind="x", points=(point(seed=1), whole.points[1])),
        Definition(kind="x", points=(point(settings={"optim.lr": 0.1}), whole.points[1])),
    ):
        assert changed.sha256 != whole.sha256


def test_a_run_is_listed_once_and_after_what_it_needs():
    with pytest.raises(Error, match="two runs of the study are the same: a"):
        Definition(kind="x", points=(point(), point()))
    with pytest.raises(ValueError, match="b needs a"):
        Definition(kind="x", points=(point("b", start="a"), point()))
    with pytest.raises(Error, match="a study of no runs"):
        Definition(kind="x", points=())


def test_a_model_is_read_with_its_changes():
    found = candidate("small=B/16:width=96:heads=3:optim.lr=0.002:ema=none")
    assert (found.label, found.model) == ("small", "vit_base_patch16_224")
    assert found.config == {"width": 96, "heads": 3}
    assert found.settings == {"optim.lr": 0.002, "ema": None}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("vit_base_patch16:widht=96", "did you mean 'width'"),
        ("vit_base_patch16:width", "has no value"),
        ("vit_bsae_patch16", "did you mean"),
    ],
)
def test_a_mistake_in_a_model_is_named(words, said):
    with pytest.raises(Error, match=said):
        candidate(words)


def test_data_size_refuses_what_cannot_be():
    with pytest.raises(Error, match="5000: the data have 1,000 pictures"):
        data_size(ASK.replace(sizes=(5000,)))
    with pytest.raises(Error, match="--mode of data-size is fixed or tuned"):
        data_size(ASK.replace(mode="tuend"))
    with pytest.raises(Error, match="data-size has no preset 'pgae'; did you mean 'page'"):
        data_size(ASK.replace(preset="pgae"))
    with pytest.raises(Error, match="two models are called A"):
        data_size(ASK.replace(models=("A=B/16", "A=B/32")))
    with pytest.raises(Error, match="--sizes belongs to data-size"):
        scaling(ASK.replace(sizes=(100,)))
    with pytest.raises(Error, match="data-size chooses by validation pictures, and there are none"):
        data_size(ASK.replace(validation=0))
    for define, kind in ((data_size, "data-size"), (scaling, "scaling")):
        with pytest.raises(Error, match=f"{kind} is measured on test pictures, and the data have"):
            define(ASK.replace(test=0))


def test_scaling_leaves_half_of_the_pictures_out_where_they_are_too_few():
    ask = Ask(models=("vit_mu_patch7_28",), seeds=1, classes=10, side=28, durations=("9 steps",))
    halves = [
        [p.images for p in scaling(ask.replace(train_images=n)).points if p.axes["data"] == "half"]
        for n in (20, 19)
    ]
    assert halves == [[10], []]


@pytest.mark.parametrize(
    ("durations", "longest"),
    [
        (("9 epochs", "10 epochs"), "20 epochs"),  # from half of the pictures
        (("10 epochs", "9 epochs"), "20 epochs"),
        (("9 steps", "2 epochs"), "4 epochs"),
    ],
)
def test_half_of_the_pictures_are_left_out_for_the_longest_duration(durations, longest):
    ask = ASK.replace(models=("vit_mu_patch7_28",), seeds=1, durations=durations)
    (half,) = (point for point in scaling(ask).points if point.axes["data"] == "half")
    assert half.duration == longest


def test_a_duration_keeps_all_its_digits():
    length = length_of("1234567examples")
    assert length == "1234567 examples"
    ask = Ask(models=("vit_mu_patch7_28",), seeds=1, train_images=100, classes=10, side=28)
    (point, _) = scaling(ask.replace(durations=(length,))).points
    assert point.duration == "1234567 examples"


@pytest.mark.parametrize("define", [data_size, scaling])
@pytest.mark.parametrize(
    ("words", "flag", "home"),
    [
        ({"axes": ("depth",)}, "--axis", "ablation"),
        ({"changes": ("a:depth=2",)}, "--change", "ablation"),
        ({"samples": 4}, "--samples", "search"),
        ({"limit": 1e6}, "--max-macs", "search"),
    ],
)
def test_a_flag_of_another_kind_is_refused(define, words, flag, home):
    with pytest.raises(Error, match=f"has no {flag}: leave it out, it belongs to {home}"):
        define(ASK.replace(models=("vit_mu_patch7_28",), **words))


def test_no_flag_and_no_setting_is_passed_over():
    with pytest.raises(Error, match="scaling has no --mode"):
        scaling(ASK.replace(mode="tuned"))
    for define in (data_size, scaling):
        with pytest.raises(Error, match=r"--set duration .* takes --durations instead"):
            define(ASK.replace(settings={"duration": "3 epochs"}))


def test_what_the_user_set_is_not_tuned():
    words = {"mode": "tuned", "sizes": (100,), "seeds": 1}
    settings = {"optim.weight_decay": "0.2", "optim.lr": "0.002", "target.mixup": "0.5"}
    made = data_size(ASK.replace(**words, models=("B/16",), settings=settings)).points
    *trials, learned, tuned = made
    assert len(trials) == 2 * 2
    for one in (*trials, learned):
        assert one.settings["optim.weight_decay"] == "0.2"
        assert one.settings["optim.lr"] == "0.002"
    assert tuned.settings["target.mixup"] == "0.5"
    assert tuned.settings["optim.lr"] == 0.01, "its optimizer is its own"
    assert "optim.weight_decay" not in tuned.settings
    with_dropout = data_size(ASK.replace(**words, models=("A=B/16:dropout=0.3",))).points
    assert len(with_dropout) == 3 * 2 + 2
    every = {"optim.weight_decay": 0, "model.dropout": 0, "target.label_smoothing": 0}
    with pytest.raises(Error, match="nothing left to choose for B/16"):
        data_size(ASK.replace(**words, models=("B/16",), settings=every))


def test_the_tuned_mode_chooses_for_each_model_and_size_and_then_fine_tunes():
    made = data_size(ASK.replace(mode="tuned", sizes=(100, 1000), models=("A=B/16", "B=R50x1")))
    trials = [p for p in made.points if p.role == "trial"]
    # Three decays, two dropouts, two smoothings; a BiT ResNet has no dropout.
    assert len([p for p in trials if p.line == "A"]) == 2 * 12
    assert len([p for p in trials if p.line == "B"]) == 2 * 6
    tuned = [p for p in made.points if p.start is not None]
    assert len(tuned) == 2 * 2 * 2
    by_id = {p.id: p for p in made.points}
    for one in tuned:
        learned = by_id[one.start]
        assert {by_id[id].images for id in learned.choose} == {one.images}
        assert one.image_size > learned.image_size
        assert not set(learned.settings) & set(by_id[learned.choose[0]].axes)


def test_the_papers_eighteen_models_keep_their_proportions():
    preset = SCALING.get("paper")
    models = {one.label: one for one in map(candidate, preset.models)}
    assert len(models) == 18
    macs = {label: macs_of(one, 32) for label, one in models.items()}
    # Table 6 orders models of one length by compute: B/32 < L/32 < B/16 < L/16 < H/14.
    assert macs["B/32"] < macs["L/32"] < macs["B/16"] < macs["L/16"] < macs["H/14 x2"]
    assert macs["R50x1"] < macs["R101x1"] < macs["R152x1"] < macs["R152x2"] < macs["R200x3 x2"]
    assert macs["R50x1"] < macs["R50x2"] < macs["R152x2"]
    made = scaling(ASK.replace(preset="paper", seeds=1))
    lengths = {p.line: p.duration for p in made.points if p.axes["data"] == "all"}
    assert lengths["L/16"] == "7 epochs"
    assert lengths["L/16 x2"] == "14 epochs"


def test_what_the_user_gives_wins_over_the_preset():
    applied = DATA_SIZE.applied(ASK.replace(preset="quick", sizes=(50,), seeds=3))
    assert (applied.sizes, applied.seeds) == ((50,), 3)
    assert applied.batch_size == 32
    assert len(applied.models) == 2
    rates = {"optim.lr": 0.01}
    theirs, ours = (
        data_size(ASK.replace(preset="page", sizes=(50,), settings=given)) for given in ({}, rates)
    )
    assert {point.settings["optim.lr"] for point in theirs.points} == {0.001, 0.002, 0.004}
    assert {point.settings["optim.lr"] for point in ours.points} == {0.01}


@pytest.mark.parametrize("name", ["pvt_tiny", "pvt_v2_b0", "t2t_vit_7", "botnet50_224", "cvt_13"])
@pytest.mark.parametrize("side", [28, 50])
def test_every_family_takes_the_size_that_small_pictures_get(name, side):
    (point, *_) = scaling(ASK.replace(models=(name,), side=side, durations=("9 steps",))).points
    assert abs(point.image_size - side) <= 4


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (data_size, {}),
        (scaling, {}),
        (ablation, {"axes": ("pooling",)}),
        (search, {"models": ("cvt_13_224",), "limit": 1e12, "samples": 1}),
    ],
)
def test_small_pictures_are_not_enlarged_to_a_large_models_own_size(kind, words):
    ask = ASK.replace(models=("vit_tiny_patch16_224",), side=30, durations=("10 steps",))
    assert {point.image_size for point in kind(ask.replace(**words)).points} == {32}  # the nearest
    asked = kind(ask.replace(image_size=64, **words))
    assert {point.image_size for point in asked.points} == {64}
    large = kind(ask.replace(side=300, **words))
    assert {point.image_size for point in large.points} == {None}
