"""Data in other classes than the model's: ImageNet's relatives, and maps."""

import json
from types import SimpleNamespace

import pytest
import torch

from tests.evaluation.test_accuracy import ReadsItsAnswer, batches_of
from vitrail.evaluation.accuracy import evaluate
from vitrail.evaluation.imagenet import wnids
from vitrail.evaluation.subsets import Among, imagenet_groups, read_class_map
from vitrail.kit.errors import Error


def of_imagenet(labels=None):
    return SimpleNamespace(num_classes=1000, labels=labels)


def test_the_list_is_imagenets():
    ids = wnids()
    assert len(ids) == len(set(ids)) == 1000
    assert list(ids) == sorted(ids)
    # Places that every list of ImageNet's classes has: tench, Egyptian cat, toilet tissue.
    assert (ids[0], ids[285], ids[999]) == ("n01440764", "n02124075", "n15075141")


def test_wordnet_ids_are_known_alone_or_before_a_word():
    groups, said = imagenet_groups(["n02124075", "n01440764_tench"], of_imagenet())
    assert groups == [[285], [0]]
    assert "among these 2 only" in said
    groups, said = imagenet_groups(sorted(wnids(), reverse=True), of_imagenet(["x"] * 1000))
    assert groups == [[999 - k] for k in range(1000)]
    assert "only" not in said


def test_imagenet_v2s_folders_are_numbers_that_sort_otherwise():
    classes = sorted(map(str, range(1000)))
    assert classes[2] == "10"
    groups, _ = imagenet_groups(classes, of_imagenet())
    assert [group[0] for group in groups] == [int(name) for name in classes]


def test_a_models_own_names_come_first():
    mixed = list(wnids()[::-1])
    assert imagenet_groups(wnids(), of_imagenet(mixed)) is None
    groups, _ = imagenet_groups([wnids()[0]], of_imagenet(mixed))
    assert groups == [[999]]


def test_other_classes_are_left_alone_and_strangers_named():
    assert imagenet_groups(["cat", "dog"], of_imagenet()) is None
    assert imagenet_groups(["0", "1"], of_imagenet()) is None
    assert imagenet_groups(["n01440764"], SimpleNamespace(num_classes=10, labels=None)) is None
    with pytest.raises(Error, match=r"1 of the data's 2 classes .* n99999999"):
        imagenet_groups(["n01440764", "n99999999"], of_imagenet())


def test_only_the_subsets_logits_count():
    """The convention of ImageNet-A and -R."""
    model = ReadsItsAnswer(["ash", "birch", "cedar", "elm"])
    pixels, labels = [[9, 5, 7, 99], [9, 5, 1, 99]], [0, 1]
    view = Among(model, [[2], [0]], ["cedar", "ash"])
    found = evaluate(view, batches_of(pixels, labels), ["cedar", "ash"])
    assert found.classes == ("cedar", "ash")
    assert found.predictions.tolist() == [1, 1]
    assert found.confusion.tolist() == [[0, 1], [0, 1]]
    whole = evaluate(model, batches_of(pixels, [2, 0]), ["ash", "birch", "cedar", "elm"])
    assert whole.top1 == 0
    assert found.top1 == 0.5


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_a_group_has_the_probability_of_its_members_together(temperature):
    model = ReadsItsAnswer(["ash", "birch", "cedar", "elm"]).eval().requires_grad_(False)
    view = Among(model, [[0, 3], [1, 2]], ["a", "b"], temperature)
    images = torch.tensor([[12.0, 34, 56, 7]])[:, None, None]
    with torch.inference_mode():
        parts, together = ((one(images) / temperature).softmax(1)[0] for one in (model, view))
        assert torch.equal(view.features(images), model.features(images))
    assert together.tolist() == pytest.approx(
        [float(parts[0] + parts[3]), float(parts[1] + parts[2])]
    )


def test_a_view_leaves_its_model_in_the_mode_it_was_in():
    model = ReadsItsAnswer(["ash", "birch"]).train()
    view = Among(model, [[1], [0]], ["b", "a"])
    evaluate(view, batches_of([[9, 5]], [0]))
    assert model.training


def test_maps_by_name_number_and_lists(tmp_path):
    model = ReadsItsAnswer(["ash", "birch", "cedar", "elm"])
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"a": "ash", "b": [3, "cedar"], "unused": "birch"}))
    assert read_class_map(path, ["b", "a"], model) == [[2, 3], [0]]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"a": "ash"}, r"1 of the data's 2 classes are not in the map: b"),
        ({"a": "ash", "b": "brich"}, r"'brich', which is neither .* did you mean 'birch'"),
        ({"a": "ash", "b": 4}, "number from 0 to 3"),
        ({"a": "ash", "b": []}, "mapped to nothing"),
        ({"a": "ash", "b": ["elm", 0]}, "both 'a' and 'b' are mapped to the model's class 0"),
        ([["a", "ash"]], "JSON object"),
        ("{", "not a JSON file"),
    ],
)
def test_a_map_that_does_not_fit_is_said(tmp_path, content, sentence):
    path = tmp_path / "map.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(Error, match=sentence):
        read_class_map(path, ["a", "b"], ReadsItsAnswer(["ash", "birch", "cedar", "elm"]))


def test_no_map_there(tmp_path):
    with pytest.raises(Error, match="cannot be read"):
        read_class_map(tmp_path / "none.json", ["a"], ReadsItsAnswer(["ash", "birch"]))
