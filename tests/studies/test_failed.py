"""Studies some of whose runs diverge: what hangs on those fails with them, and the rest goes on."""

import json

import pytest

from vitrail.studies.definition import Ask, Definition, Point
from vitrail.studies.folder import StudyFolder
from vitrail.studies.study import study
from vitrail.studies.work import chosen_settings, perform

TINY = "vit_mu_patch7_28"
FAILED = {"failed": "its numbers were no longer finite", "top1": None}


def left_by(folder: StudyFolder, point: Point, **metrics) -> None:
    """A record as a run would have left it."""
    told = {"id": point.id, "config": point.to_json(), "seed": point.seed, "metrics": metrics}
    assert folder.write(told)


def point(id: str, **fields) -> Point:
    return Point(**{"id": id, "line": "ViT", "model": TINY, **fields})


@pytest.mark.parametrize("needs", [{"choose": ("a", "b")}, {"start": "a"}])
def test_a_run_fails_with_what_it_starts_from(tmp_path, needs):
    one, other, last = point("a"), point("b"), point("last", **needs)
    definition = Definition(kind="data-size", points=(one, other, last))
    folder = StudyFolder(tmp_path / "study")
    folder.open(definition, {})
    left_by(folder, one, **FAILED)
    left_by(folder, other, **FAILED)
    record = perform(last, definition, None, folder)  # it needs no data
    assert record["metrics"] == {"failed": "what it starts from failed", "top1": None}
    assert (record["id"], record["seed"]) == ("last", 0)


def test_a_trial_that_failed_is_not_chosen():
    trials = [
        {"config": {"settings": {"x": 1}}, "metrics": FAILED},
        {"config": {"settings": {"x": 2}}, "metrics": {"final_val_top1": 0.1}},
    ]
    assert chosen_settings(point("a"), trials) == {"x": 2}


def test_trials_are_chosen_by_their_last_weights():
    trials = [
        {"config": {"settings": {"x": 1}}, "metrics": {"val_top1": 0.9, "final_val_top1": 0.2}},
        {"config": {"settings": {"x": 2}}, "metrics": {"val_top1": 0.5, "final_val_top1": 0.5}},
    ]
    assert chosen_settings(point("a"), trials) == {"x": 2}


def test_a_pretraining_that_diverges_ends_its_line_alone(tmp_path):
    wild = {"optim.lr": 1e30, "optim.clip_norm": None, "most_bad_steps": 1}
    ask = Ask(
        axes=("self_supervised",),
        models=(TINY,),
        seeds=1,
        sizes=(20,),
        durations=("4 steps",),
        batch_size=8,
        settings=wild,
    )
    summary = study("ablation", "demo:fashion", tmp_path / "study", ask, held_out=0.02)
    assert summary["done"] == summary["runs"]
    records = (tmp_path / "study" / "records.jsonl").read_text().splitlines()
    found = {record["id"]: record for record in map(json.loads, records)}
    before = {id for id, r in found.items() if r["config"]["start"] is not None}
    assert before
    for id in before:
        assert found[id]["metrics"]["failed"] == "what it starts from failed"
    assert "since what it starts from failed" in (tmp_path / "study" / "report.html").read_text()
