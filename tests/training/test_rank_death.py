"""One of two processes is killed from outside: the other says so and ends, and the run goes on."""

import random
import signal
import time
from os import kill
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.commands import records
from tests.training.processes import finished, process_of, torchrun

STEPS = 60
WORDS = [
    *("train", "demo:fashion", "--model", "vit_mu_patch7_28", "--steps", STEPS),
    *("--batch-size", 16, "--save-every", 7, "--set", "model.depth=2", "model.dropout=0.1"),
    *("model.drop_path=0.2", "target.mixup=0.2", "augment.flip=0.5", "eval_every=30"),
]
CHECKPOINT = f"checkpoints/step-{STEPS:08d}.safetensors"


def steps_of(out: Path) -> int:
    path = out / "metrics.jsonl"
    return path.read_bytes().count(b'"kind": "step"') if path.exists() else 0


def kill_rank(run, out: Path, rank: int, at: int) -> float:
    """SIGKILL a rank once so many steps are recorded; seconds until torchrun has ended."""
    while run.poll() is None and steps_of(out) < at:
        time.sleep(0.005)
    assert run.poll() is None, run.communicate()
    kill(process_of(run, rank), signal.SIGKILL)
    return time.monotonic()


def assert_same(one: Path, other: Path) -> None:
    for name in ("model.safetensors", CHECKPOINT):
        left, right = load_file(one / name), load_file(other / name)
        assert left.keys() == right.keys()
        assert all(left[key].tobytes() == right[key].tobytes() for key in left), name
    losses = [[(r["step"], r["loss"]) for r in records(out, "step")] for out in (one, other)]
    assert losses[0] == losses[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    status, _, err = finished(torchrun(2, "vitrail", *WORDS, "--out", out))
    assert status == 0, err
    return out


@pytest.mark.parametrize(
    "seed", [pytest.param(n, marks=pytest.mark.slow if n else ()) for n in range(5)]
)
def test_the_others_end_and_the_same_command_goes_on_bit_for_bit(whole, tmp_path, seed):
    choose, out = random.Random(seed), tmp_path / "out"
    command = [*WORDS, "--out", out]
    run = torchrun(2, "vitrail", *command)
    killed = kill_rank(run, out, rank=1 - seed % 2, at=choose.randrange(3, STEPS - 5))
    status, stdout, err = finished(run, timeout=60)
    assert time.monotonic() - killed < 60
    assert status != 0
    assert stdout == ""
    assert f"process {1 - seed % 2} of 2 (counted from 0) of this run ended too early" in err
    assert "the same command goes on from there" in err
    status, _, err = finished(torchrun(2, "vitrail", *command))
    assert status == 0, err
    assert_same(whole, out)


@pytest.mark.slow
def test_torchrun_gives_the_command_again_by_itself(whole, tmp_path):
    out = tmp_path / "out"
    run = torchrun(2, "vitrail", *WORDS, "--out", out, restarts=1)
    kill_rank(run, out, rank=1, at=20)
    status, _, err = finished(run)
    assert status == 0, err
    assert len(records(out, "start")) == 2
    assert_same(whole, out)


@pytest.mark.slow
def test_ctrl_c_to_all_saves_in_all(whole, tmp_path):
    out = tmp_path / "out"
    run = torchrun(2, "vitrail", *WORDS, "--out", out)
    while run.poll() is None and steps_of(out) < 9:
        time.sleep(0.005)
    ranks = [process_of(run, rank) for rank in range(2)]
    for process in (*ranks, run.pid):  # as a terminal does
        kill(process, signal.SIGINT)
    finished(run, timeout=60)
    last = records(out, "step")[-1]["step"]
    assert (out / f"checkpoints/step-{last:08d}.json").exists()
    status, _, err = finished(torchrun(2, "vitrail", *WORDS, "--out", out))
    assert status == 0, err
    assert_same(whole, out)
