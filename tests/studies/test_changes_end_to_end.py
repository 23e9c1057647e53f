"""`vitrail study ablation` and `study search` as a person gives them: from words to the page."""

import json

import numpy as np
import pytest

from tests.commands import call
from vitrail.cli.arguments import gathered
from vitrail.data.examples import ArraySource
from vitrail.studies.definition import Ask
from vitrail.studies.study import study

SHORT = ("--durations", "2steps", "--sizes", 60, "--batch-size", 16, "--most-test", 40)
SMALLEST = "vit_mu_patch7_28"


def records(folder):
    return [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]


def test_changes_of_ones_own_and_the_same_again(tmp_path):
    words = ("study", "ablation", "demo:fashion", "--models", SMALLEST, *SHORT, "--seeds", 2)
    words = (*words, "--change", "mean: pool=mean", "--change", "slow: optim.lr=1e-4")
    words = (*words, "--out", tmp_path / "study")
    out, err = call(*words)
    assert "6 runs" in err
    assert "mean against as it is" in out.lower()
    found = records(tmp_path / "study")
    assert [record["config"]["axes"]["variant"] for record in found] == [
        *("as it is", "as it is", "mean", "mean", "slow", "slow"),
    ]
    assert found[2]["config"]["config"] == {"pool": "mean"}
    assert all(0 <= record["metrics"]["top1"] <= 1 for record in found)
    sizes = [record["metrics"]["parameters"] for record in found]
    assert sizes[0] == sizes[4] > sizes[2]
    page = (tmp_path / "study" / "report.html").read_text()
    assert "differences to as it is" in page
    table = (tmp_path / "study" / "tables.md").read_text()
    assert "| as it is | " in table
    before = (tmp_path / "study" / "records.jsonl").read_bytes()
    _, err = call(*words)
    assert "done:  6 of them already" in err
    assert (tmp_path / "study" / "records.jsonl").read_bytes() == before
    call(*words[:-1], tmp_path / "study", "--change", "deep: depth=2", status=2)


def test_a_search_under_a_limit(tmp_path):
    models = "cvt_13_28:depths=[1,1]:widths=[8,16]:heads=[1,2]"
    words = ("study", "search", "demo:fashion", "--models", models, *SHORT, "--seeds", 1)
    words = (*words, "--samples", 1, "--max-macs", "2.5e5", "--out", tmp_path / "study", "--json")
    out, _ = call(*words)
    summary = json.loads(out)
    assert summary["front"]
    found = records(tmp_path / "study")
    assert len(found) == len(summary["candidates"]) >= 2
    for record in found:
        counted = record["config"]["axes"]["macs"]
        assert counted <= 2.5e5
        assert record["metrics"]["macs"] == counted, "what was trained is what was counted"


@pytest.mark.slow
def test_learning_without_labels_first(tmp_path):
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (300, 28, 28, 3), np.uint8)
    source = ArraySource(images, np.arange(300) % 4, tuple("abcd"))
    splits = {"train": source.subset(np.arange(240)), "test": source.subset(np.arange(240, 300))}
    ask = Ask(
        axes=("self_supervised",),
        models=(SMALLEST,),
        seeds=1,
        sizes=(40,),
        durations=("2 steps", "3 steps"),
        batch_size=8,
    )
    summary = study("ablation", splits, tmp_path / "study", ask)
    assert summary["done"] == summary["runs"] == 4 * 3 + 3
    assert [row["variant"] for row in summary["self_supervised"]] == [
        *("from nothing", "masked patches", "masked autoencoder", "supervised"),
    ]
    found = {record["id"]: record for record in records(tmp_path / "study")}
    for record in found.values():
        before = record["config"]["start"]
        assert record["metrics"]["steps"] == (3 if record["config"]["rest"] else 2)
        if before is not None:
            weights = tmp_path / "study" / "runs" / before / "model.safetensors"
            assert weights.exists()


def test_flags_of_several_words_may_come_again():
    words = ["ablation", "X", "--axis", "a", "b", "--out", "o", "--axis", "c", "--json"]
    assert gathered(words) == ["ablation", "X", "--out", "o", "--json", "--axis", "a", "b", "c"]
    once = ["ablation", "X", "--axis", "a", "b", "--out", "o"]
    assert gathered(once) == once


@pytest.mark.parametrize("flag", ["--models", "--sizes", "--durations"])
def test_what_is_given_twice_is_joined(flag):
    words = ["data-size", flag, "a", "b", "X", flag, "c", f"{flag}=d", "--json"]
    assert gathered(words) == ["data-size", "--json", flag, "a", "b", "X", "c", "d"]
    assert gathered(["data-size", f"{flag}=a", "X"]) == ["data-size", f"{flag}=a", "X"]


def test_the_list_of_comparisons():
    out, _ = call("study", "ablation", "demo:fashion", "--axis", "list", "--out", "nowhere")
    assert out.splitlines()[0].startswith("pooling ")
    assert "cvt_kv_stride" in out
