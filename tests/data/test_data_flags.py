"""The verbs with every kind of DATA: what they say, and that a run goes on from any of them."""

import json
import os
from pathlib import Path

import pytest

from tests.commands import call, records
from tests.data.layouts import class_label, write_parquet, write_shard
from tests.data.pictures import encoded, smooth

PNG = [encoded(smooth(28, 28, seed=k)) for k in range(40)]
SMALL = ("--model", "vit_mu_patch7_28", "--batch-size", 8, "--val-fraction", 0.2)


@pytest.fixture
def shards(tmp_path) -> Path:
    for k in range(2):
        part = range(20 * k, 20 * k + 20)
        write_shard(
            tmp_path / "shards" / f"{k}.tar",
            [(f"{i:04d}", {"png": PNG[i], "cls": str(i % 2), "json": "{}"}) for i in part],
        )
    (tmp_path / "names.txt").write_text("dog\ncat\n")
    return tmp_path / "shards"


def test_shards_with_a_class_map(shards, tmp_path):
    names, run = tmp_path / "names.txt", tmp_path / "run"
    words = ("train", str(shards / "{0..1}.tar"), *SMALL, "--out", run, "--classes", names)
    _, said = call(*words, "--steps", 2)
    assert "32 images in 2 classes, 16 each" in said
    about = json.loads((run / "config.json").read_text())
    assert about["pretrained_cfg"]["label_names"] == ["dog", "cat"]
    out, _ = call("evaluate", run, shards, "--classes", names, "--json")
    result = json.loads(out)
    assert result["n"] == 40
    assert [row["label"] for row in result["per_class"]] == ["dog", "cat"]
    # Without the map the classes are 0 and 1, which this model does not know.
    _, said = call("evaluate", run, shards, status=2)
    assert "the model does not know 2 of the data's 2 classes" in said
    _, said = call(*words, "--steps", 2)
    assert records(run, "step")[-1]["step"] == 2
    names.write_text("cat\ndog\n")
    _, said = call(*words, "--steps", 2, status=2)
    assert "relabelled" in said


def test_parquet_with_columns(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet",
        PNG,
        [0, 1] * 20,
        class_label(["x", "y"]),
        image="photo",
        label="kind",
    )
    words = ("train", path, *SMALL, "--steps", 1, "--out", tmp_path / "run")
    call(*words, "--image-column", "photo", "--label-column", "kind", "--dry-run")
    assert not (tmp_path / "run").exists()
    _, said = call(*words, "--label-column", "knid", status=2)
    assert "no column 'knid' (there are photo, kind); did you mean 'kind'?" in said
    call(*words, "--image-column", "photo", "--workers", 1)  # what it can know, it finds
    out, _ = call("evaluate", tmp_path / "run", path, "--image-column", "photo", "--json")
    assert json.loads(out)["n"] == 40


@pytest.mark.parametrize(
    ("data", "words", "match"),
    [
        ("pipe:cat x.tar", (), "pipe: would run a command"),
        ("hf:a/b?steam=1", (), "unknown option 'steam'; did you mean 'stream'?"),
        ("{shards}/{{0..2}}.tar", (), "there is no file"),
        ("{shards}", ("--label-column", "kind"), "json has no 'kind'"),
        ("{shards}", ("--classes", "/none.json"), "/none.json: cannot be read"),
    ],
)
def test_mistakes_are_one_sentence(shards, tmp_path, data, words, match):
    spec = data.format(shards=shards)
    _, said = call("train", spec, *SMALL, *words, "--out", tmp_path / "run", status=2)
    assert match in said
    assert sorted(os.listdir(tmp_path)) == ["names.txt", "shards"]
