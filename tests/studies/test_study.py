"""Whole studies by the real command: killed, shared by processes, shown, and refused."""

import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.commands import QUIET, call, start
from vitrail.kit.errors import Error
from vitrail.kit.records import Records
from vitrail.studies.definition import Ask
from vitrail.studies.study import How, study

SMALLEST = "vit_mu_patch7_28"
VIT = "ViT=vit_nano_patch7_28:width=24:depth=1:heads=2:mlp_width=48"
DEEPER = "deeper=vit_nano_patch7_28:width=24:depth=2:heads=2:mlp_width=48"
COMMON = ("--batch-size", 20, "--held-out", 0.02, "--most-test", 100, "--device", "cpu")
WORDS = (
    *("study", "data-size", "demo:fashion", "--models", VIT, DEEPER, "--sizes", 40, 120),
    *COMMON,
)
TIMING = ("seconds", "images_per_second", "threads")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A study that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "study"
    call(*WORDS, "--durations", "12steps", "--seeds", 1, "--out", out)
    return out


def lasting(out: Path) -> list[dict]:
    """The records by id, without what no two runs have alike."""
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    for record in records:
        assert set(record) == {"id", "config", "seed", "metrics"}
        for name in TIMING:
            assert record["metrics"].pop(name) > 0
    return sorted(records, key=lambda record: record["id"])


def begun(out: Path) -> dict[str, int]:
    """How many times each run was begun at its first step."""
    return {
        run.name: sum(r["step"] == 0 for r in Records(run / "metrics.jsonl").read("start"))
        for run in (out / "runs").iterdir()
    }


def test_a_study_leaves_records_tables_figures_and_a_page(whole):
    records = lasting(whole)
    assert len(records) == 2 * 2
    for record in records:
        metrics = record["metrics"]
        assert 0 <= metrics["top1"] <= 1
        assert set(metrics["fewshot"]) == {"5", "10"}
        assert metrics["fewshot_from"] == "val", "no run learns from its shots"
        # What was done, also where the point leaves it to the recipe.
        assert metrics["recipe"]["optim"]["lr"] == pytest.approx(1e-3 * (20 / 64) ** 0.5)
        assert metrics["recipe"]["duration"] == {"value": 12, "unit": "steps"}
        assert metrics["device"]
        # The papers' rule: six operations a multiply-add and picture.
        assert metrics["flops"] == 6 * metrics["macs"] * metrics["images"]
        assert metrics["images"] == metrics["steps"] * 20
    page = (whole / "report.html").read_text()
    assert page.count("<svg") == 3
    for words in ("ViT", "deeper", "5-shot linear accuracy", "vitrail study data-size"):
        assert words in page
    assert not re.search(r'(src|href)="http', page)
    figure = (whole / "figures" / "data-size-top1.svg").read_text()
    assert figure.startswith("<svg")
    assert "var(" not in figure
    tables = (whole / "tables.md").read_text()
    assert "| ViT |" in tables
    assert tables.count("The shots are validation pictures, which no run has learned from") == 2
    assert not list((whole / "runs").glob("*/checkpoints"))
    assert all((run / "model.safetensors").exists() for run in (whole / "runs").iterdir())


def test_the_same_command_again_does_nothing_and_draws_the_same(whole):
    before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file() and p.suffix != ".html"}
    out, err = call(*WORDS, "--durations", "12steps", "--seeds", 1, "--out", whole, "--json")
    assert "left:  0 runs" in err
    assert json.loads(out)["done"] == 4
    assert {p: p.read_bytes() for p in before} == before


def test_figures_come_from_records_alone(whole, tmp_path):
    copied = tmp_path / "copied"
    copied.mkdir()
    for name in ("study.json", "records.jsonl"):
        shutil.copy(whole / name, copied / name)
    out, _ = call("study", "data-size", "-", "--out", copied, "--figures-only", "--json")
    assert json.loads(out)["top1"] == json.loads((whole / "summary.json").read_text())["top1"]
    assert (copied / "figures" / "data-size-top1.svg").exists()


