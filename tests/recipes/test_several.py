"""Several runs by one command: the seeds and the grid of rates, whole and interrupted."""

import json
import signal
import statistics
import time
from pathlib import Path

import pytest

from tests.commands import call, records, start
from vitrail.kit.errors import Error
from vitrail.recipes.run import train

SMALL = ("--model", "vit_mu_patch7_28", "--steps", "6", "--batch-size", "16")


def finished(folder: Path) -> bool:
    return (folder / "config.json").exists()


def test_seeds_report_mean_and_deviation_and_do_nothing_again(tmp_path):
    out = tmp_path / "runs"
    words = ("train", "demo:fashion", *SMALL, "--out", out, "--seeds", "2", "--seed", "5")
    printed, _ = call(*words, "--json")
    found = json.loads(printed)
    figures = [one["top1"] for one in found["seeds"]]
    assert [one["seed"] for one in found["seeds"]] == [5, 6]
    assert found["top1"] == {
        "mean": pytest.approx(statistics.fmean(figures)),
        "std": pytest.approx(statistics.stdev(figures)),
    }
    assert json.loads((out / "seeds.json").read_text()) == found
    in_words, _ = call(*words)
    assert "seed 5" in in_words
    assert f"mean     top-1 {100 * found['top1']['mean']:.2f} +- " in in_words
    for seed in (5, 6):
        assert records(out / f"seed-{seed}", "done")[-1]["steps_this_run"] == 0
    with pytest.raises(Error, match="a run of its own"):
        train("demo:fashion", out=out / "seed-5", seeds=2)


@pytest.fixture
def base(tmp_path) -> Path:
    return train("demo:fashion", model="vit_mu_patch7_28", out=tmp_path / "base", steps=2).folder


def test_the_best_rate_of_the_grid_trains_on_all_of_train_and_a_kill_costs_nothing(tmp_path, base):
    out = tmp_path / "run"
    words = (
        *("train", "demo:fashion", "--weights", base, "--recipe", "vit_finetune:pets"),
        *("--image-size", "28", "--steps", "8", "--batch-size", "32", "--save-every", "2"),
        *("--set", "rates=[0.0001,0.2]", "schedule.warmup=1", "--out", out),
    )
    # Killed in the second trial.
    process = start(*words)
    deadline = time.monotonic() + 120
    while not (out / "rates" / "0.2" / "metrics.jsonl").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert finished(out / "rates" / "0.0001")
    assert not finished(out)
    call(*words)
    assert records(out / "rates" / "0.0001", "done")[-1]["steps_this_run"] == 0
    section = json.loads((out / "config.json").read_text())["vitrail"]
    chosen = section["chosen"]
    assert chosen["held_out"] == 0.1
    top1 = chosen["top1_by_rate"]
    assert set(top1) == {"0.0001", "0.2"}
    assert top1[f"{chosen['rate']:g}"] == max(top1.values())
    assert section["recipe"]["optim"]["lr"] == chosen["rate"]
    trial = json.loads((out / "rates" / "0.2" / "config.json").read_text())["vitrail"]
    held_out = trial["data"]["splits"]
    assert section["data"]["splits"]["train"] == held_out["train"] + held_out["val"]
    assert "val" not in section["data"]["splits"]
    call(*words)
    assert records(out, "done")[-1]["steps_this_run"] == 0


def test_a_rate_that_is_given_needs_no_grid(tmp_path, base):
    out = tmp_path / "run"
    words = {"weights": base, "recipe": "vit_finetune", "image_size": 28, "steps": 2}
    train("demo:fashion", out=out, lr=0.01, batch_size=16, **words)
    assert finished(out)
    assert not (out / "rates").exists()


def test_a_rate_that_diverges_is_left_out(tmp_path, base):
    out = tmp_path / "run"
    train(
        "demo:fashion",
        weights=base,
        recipe="vit_finetune",
        image_size=28,
        steps=14,
        batch_size=16,
        out=out,
        set={"rates": "[0.01, 1e38]", "optim.clip_norm": "none", "schedule.warmup": "0 steps"},
    )
    chosen = json.loads((out / "config.json").read_text())["vitrail"]["chosen"]
    assert (chosen["rate"], list(chosen["top1_by_rate"])) == (0.01, ["0.01"])


def test_a_choice_without_held_out_images_is_refused(tmp_path, base):
    words = {"weights": base, "recipe": "vit_finetune", "image_size": 28, "steps": 2}
    with pytest.raises(Error, match="leave --val-fraction out"):
        train("demo:fashion", out=tmp_path / "run", val_fraction=0.0, **words)
    assert not (tmp_path / "run").exists()
