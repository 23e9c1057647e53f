"""A study's folder: claims that nobody can hold twice, records that are there once and whole."""

import json
import os
import subprocess
import sys
import threading

import pytest

from vitrail.kit.errors import Error
from vitrail.studies import folder as module
from vitrail.studies import runner
from vitrail.studies.definition import Definition, Point
from vitrail.studies.folder import StudyFolder, safe_id

DATA = {"classes": 2, "sha256": "0"}


def definition(*seeds: int, **fields) -> Definition:
    made = (
        Point(id=f"run-{seed}", line="ViT", model="vit_nano_patch7_28", seed=seed, **fields)
        for seed in seeds
    )
    return Definition(kind="x", points=tuple(made))


@pytest.fixture
def folder(tmp_path) -> StudyFolder:
    made = StudyFolder(tmp_path / "study")
    made.open(definition(0, 1), DATA)
    return made


def put(folder: StudyFolder, id: str, number: int, **held) -> None:
    (folder.claims / f"{id}.{number}").write_text(json.dumps(held))


def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_run_is_held_by_one_and_free_when_released(folder):
    claim = folder.claim("run-0")
    assert claim is not None
    assert folder.claim("run-0") is None
    assert folder.claim("run-1") is not None
    claim.release()
    again = folder.claim("run-0")
    assert again is not None
    assert again.number == 2
    assert not claim.holds()


def test_of_many_who_take_over_at_once_one_succeeds(folder):
    put(folder, "run-0", 1, **{**module._self(), "pid": dead()})
    taken, ready = [], threading.Barrier(8)

    def take() -> None:
        other = StudyFolder(folder.path)
        ready.wait()
        taken.append(other.claim("run-0"))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(claim is not None for claim in taken) == 1


def test_a_holder_on_this_machine_is_dead_once_its_process_is(folder):
    put(folder, "run-0", 1, **{**module._self(), "pid": dead()})
    assert folder.claim("run-0") is not None
    # A later process of the same number is another one.
    put(folder, "run-1", 1, **{**module._self(), "started": "1"})
    assert folder.claim("run-1") is not None


def test_a_living_holder_on_this_machine_keeps_its_run_however_long_it_sleeps(folder):
    put(folder, "run-0", 1, **module._self())
    os.utime(folder.claims / "run-0.1", (0, 0))
    assert folder.claim("run-0") is None


def test_a_holder_elsewhere_is_dead_when_its_claim_is_no_longer_touched(folder):
    elsewhere = {"machine": "another", "pid": 1, "started": "1"}
    put(folder, "run-0", 1, **elsewhere)
    assert folder.claim("run-0") is None
    now = (folder.claims / "run-0.1").stat().st_mtime
    os.utime(folder.claims / "run-0.1", (now - module.STALE - 1, now - module.STALE - 1))
    assert folder.claim("run-0") is not None


def test_a_claim_is_touched_while_it_is_kept(folder, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.01)
    claim = folder.claim("run-0")
    os.utime(claim.path, (0, 0))
    with claim.kept():
        for _ in range(200):
            if claim.path.stat().st_mtime > 0:
                break
            threading.Event().wait(0.02)
    assert claim.path.stat().st_mtime > 0


def test_a_holder_whose_run_was_taken_over_is_interrupted(folder, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.01)
    claim = folder.claim("run-0")
    put(folder, "run-0", 2, machine="another", pid=1, started="1")
    with pytest.raises(KeyboardInterrupt), claim.kept():
        threading.Event().wait(30)
    assert not claim.holds()


def test_a_record_is_there_once_and_the_first_stays(folder):
    first = {"id": "run-1", "config": {}, "seed": 1, "metrics": {"top1": 0.5}}
    assert folder.write(first)
    assert not folder.write({**first, "metrics": {"top1": 0.9}})
    assert folder.write({**first, "id": "run-0", "seed": 0})
    composed = folder.compose()
    lines = [json.loads(line) for line in (folder.path / "records.jsonl").open()]
    assert lines == composed
    assert [r["id"] for r in composed] == ["run-0", "run-1"]
    assert composed[1]["metrics"] == {"top1": 0.5}


def test_a_damaged_record_is_named(folder):
    (folder.parts / "run-0.json").write_text('{"id": "run-0", "met')
    with pytest.raises(Error, match=r"run-0\.json is no record of a run: remove it"):
        folder.records()


def test_the_same_study_goes_on_and_another_is_refused_by_what_differs(folder):
    folder.open(definition(0, 1), DATA)
    with pytest.raises(Error, match=r"another study .1 run more, run-2 for instance"):
        folder.open(definition(0, 1, 2), DATA)
    with pytest.raises(Error, match=r"another study .1 run fewer, run-1 for instance"):
        folder.open(definition(0), DATA)
    with pytest.raises(Error, match=r"run-0 settings.optim.lr was null and is 0.1"):
        folder.open(definition(0, 1, settings={"optim.lr": 0.1}), DATA)
    with pytest.raises(Error, match=r'a study on other data .sha256 was "0" and is "1"'):
        folder.open(definition(0, 1), {**DATA, "sha256": "1"})


def test_a_study_from_before_a_field_was_added_goes_on(folder):
    path = folder.path / "study.json"
    body = json.loads(path.read_text())
    for point in body["definition"]["points"]:
        del point["rest"]
    path.write_text(json.dumps({**body, "sha256": "of then"}))
    folder.open(definition(0, 1), DATA)


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(Error, match=r"holds other files \(letter.txt\) and no study"):
        StudyFolder(tmp_path).open(definition(0), DATA)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_ids_are_fit_for_folders():
    assert safe_id("R50+B/16", "3 epochs", "seed0") == "R50+B_16-3_epochs-seed0"


def test_of_many_who_begin_a_study_at_once_none_is_refused(tmp_path):
    refused = []

    def begin(place, barrier):
        barrier.wait()
        try:
            StudyFolder(place).open(definition(0, 1), {"sha256": "x"})
        except Error as error:
            refused.append(str(error))

    for turn in range(30):
        barrier = threading.Barrier(6)
        place = tmp_path / f"study{turn}"
        threads = [threading.Thread(target=begin, args=(place, barrier)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not refused


@pytest.mark.parametrize(("keep", "left"), [("nothing", set()), ("models", {"a", "b", "c"})])
def test_a_model_that_others_start_from_is_kept_as_long_as_they_need_it(
    tmp_path, monkeypatch, keep, left
):
    tiny = {"model": "vit_nano_patch7_28"}
    points = [Point(id="a", line="x", **tiny)]
    points += [Point(id=id, line=id, start="a", **tiny) for id in ("b", "c")]
    study = Definition(kind="ablation", points=tuple(points))
    folder = StudyFolder(tmp_path / "study")
    folder.open(study, {})

    def performed(point, definition, data, folder, *how, **more):
        if point.start is not None:
            assert (folder.runs / point.start).exists()
        (folder.runs / point.id).mkdir()
        return {"id": point.id, "config": {}, "seed": 0, "metrics": {}}

    monkeypatch.setattr(runner, "perform", performed)
    assert runner.take_runs(study, None, folder, keep=keep) == 3
    assert {run.name for run in folder.runs.iterdir()} == left