def run_and_kill(words: tuple, out: Path, after: float) -> None:
    """Start the command, and kill it and its helpers so long after its first run began."""
    process = start(*words, "--out", out)
    deadline = time.monotonic() + 120
    while not list(out.glob("runs/*/metrics.jsonl")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.communicate()


def killed_study(out: Path, kills: int, seed: int, steps: int, whole: Path, *more: object) -> None:
    words = (*WORDS, "--durations", f"{steps}steps", "--seeds", 1, *more)
    moments = random.Random(seed)
    for _ in range(kills):
        run_and_kill(words, out, moments.uniform(0, 6))
    process = start(*words, "--out", out)
    _, said = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert lasting(out) == lasting(whole)
    # A run that a kill hit before its first checkpoint begins again; none does after its record.
    assert set(begun(out)) == {record["id"] for record in lasting(whole)}
    assert sum(begun(out).values()) <= len(begun(out)) + kills * 2


def test_a_killed_study_gives_the_records_of_one_that_was_not(whole, tmp_path):
    killed_study(tmp_path / "study", kills=1, seed=0, steps=12, whole=whole)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_study_killed_at_five_points_gives_the_same_records(tmp_path, jobs):
    calm = tmp_path / "calm"
    call(*WORDS, "--durations", "60steps", "--seeds", 1, "--out", calm)
    killed_study(tmp_path / "killed", 5, jobs, 60, calm, "--jobs", jobs)


def test_two_processes_share_a_folder_and_do_every_run_once(whole, tmp_path):
    words = (*WORDS, "--durations", "12steps", "--seeds", 1, "--out", tmp_path / "study")
    both = [start(*words) for _ in range(2)]
    said = [process.communicate(timeout=280) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert lasting(tmp_path / "study") == lasting(whole)
    assert set(begun(tmp_path / "study").values()) == {1}


@pytest.mark.slow
def test_under_torchrun_every_process_takes_runs(whole, tmp_path):
    out = tmp_path / "study"
    words = [*WORDS, "--durations", "12steps", "--seeds", 1, "--out", out]
    run = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--standalone", "-m", "vitrail", *map(str, words)),
        ],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, **QUIET},
    )
    assert run.returncode == 0, run.stderr
    assert lasting(out) == lasting(whole)
    holders = {json.loads(p.read_text())["pid"] for p in (out / "claims").glob("*.1")}
    assert len(holders) == 2


def test_a_dry_run_says_what_it_would_cost_and_leaves_nothing(tmp_path):
    words = (*WORDS, "--durations", "12steps", "--seeds", 1, "--out", tmp_path / "study")
    out, err = call(*words, "--dry-run", "--json")
    told = json.loads(out)
    assert told["runs"] == 4
    assert told["seconds"] > 4
    first = told["points"][0]
    assert first["images"] == 12 * 20
    assert told["exaflops"] == pytest.approx(sum(p["exaflops"] for p in told["points"]))
    assert "4 runs" in err
    assert not (tmp_path / "study").exists()


def test_several_processes_share_the_cores_and_this_one_too(tmp_path, monkeypatch):
    class Helper:
        stdin, returncode = None, 0

        def wait(self, seconds):
            return 0

    threads, environments = [], []

    def popen(words, env, **how):
        environments.append(env)
        helper = Helper()
        helper.stdin = io.StringIO()
        return helper

    def taken(definition, data, folder, **how):
        threads.append(torch.get_num_threads())
        raise Error("enough")

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("vitrail.studies.study.cores", lambda: 6)
    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr("vitrail.studies.study.take_runs", taken)
    monkeypatch.setattr(Helper, "terminate", lambda self: None, raising=False)
    before = torch.get_num_threads()
    ask = Ask(models=(VIT,), sizes=(40,), durations=("2 steps",), seeds=1, batch_size=20)
    with pytest.raises(Error, match="enough"):
        study(
            *("data-size", "demo:fashion", tmp_path / "study", ask),
            how=How(jobs=3, device="cpu"),
            held_out=0.02,
        )
    assert threads == [2]
    assert [env["OMP_NUM_THREADS"] for env in environments] == ["2", "2"]
    assert torch.get_num_threads() == before


