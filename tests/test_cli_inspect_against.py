"""`vitrail inspect`: the layers of two models beside each other, and explanations on demand."""

import json
import re

import numpy as np
import pytest

from tests.commands import call
from tests.test_cli_inspect import arrays, models, photos  # noqa: F401  (fixtures)

THREE_TIMES_TWO = ["a.png", "b.jpg", "c.png"] * 2


@pytest.fixture
def pictures(photos, tmp_path):  # noqa: F811
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, name in enumerate(THREE_TIMES_TWO[:5]):
        (folder / f"{i}-{name}").write_bytes((photos / name).read_bytes())
    return folder


def test_two_models_are_compared_layer_by_layer(models, pictures, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    said, _ = call(
        *("inspect", models / "vit", pictures, "--against", models / "cvt"),
        *("--figures", "similarity", "--out", out, "--json"),
    )
    found = json.loads(said)["similarity"]
    assert found["first"] == ["blocks.0", "blocks.1"]
    stages = [f"stages.{s}.blocks.{j}" for s, depth in enumerate((1, 1, 2)) for j in range(depth)]
    assert found["second"] == stages
    assert found["pictures"] == 5
    assert np.array(found["cka"]).shape == (2, 4)
    np.testing.assert_allclose(arrays(out)["layer_similarity"], found["cka"], atol=1e-4)
    assert re.search(r"layers of .*vit\)? and .*cvt", (out / "report.html").read_text())


def test_as_many_pictures_are_explained_as_are_asked_for(models, pictures, tmp_path):  # noqa: F811
    words = ("inspect", models / "bit", pictures, "--figures", "explanations", "--json")
    said, _ = call(*words, "--explain", "2", "--out", tmp_path / "two")
    found = json.loads(said)["explanations"]
    assert set(found) == {
        *("gradient", "smooth_gradient", "integrated_gradients", "grad_cam", "random")
    }
    assert all(0 <= scores["deletion"] <= 1 for scores in found.values())
    assert arrays(tmp_path / "two")["explanations.grad_cam"].shape == (2, 11, 11)
    words = ("inspect", models / "bit", pictures, "--figures", "filters", "--json")
    said, _ = call(*words, "--explain", "0", "--out", tmp_path / "none")
    assert "explanations" not in json.loads(said)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--explain", "-1"], "--explain is how many"),
        (["--against", "MODELS/cvt", "--figures", "filters"], "add similarity to --figures"),
        (["--against", "MODELS/none"], "none"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(models, pictures, tmp_path, more, said):  # noqa: F811
    more = [word.replace("MODELS", str(models)) for word in more]
    _, err = call("inspect", models / "vit", pictures, "--out", tmp_path / "out", *more, status=2)
    assert said in err
    assert not (tmp_path / "out").exists()


def test_two_models_need_four_pictures(models, photos, tmp_path):  # noqa: F811
    words = ("inspect", models / "vit", photos, "--against", models / "cvt")
    _, err = call(*words, "--out", tmp_path / "out", status=2)
    assert "takes at least 4 pictures, not 3" in err
