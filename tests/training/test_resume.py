"""Runs that are killed, stopped and repeated, with the real command in its own process."""

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from tests.commands import call, records, start
from vitrail.data.sources import open_source

STEPS = 36
TINY = ["--model", "vit_mu_patch7_28", "--steps", STEPS, "--batch-size", 16, "--save-every", 5]
# Everything that draws random numbers: dropout, drop path, shifts, flips, mixup and cutmix.
DRAWS = [
    *("--set", "model.depth=2", "model.dropout=0.1", "model.drop_path=0.2"),
    *("augment.crop=pad", "augment.pad=2", "augment.flip=0.5"),
    *("target.mixup=0.2", "target.cutmix=1.0", "eval_every=12"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small class folder: the first pictures of each class of the embedded data."""
    source = open_source("demo:fashion")
    root = tmp_path_factory.mktemp("data")
    taken: dict[int, int] = {}
    for i in range(len(source)):
        example = source.example(i)
        count = taken.get(example.label, 0)
        if count < 12:
            taken[example.label] = count + 1
            place = root / source.classes[example.label]
            place.mkdir(exist_ok=True)
            Image.fromarray(example.image).save(place / f"{count}.png")
    return root


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As in the processes that `start` starts: runs are compared bit for bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory) -> Path:
    """The run that nobody stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    call("train", folder, "--out", out, *TINY, *DRAWS)
    return out


def assert_same_weights(one: Path, other: Path) -> None:
    for name in ("model.safetensors", f"checkpoints/step-{STEPS:08d}.safetensors"):
        left, right = load_file(one / name), load_file(other / name)
        assert left.keys() == right.keys()
        for key in left:
            assert left[key].tobytes() == right[key].tobytes(), f"{name}: {key} differs"


# Twenty moments: six inside a save, and fourteen anywhere. One of each runs by default.
MOMENTS = [
    pytest.param(inside, seed, marks=pytest.mark.slow if seed else ())
    for inside, count in ((True, 6), (False, 14))
    for seed in range(count)
]


@pytest.mark.parametrize(("inside", "seed"), MOMENTS)
def test_a_killed_run_goes_on_bit_for_bit(folder, whole, tmp_path, inside, seed):
    out = tmp_path / "out"
    command = ["train", folder, "--out", out, *TINY, *DRAWS]
    choose = random.Random(seed)
    if inside:
        kill_inside_a_save(command, out, after=choose.randrange(3, STEPS - 6))
    else:
        kill_after(command, out, choose.randrange(3, STEPS), choose.random() * 0.02)
    done = len(step_lines(out))
    process = start(*command)
    process.communicate()
    assert process.returncode == 0
    assert_same_weights(whole, out)
    assert done - records(out, "start")[-1]["step"] <= 5 + 1  # one interval, and the step under way
    steps = [record["step"] for record in records(out, "step")]
    assert steps == list(range(1, STEPS + 1))
    losses = [[r["loss"] for r in records(run, "step")] for run in (whole, out)]
    assert losses[0] == losses[1]
    assert not list(out.rglob(".saving"))


def kill_after(command: list, out: Path, steps: int, wait: float = 0.0) -> None:
    """SIGKILL a command so many seconds after so many steps are recorded."""
    process = start(*command)
    while process.poll() is None and len(step_lines(out)) < steps:
        time.sleep(0.002)
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def kill_inside_a_save(command: list, out: Path, after: int) -> None:
    """SIGKILL a command while it writes a checkpoint, not before so many steps are recorded.

    Whether it was in time shows in what is left: half a file, or tensors without their manifest.
    """
    staged = out / "checkpoints" / ".saving"
    while True:
        process = start(*command)
        while process.poll() is None and len(step_lines(out)) < after:
            time.sleep(0.002)
        while process.poll() is None:
            if staged.exists():
                process.send_signal(signal.SIGKILL)
                break
        process.communicate()
        names = {path.stem: path for path in (out / "checkpoints").glob("step-*.safetensors")}
        whole = {path.stem for path in (out / "checkpoints").glob("step-*.json")}
        if staged.exists() or names.keys() - whole:
            return
        assert process.returncode == -signal.SIGKILL, "the run was over before it was caught"
        after = min(len(step_lines(out)) + 1, STEPS - 1)


def step_lines(out: Path) -> list[str]:
    path = out / "metrics.jsonl"
    return (
        [line for line in path.read_text().splitlines() if '"kind": "step"' in line]
        if path.exists()
        else []
    )


def test_ctrl_c_saves_and_says_how_to_go_on(folder, whole, tmp_path):
    out = tmp_path / "out"
    command = ["train", folder, "--out", out, *TINY, *DRAWS]
    process = start(*command)
    while process.poll() is None and len(step_lines(out)) < 7:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "everything is saved, and the same command goes on from there" in err
    last = records(out, "step")[-1]["step"]
    assert (out / f"checkpoints/step-{last:08d}.json").exists()
    call(*command)
    assert_same_weights(whole, out)


def test_the_command_after_the_end_does_nothing(folder, whole):
    before = (whole / "model.safetensors").stat().st_mtime_ns
    out, err = call("train", folder, "--out", whole, *TINY, *DRAWS, "--json")
    assert json.loads(out)["steps_this_run"] == 0
    assert "finished after 36 steps" in err
    assert (whole / "model.safetensors").stat().st_mtime_ns == before
    assert records(whole, "done")[-1]["steps_this_run"] == 0


def test_workers_and_saving_do_not_change_the_result(folder, whole, tmp_path):
    out = tmp_path / "out"
    often = [4 if word == 5 else word for word in TINY]
    call("train", folder, "--out", out, *often, *DRAWS, "--workers", 2)
    assert_same_weights(whole, out)


def test_other_settings_are_refused_by_name(folder, whole):
    _, err = call("train", folder, "--out", whole, *TINY, *DRAWS, "--lr", "0.5", status=2)
    assert "optim.lr was 0.001" in err.replace("0.0005", "0.001")
    assert "--overwrite" in err


@pytest.mark.parametrize("change", ["added", "removed", "renamed", "relabelled", "contents"])
def test_other_data_are_refused_naming_the_change(folder, tmp_path, change):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(folder, data)
    command = ["train", data, "--out", out, "--model", "vit_mu_patch7_28", "--steps", 1]
    call(*command)
    victim = data / "Bag" / "3.png"
    if change == "added":
        shutil.copy(data / "Coat" / "1.png", data / "Bag" / "new.png")
    elif change == "removed":
        victim.unlink()
    elif change == "renamed":
        victim.rename(victim.with_name("other.png"))
    elif change == "relabelled":
        victim.rename(data / "Coat" / "moved.png")
    else:
        victim.write_bytes((data / "Coat" / "3.png").read_bytes())
    _, err = call(*command, status=2)
    assert "other data" in err
    named = {"added": "new.png", "renamed": "other.png", "relabelled": "moved.png"}
    assert named.get(change, "3.png") in err


def test_changed_data_can_be_accepted_and_that_is_recorded(folder, whole, tmp_path):
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(folder, data)
    shutil.copytree(whole, out)
    unfinished(out)
    shutil.copy(data / "Coat" / "1.png", data / "Bag" / "new.png")
    words = ["train", data, "--out", out, *TINY, *DRAWS]
    _, err = call(*words, status=2)
    assert "--accept-other-data" in err
    call(*words, "--accept-other-data")
    (change,) = records(out, "data")
    assert "Bag/new.png" in " ".join(change["changes"])
    assert records(out, "start")[-1]["step"] == STEPS - 1
    held = json.loads((out / "checkpoints" / "run.json").read_bytes())
    assert held["accepted"] == [change["changes"]]
    call(*words)  # from here on these are the run's data


def unfinished(out: Path) -> None:
    """Make a finished run one that was killed before its last checkpoint."""
    for name in ("config.json", "model.safetensors", "report.html"):
        (out / name).unlink()
    for path in out.glob(f"checkpoints/step-{STEPS:08d}.*"):
        path.unlink()


def test_a_damaged_checkpoint_falls_back_to_the_one_before(folder, whole, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    for name in ("config.json", "model.safetensors", "report.html"):
        (out / name).unlink()
    newest = out / f"checkpoints/step-{STEPS:08d}.safetensors"
    broken = bytearray(newest.read_bytes())
    broken[len(broken) // 2] ^= 4
    newest.write_bytes(broken)
    _, err = call("train", folder, "--out", out, *TINY, *DRAWS)
    assert "going back to the one before" in err
    assert_same_weights(whole, out)


def test_two_processes_cannot_train_in_one_folder(folder, tmp_path):
    out = tmp_path / "out"
    words = ["train", folder, "--out", out, "--model", "vit_mu_patch7_28", "--steps", 100_000]
    process = start(*words)
    while process.poll() is None and len(step_lines(out)) < 2:
        time.sleep(0.01)
    _, err = call(*words, status=2)
    assert "another process is training" in err
    process.kill()
    process.communicate()


def test_weights_are_not_forgotten_by_a_kill_before_the_first_checkpoint(folder, whole, tmp_path):
    words = ["--weights", whole, "--steps", 30, "--batch-size", 16, "--save-every", 30]
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    call("train", folder, "--out", straight, *words)
    process = start("train", folder, "--out", killed, *words)
    while process.poll() is None and len(step_lines(killed)) < 3:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list((killed / "checkpoints").glob("step-*"))
    _, err = call("train", folder, "--out", killed, *words)
    assert "tensors matched" in err
    left, right = (load_file(run / "model.safetensors") for run in (straight, killed))
    assert all(left[key].tobytes() == right[key].tobytes() for key in left)


def test_other_weights_behind_the_same_name_are_refused(folder, whole, tmp_path):
    start_from, out = tmp_path / "w", tmp_path / "out"
    shutil.copytree(whole, start_from)
    words = ["--weights", start_from / "model.safetensors", "--out", out, "--steps", 2]
    call("train", folder, *words)
    shutil.copy(whole / "best.safetensors", start_from / "model.safetensors")
    _, err = call("train", folder, *words, status=2)
    assert "weights_sha256 was" in err