def test_scaling_as_a_command(tmp_path):
    models = ("one=vit_mu_patch7_28", "two=vit_mu_patch7_28:depth=4")
    words = ("study", "scaling", "demo:fashion", "--models", models[0], "--models", models[1])
    words = (*words, "--durations", "2steps", "--durations", "4steps", "--seeds", 1, *COMMON)
    out, err = call(*words, "--out", tmp_path / "study", "--json")
    told = json.loads(out)
    assert "5 runs" in err
    assert told["done"] == told["runs"] == 5, "and one from half of the pictures"
    assert {one["way"] for one in told["brings"]} == {"more data", "train longer", "larger model"}
    assert len(told["answer"]) >= 2
    found = {
        (r["config"]["line"], r["config"]["axes"]["duration"], r["config"]["axes"]["data"]): r
        for r in lasting(tmp_path / "study")
    }
    spent = {key: record["metrics"]["exaflops"] for key, record in found.items()}
    for line in ("one", "two"):
        assert spent[line, "4 steps", "all"] == pytest.approx(2 * spent[line, "2 steps", "all"])
    assert spent["two", "4 steps", "half"] == pytest.approx(spent["two", "4 steps", "all"])
    page = (tmp_path / "study" / "report.html").read_text()
    assert "Pareto front" in page
    out, _ = call(
        *("study", "scaling", "-", "--out", tmp_path / "study", "--figures-only", "--json")
    )
    assert json.loads(out)["advice"] == told["advice"]


def test_the_tuned_mode_as_a_command(tmp_path):
    fixed = ("--set", "optim.weight_decay=0.1", "--set", "target.label_smoothing=0.1")
    words = ("study", "data-size", "demo:fashion", "--mode", "tuned", "--models", SMALLEST)
    words = (*words, "--sizes", 60, "--durations", "20steps", "--seeds", 1, *COMMON, *fixed)
    out, err = call(*words, "--out", tmp_path / "study", "--json")
    assert "4 runs, 2 of them trials" in err
    told = json.loads(out)
    assert told["done"] == 4
    assert set(told["top1"][SMALLEST]) == {"60"}
    records = {
        record["config"]["axes"].get("stage"): record
        for record in lasting(tmp_path / "study")
        if record["config"]["role"] == "run"
    }
    trials = [r for r in lasting(tmp_path / "study") if r["config"]["role"] == "trial"]
    assert all("top1" not in trial["metrics"] for trial in trials), "test pictures choose nothing"
    best = max(trials, key=lambda trial: trial["metrics"]["final_val_top1"])
    learned, tuned = records["trained"]["metrics"], records["fine-tuned"]["metrics"]
    assert learned["chosen"]["model.dropout"] == best["config"]["settings"]["model.dropout"]
    assert learned["chosen"]["optim.weight_decay"] == "0.1"
    assert (learned["steps"], tuned["steps"]) == (20, 2)
    assert tuned["macs"] > learned["macs"], "at a higher resolution"
    assert told["top1"][SMALLEST]["60"]["mean"] == tuned["top1"]
    assert "Chosen on validation pictures" in (tmp_path / "study" / "tables.md").read_text()


