"""`vitrail inspect` from end to end: its files, its page and its sentences."""

import json
import shutil
import xml.etree.ElementTree as ElementTree
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.commands import call
from tests.conftest import randomise
from tests.kit.reading import check_readable, check_self_contained, read
from vitrail import create_model, save_model

SIZES = {
    "vit": (
        "vit_tiny_patch16_224",
        {"depth": 2, "width": 24, "heads": 3, "mlp_width": 32, "patch_size": 8},
    ),
    "cvt": ("cvt_13_224", {"depths": (1, 1, 2), "widths": (16, 32, 32), "heads": (1, 2, 4)}),
    "bit": ("resnetv2_50x1_bit", {"depths": (1, 1), "widths": (128, 128), "stem_width": 32}),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, (known, config) in SIZES.items():
        model = create_model(known, num_classes=3, image_size=32, **config)
        randomise(model)
        save_model(model, folder / name, labels=["cat", "dog", "<b>"])
    nano = create_model("vit_nano_patch7_28", num_classes=3)
    randomise(nano)
    save_model(nano, folder / "nano", labels=["cat", "dog", "<b>"])
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name, shape in [("a.png", (40, 60, 3)), ("b.jpg", (90, 50, 3)), ("c.png", (32, 32, 3))]:
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    return folder


def arrays(out: Path) -> dict[str, np.ndarray]:
    with np.load(out / "arrays.npz") as opened:
        return dict(opened)


def test_a_transformer_is_looked_at_from_all_sides(models, photos, tmp_path):
    out = tmp_path / "out"
    said, _ = call("inspect", models / "vit", photos, "--out", out, "--json")
    found = json.loads(said)
    held = arrays(out)
    assert held["attention_distance"].shape == held["attention_entropy"].shape == (2, 3)
    assert held["position_similarity"].shape == (4, 4, 4, 4)
    assert held["rollout"].shape == (3, 4, 4)
    assert held["patch_filters"].shape == (24, 8, 8, 3)  # 24 filters have 24 components
    assert held["attention_maps.blocks.1"].shape == (3, 3, 4, 4)
    assert [Path(key).name for key in held["keys"]] == ["a.png", "b.jpg", "c.png"]
    assert found["images"] == 3
    assert found["logit_gap"] < 1e-4
    assert [layer["name"] for layer in found["layers"]] == ["blocks.0", "blocks.1"]
    distances = [layer["distance"] for layer in found["layers"]]
    np.testing.assert_allclose(distances, held["attention_distance"], atol=1e-3)
    names = {path.stem for path in (out / "figures").iterdir()}
    assert set(found["figures"]) == names
    assert names >= {"patch_filters", "position_similarity", "attention_distance", "rollout"}
    assert {"attention-000", "attention-001", "attention-002"} <= names
    for name in names:
        with Image.open(out / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 200
        root = ElementTree.parse(out / "figures" / f"{name}.svg").getroot()
        assert root.tag.endswith("svg")
    page = (out / "report.html").read_text("utf-8")
    check_self_contained(page, script=True)
    check_readable(page)
    canvases = [e for e in read(page) if e.tag == "canvas"]
    assert len(canvases) == 3
    # a.png is 40 x 60: the model sees the 40 x 40 in its middle
    assert "left: 16.667%; height: 100.000%; width: 66.667%" in canvases[0].attributes["style"]


def test_pictures_in_class_folders_are_told_apart_and_judged(models, photos, tmp_path):
    for label in ("cat", "dog", "other"):
        (tmp_path / "test" / label).mkdir(parents=True)
        shutil.copy(photos / "c.png", tmp_path / "test" / label / "1.png")
    call(
        *("inspect", models / "nano", tmp_path / "test", "--out", tmp_path / "out", "--show", "2"),
        *("--figures", "attention", "tokens", "--explain", "0"),
    )
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    # The same picture has the same answer, so at most one of the two classes is right.
    assert "cat/1.png" in page
    assert "other/1.png" in page
    assert "dog/1.png" not in page  # the first and the last are shown, in every section
    assert ("right: it is cat" in page) == ("seen as cat" in page)
    assert ("wrong: it is cat" in page) == ("seen as cat" not in page)
    assert "it is other" not in page  # no class of the model
    assert "Shown are 2 of the 3 pictures" in page
    assert "<h1>Inside vit_nano_patch7_28 (models" in page
    assert "/nano)</h1>" in page


def test_what_is_no_model_folder_is_called_what_it_is(models, photos, tmp_path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "bundle.json").write_text("{}")
    _, err = call("inspect", tmp_path / "bundle", photos, "--out", tmp_path / "out", status=2)
    assert "is a bundle of `vitrail export`: give the model folder that it was made from" in err
    call("inspect", models / "vit", photos, "--out", tmp_path / "in", "--figures", "filters")
    _, err = call("verify", tmp_path / "in", status=2)
    assert "is what `vitrail inspect` wrote and no model folder" in err
    (tmp_path / "empty").mkdir()
    _, err = call("verify", tmp_path / "empty", status=2)
    assert "is no model folder: it has no config.json" in err


def test_a_staged_family_has_each_stage_on_its_own_grid(models, photos, tmp_path):
    out = tmp_path / "out"
    said, _ = call("inspect", models / "cvt", photos / "a.png", "--out", out, "--json")
    found, held = json.loads(said), arrays(out)
    grids = [layer["grid"] for layer in found["layers"]]
    assert grids == [[8, 8], [4, 4], [2, 2], [2, 2]]
    assert [layer["keys"] for layer in found["layers"]] == [[4, 4], [2, 2], [1, 1], [1, 1]]
    assert held["attention_distance"].shape == (4, 4)
    missing = np.isnan(held["attention_distance"]).sum(1).tolist()
    assert missing == [3, 2, 0, 0]
    assert held["rollout"].shape == (1, 8, 8)
    assert "position_similarity" not in held
    assert "There is no table of positions" in (out / "report.html").read_text("utf-8")


def test_a_convolutional_network_shows_filters_and_maps_and_says_the_rest(models, photos, tmp_path):
    out = tmp_path / "out"
    call("inspect", models / "bit", photos, "--out", out)
    held = arrays(out)
    assert held["patch_filters"].shape == (28, 7, 7, 3)
    assert held["feature_norms.0"].shape == (3, 8, 8)
    assert held["feature_norms.1"].shape == (3, 4, 4)
    assert "attention_distance" not in held
    page = (out / "report.html").read_text("utf-8")
    assert "has no attention from place to place" in page
    sliders = [e.attributes["name"] for e in read(page) if e.tag == "input"]
    assert sliders == ["layer", "heat"]  # a network without heads has no slider for them
    check_self_contained(page, script=True)


def test_layers_heads_and_figures_are_chosen(models, photos, tmp_path):
    out = tmp_path / "out"
    call(
        *("inspect", models / "vit", photos, "--out", out, "--figures", "attention"),
        *("--layers", "blocks.1", "--heads", "0", "2", "--show", "2"),
    )
    assert {path.stem for path in (out / "figures").iterdir()} == {"attention-000", "attention-002"}
    assert [name for name in arrays(out) if "maps" in name] == ["attention_maps.blocks.1"]
    table = next(
        e for e in read((out / "report.html").read_text("utf-8")) if "data-layers" in e.attributes
    )
    assert json.loads(table.attributes["data-layers"]) == [["blocks.1", 0, 4, 4, 2]]


def test_more_pictures_than_are_asked_for_are_chosen_evenly(models, tmp_path):
    said, err = call(
        *("inspect", models / "vit", "demo:fashion", "--out", tmp_path / "out", "--most", "3"),
        *("--show", "1", "--figures", "distance", "rollout", "--json"),
    )
    assert "looking at 3 of 2,000 pictures" in err
    found = json.loads(said)
    assert found["images"] == 3
    assert found["arrays"]["rollout"] == [3, 4, 4]
    keys = arrays(tmp_path / "out")["keys"]
    assert len(set(keys)) == 3


def test_an_inspection_is_not_written_over_unless_asked(models, photos, tmp_path):
    out = tmp_path / "out"
    words = ("inspect", models / "vit", photos / "c.png", "--out", out, "--figures", "filters")
    call(*words)
    before = (out / "report.html").read_bytes()
    _, err = call(*words, status=2)
    assert "exists and is not empty: add --overwrite" in err
    (out / "figures" / "of-another-model.png").write_bytes(b"")
    call(*words, "--overwrite")
    assert not (out / "figures" / "of-another-model.png").exists()
    assert b"--overwrite" not in (out / "report.html").read_bytes()
    assert (out / "report.html").read_bytes() == before
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("dear")
    _, err = call(*words[:-3], tmp_path / "notes", *words[-2:], "--overwrite", status=2)
    assert "give another --out" in err
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("model", "more", "said"),
    [
        ("bit", ["--figures", "distance"], "has no attention from place to place"),
        ("bit", ["--layers", "0"], "has no attention from place to place"),
        ("vit", ["--layers", "9"], "there is no layer '9': the model attends in 2 layers, 0 to 1"),
        ("vit", ["--heads", "3"], "there is no head 3: the layers have 3, 0 to 2"),
        ("vit", ["--heads", "-1"], "there is no head -1"),
        ("vit", ["--figures", "rolout"], "did you mean 'rollout'"),
        ("vit", ["--residual", "2"], "residual is a share"),
        ("vit", ["--discard", "1"], "discard is a share"),
        ("vit", ["--most", "0"], "--most is at least 1"),
        ("vit", ["--show", "-1"], "--show is how many"),
        (
            "vit",
            ["--figures", "filters", "--heads", "1"],
            "--heads would be passed over: add atten",
        ),
        ("vit", ["--split", "train"], "--split train is of a data set"),
        ("vit", ["--against-name", "B/16"], "--against-name is the name of --against"),
    ],
)
def test_what_a_model_does_not_have_is_one_sentence(models, photos, tmp_path, model, more, said):
    out = tmp_path / "out"
    _, err = call("inspect", models / model, photos, "--out", out, *more, status=2)
    assert said in err
    assert not out.exists()


@cache
def a_bomb() -> bytes:
    """A PNG of 9,000 x 9,000 pixels in a few kilobytes."""
    import io

    written = io.BytesIO()
    Image.new("1", (9000, 9000)).save(written, "PNG")
    return written.getvalue()


def test_pictures_that_cannot_be_read_end_it_before_any_work(models, photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "z.png").write_bytes((photos / "a.png").read_bytes()[:200])
    out = tmp_path / "out"
    _, err = call("inspect", models / "vit", folder, "--out", out, status=2)
    assert "z.png cannot be read" in err
    (folder / "z.png").write_bytes(a_bomb())
    _, err = call("inspect", models / "vit", folder, "--out", out, status=2)
    assert "over the limit of 64 million" in err
    _, err = call("inspect", models / "vit", tmp_path / "none.jpg", "--out", out, status=2)
    assert "there is no picture or folder" in err
    _, err = call("inspect", models / "vit", photos, "--out", folder / "z.png", status=2)
    assert "--out needs a folder" in err
    _, err = call("inspect", models / "vit", photos, "--out", models / "cvt", status=2)
    assert "holds a model" in err
    assert not out.exists()
