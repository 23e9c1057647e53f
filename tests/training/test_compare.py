"""Several runs beside each other, from what they recorded alone."""

import json
from pathlib import Path

import pytest

from tests.commands import call
from tests.kit.reading import check_readable, check_self_contained, read
from vitrail import Error
from vitrail.kit.chart import MOST
from vitrail.training.compare import compare, differences, open_runs, short_names, write_comparison


def a_run(folder, top1=0.8, seed=0, lr=1e-3, finished=True, batch_size=64, **ledger):
    """A folder as a run leaves it, without its weights."""
    (folder / "checkpoints").mkdir(parents=True)
    recipe = {
        "name": "scratch",
        "seed": seed,
        "batch_size": batch_size,
        "optim": {"lr": lr, "betas": [0.9, 0.999]},
        "duration": {"value": 4.0, "unit": "steps"},
    }
    records = [{"kind": "start", "step": 0}]
    records += [
        {"kind": "step", "step": step, "loss": 2 / step * (1 + seed), "lr": lr}
        for step in range(1, 5)
    ]
    records += [
        {"kind": "eval", "step": step, "top1": top1 - 0.1 * (step == 4), "top5": 1, "loss": 0.5}
        for step in (2, 4)
    ]
    if finished:
        records.append({"kind": "done", "steps": 4, "top1": top1})
        about = {
            "recipe": recipe,
            "metrics": {"test": {"top1": top1, "loss": 0.4, "n": 10}},
            "data": {"name": "photos", "splits": {"train": 90}},
            "ledger": {"images": 256, "exaflops": 1.5, "seconds": 90.0, "device": "CPU", **ledger},
        }
        (folder / "config.json").write_text(json.dumps({"vitrail": about}))
    (folder / "checkpoints" / "run.json").write_text(json.dumps({"recipe": recipe}))
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines)
    return folder


def text_of(page):
    body = next(element for element in read(page) if element.tag == "body")
    return " ".join(body.text.replace("\N{NO-BREAK SPACE}", " ").split())


def test_a_page_of_three_runs(tmp_path):
    folders = [
        a_run(tmp_path / "runs" / "a"),
        a_run(tmp_path / "runs" / "b", top1=0.6, lr=3e-4, seed=1),
        a_run(tmp_path / "runs" / "c", finished=False, batch_size=32),
    ]
    runs = open_runs(folders)
    assert [run.name for run in runs] == ["a", "b", "c"]
    write_comparison(tmp_path / "page.html", runs)
    page = (tmp_path / "page.html").read_text()
    check_self_contained(page)
    check_readable(page)
    said = text_of(page)
    assert "a is the best at the end, with 80.00 % top-1. 1 of them did not come" in said
    assert "optim.lr 0.001 0.0003 0.001" in said
    assert "batch_size 64 64 32" in said
    assert "betas" not in said
    assert "1.5" in said
    assert "1 min 30 s" in said
    # accuracy by steps and by images, two losses, the rate
    assert page.count("<svg") == 5
    before = page
    write_comparison(tmp_path / "page.html", runs)
    assert (tmp_path / "page.html").read_text() == before


def test_the_same_facts_as_data(tmp_path):
    runs = open_runs([a_run(tmp_path / "a"), a_run(tmp_path / "b", top1=0.7, seed=1)])
    found = json.loads(json.dumps(compare(runs)))
    assert [run["top1"] for run in found["runs"]] == [0.8, 0.7]
    assert found["runs"][0]["best_val_top1"] == 0.8
    assert found["runs"][0]["steps"] == 4
    assert found["runs"][0]["loss"] == 0.5
    assert found["differences"] == {"seed": [0, 1]}
    assert found["seeds"]["mean"] == pytest.approx(0.75)
    assert found["seeds"]["deviation"] == pytest.approx(0.5**0.5 / 10)


def test_runs_of_several_labels_are_compared_by_mean_average_precision(tmp_path):
    folders = [a_run(tmp_path / "a"), a_run(tmp_path / "b", top1=0.6, seed=1)]
    for folder in folders:
        for file in ("metrics.jsonl", "config.json"):
            path = folder / file
            path.write_text(path.read_text().replace('"top1"', '"mean_average_precision"'))
    runs = open_runs(folders)
    found = compare(runs)
    assert [run["score"] for run in found["runs"]] == [0.8, 0.6]
    assert [run["top1"] for run in found["runs"]] == [None, None]
    assert found["runs"][0]["best_val_score"] == 0.8
    write_comparison(tmp_path / "page.html", runs)
    said = text_of((tmp_path / "page.html").read_text())
    assert "70.00 % mean average precision on average" in said
    assert "Mean average precision on validation" in said
    write_comparison(tmp_path / "mixed.html", open_runs([a_run(tmp_path / "c"), folders[0]]))
    assert "They are measured differently" in text_of((tmp_path / "mixed.html").read_text())


def test_seeds_are_summed_up_only_where_nothing_else_differs(tmp_path):
    runs = open_runs([a_run(tmp_path / "a"), a_run(tmp_path / "b", seed=1, lr=1e-4)])
    assert compare(runs)["seeds"] is None
    assert set(differences(runs)) == {"seed", "optim.lr"}


def test_names_tell_folders_apart():
    def names(*paths):
        return short_names([Path(path) for path in paths])

    assert names("/r/a", "/r/b") == ["a", "b"]
    assert names("/r/one/seed0", "/r/two/seed0") == ["one", "two"]
    assert names("/r/one/seed0", "/r/two/seed1") == ["one/seed0", "two/seed1"]
    assert names("/r", "/r/a") == ["r", "a"]


def test_what_cannot_be_compared_is_refused(tmp_path):
    a = a_run(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    for folders, sentence in [
        ([a], "at least two"),
        ([a, tmp_path / "empty"], "holds no run"),
        ([a, a], "given twice"),
        ([a] * (MOST + 1), "at most 8 runs"),
    ]:
        with pytest.raises(Error, match=sentence):
            open_runs(folders)


def test_the_command(tmp_path):
    a, b = a_run(tmp_path / "a"), a_run(tmp_path / "b", top1=0.6, lr=0.01)
    out, _ = call("compare", a, b, "--out", tmp_path / "out", "--json")
    found = json.loads(out)
    assert found["differences"] == {"optim.lr": [0.001, 0.01]}
    assert found == json.loads((tmp_path / "out" / "compare.json").read_text())
    assert Path(found["report"]).exists()
    call("compare", a, b, "--out", a, status=2)