def test_a_run_whose_numbers_explode_is_recorded_as_failed_and_the_rest_go_on(tmp_path):
    wild = f"wild={VIT.partition('=')[2]}:optim.lr=1e30:optim.clip_norm=none"
    ask = Ask(
        models=(VIT, wild),
        sizes=(40,),
        durations=("40 steps",),
        seeds=1,
        batch_size=20,
        settings={"most_bad_steps": 2},
    )
    summary = study("data-size", "demo:fashion", tmp_path / "study", ask, held_out=0.02)
    assert summary["failed"] == ["wild-40-seed0"]
    assert summary["done"] == 2
    assert "no longer finite" in (tmp_path / "study" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--intervals", "--seeds", 1), "an interval over seeds takes at least 2 of them"),
        (("--seeds", 0), "--seeds is at least 1, not 0"),
        (("--sizes", 90000), "the data have 9,800 pictures to learn from"),
        (("--models", "vit_nano_patch7_28:widht=3"), "did you mean 'width'"),
        (("--models", "vit_nano_patch7_28:width=25"), "width"),
        (("--set", "optim.rl=3"), "unknown setting 'optim.rl'"),
        (("--durations", "12parsecs"), "parsecs"),
        (("--durations", "500"), "500 is no length of a run: write it as 500steps, 3epochs or 20"),
        (("--durations", "12", "steps"), "--durations 12 is no length of a run"),
        (("--durations", "5percent"), "--durations 5percent is no length of a run"),
        (("--durations", "manysteps"), "--durations manysteps is no length of a run"),
        (("--durations", "12steps", "24steps"), "one budget"),
        (("--preset", "pgae"), "did you mean 'page'"),
        (("--jobs", 0), "--jobs is at least 1"),
        (("--most-test", 0), "--most-test is at least 1 picture, not 0"),
        (("--most-test", -4), "--most-test is at least 1 picture, not -4"),
        (("--held-out", 0), "give --held-out a share above 0"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(tmp_path, words, said):
    base = ("study", "data-size", "demo:fashion", "--out", tmp_path / "study", *COMMON)
    models = () if "--models" in words else ("--models", VIT)
    _, err = call(*base, *models, *words, status=2)
    assert said in err
    assert not (tmp_path / "study").exists()


def test_a_folder_of_another_study_is_refused_by_what_differs(whole):
    before = (whole / "records.jsonl").read_bytes()
    words = (*WORDS, "--durations", "24steps", "--seeds", 1, "--out", whole)
    _, err = call(*words, status=2)
    assert "holds another study" in err
    assert 'duration was "12 steps" and is "24 steps"' in err
    assert (whole / "records.jsonl").read_bytes() == before


def test_figures_of_a_study_without_records_are_refused(whole, tmp_path):
    (tmp_path / "study").mkdir()
    shutil.copy(whole / "study.json", tmp_path / "study")
    words = ("study", "data-size", "-", "--out", tmp_path / "study", "--figures-only")
    _, err = call(*words, status=2)
    assert "has no records yet" in err
    (tmp_path / "study" / "records.jsonl").write_text("")
    _, err = call(*words, status=2)
    assert "records.jsonl is empty" in err
    (tmp_path / "study" / "records.jsonl").write_text('{"id": "x"}\n')
    _, err = call(*words, status=2)
    assert "line 1 is no record of a run" in err
    _, err = call("study", "scaling", *words[2:], status=2)
    assert "holds a study of data-size, not of scaling" in err
    _, err = call(*words[:4], tmp_path, "--figures-only", status=2)
    assert "holds no study" in err


def test_an_unknown_kind_is_named(tmp_path):
    _, err = call("study", "datasize", "demo:fashion", "--out", tmp_path / "s", status=2)
    assert "did you mean 'data-size'" in err


def test_several_processes_need_data_that_each_can_open(whole, tmp_path):
    from vitrail.data.sources import open_source

    with pytest.raises(Error, match="give them by a name or a path"):
        study("data-size", open_source("demo:fashion"), tmp_path / "s", Ask(), how=How(jobs=2))


@pytest.mark.slow
def test_the_tuned_mode_fine_tunes_what_it_chose(tmp_path):
    ask = Ask(
        models=(VIT,), mode="tuned", sizes=(40,), durations=("6 steps",), seeds=1, batch_size=20
    )
    out = tmp_path / "study"
    study("data-size", "demo:fashion", out, ask, held_out=0.02, most_test=100)
    records = {r["id"]: r for r in map(json.loads, (out / "records.jsonl").open())}
    trials = [r for r in records.values() if r["config"]["role"] == "trial"]
    best = max(trials, key=lambda trial: trial["metrics"]["final_val_top1"])
    learned, tuned = records["ViT-40-seed0"], records["ViT-40-tuned-seed0"]
    chosen = learned["metrics"]["chosen"]
    assert {key: chosen[key] for key in best["config"]["axes"] if key != "images"} == {
        key: value for key, value in best["config"]["axes"].items() if key != "images"
    }
    assert all("top1" not in trial["metrics"] for trial in trials)  # test pictures choose nothing
    config = json.loads((out / "runs" / "ViT-40-tuned-seed0" / "config.json").read_text())
    assert config["vitrail"]["config"]["image_size"] == 42
    assert config["vitrail"]["recipe"]["weights"].endswith("ViT-40-seed0")
    assert 0 <= tuned["metrics"]["top1"] <= 1
