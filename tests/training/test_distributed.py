"""Several processes: they compute what one computes, and what they save any number can open."""

import json
import random
import shutil
import signal
import time
from os import kill
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from tests.commands import call, records
from tests.training.processes import finished, process_of, torchrun
from vitrail.training.checkpoint import Checkpoints
from vitrail.training.engine import Engine

BASE = ["DATA", "--steps", "20", "--batch-size", "15", "--save-every", "20"]
BASE += ["--max-corrupt", "0.2"]
SMALL = ["--model", "vit_mu_patch7_28"]
DEPTH = ["--set", "model.depth=2", "eval_every=20"]
DRAWS = ["model.drop_path=0.3", "target.mixup=0.3", "target.cutmix=1.0", "augment.flip=0.5"]
EXACT = ["--precision", "fp64"]
ADAM, SGD = ["optim.lr=1e-5"], ["optim.name=sgd", "optim.lr=0.03"]
NORMS = ["--model", "cvt_13_224", "--image-size", "32"]
NORMS_DEPTH = [*("--set", "model.depths=[1,1,1]", "model.widths=[16,32,32]"), "model.heads=[1,1,2]"]
# Looked at on the way, by a loss of the averaged weights that all processes have a hand in.
MASKED = ["--recipe", "masked_patch", "--lr", "1e-3"]
MASKED += ["--set", "model.depth=2", "eval_every=5", "ema=0.9"]
HEAD_FIRST = ["tuning.part=head_then_all", "tuning.head_for=8", "optim.lr=1e-3"]
# Name: the command, how the processes share, and how far the tensors may be apart.
RUNS = {
    "ddp": ([*BASE, *SMALL, *EXACT, *DEPTH, *DRAWS, "optim.lr=1e-3"], "ddp", 1e-9),
    "fsdp": ([*BASE, *SMALL, *EXACT, *DEPTH, *DRAWS, "optim.lr=1e-3"], "fsdp", 1e-9),
    "pieces": (
        [*BASE, *SMALL, *EXACT, *DEPTH, *DRAWS, "optim.lr=1e-3", "--accumulate", "3"],
        "ddp",
        1e-9,
    ),
    "fsdp-pieces": (
        [*BASE, *SMALL, *EXACT, *DEPTH, *DRAWS, "optim.lr=1e-3", "--accumulate", "3"],
        "fsdp",
        1e-9,
    ),
    "adam-ddp": ([*BASE, *SMALL, *DEPTH, *ADAM], "ddp", 1e-5),
    "adam-fsdp": ([*BASE, *SMALL, *DEPTH, *ADAM], "fsdp", 1e-5),
    "adam-draws-fsdp": ([*BASE, *SMALL, *DEPTH, *ADAM, *DRAWS], "fsdp", 1e-5),
    "sgd-ddp": ([*BASE, *SMALL, *DEPTH, *SGD], "ddp", 1e-4),
    "sgd-fsdp": ([*BASE, *SMALL, *DEPTH, *SGD], "fsdp", 1e-4),
    "sgd-draws-ddp": ([*BASE, *SMALL, *DEPTH, *SGD, *DRAWS], "ddp", 1e-4),
    "masked-ddp": ([*BASE, *SMALL, *EXACT, *MASKED], "ddp", 1e-9),
    "masked-fsdp": ([*BASE, *SMALL, *EXACT, *MASKED], "fsdp", 1e-9),
    "lora-fsdp": ([*BASE, *SMALL, *EXACT, *DEPTH, "tuning.part=lora"], "fsdp", 1e-9),
    "head-first-ddp": ([*BASE, *SMALL, *EXACT, *DEPTH, *HEAD_FIRST], "ddp", 1e-9),
    "head-first-fsdp": ([*BASE, *SMALL, *EXACT, *DEPTH, *HEAD_FIRST], "fsdp", 1e-9),
    "repeats-fsdp": ([*BASE, *SMALL, *EXACT, *DEPTH, *DRAWS, "repeats=3"], "fsdp", 1e-9),
    "norms-ddp": ([*BASE, *NORMS, *EXACT, *NORMS_DEPTH, "--steps", "4"], "ddp", 1e-9),
}
QUICK = ("ddp", "fsdp-pieces", "norms-ddp")


STEPS = 60
WORDS = [
    *("train", "demo:fashion", "--model", "vit_mu_patch7_28", "--steps", str(STEPS)),
    *("--batch-size", "16", "--save-every", "7", "--set", "model.depth=2", "model.dropout=0.1"),
    *("model.drop_path=0.2", "target.mixup=0.2", "augment.flip=0.5", "eval_every=30"),
]
CHECKPOINT = f"checkpoints/step-{STEPS:08d}.safetensors"


def tensors_of(out: Path) -> dict[str, torch.Tensor]:
    """All of the newest checkpoint's tensors, whoever wrote it."""
    checkpoint, damaged = Checkpoints(out).newest()
    assert not damaged
    if checkpoint.shares is None:
        return checkpoint.tensors
    return Engine("cpu", "fp64").load_shares(checkpoint.shares, lambda name, shape: None)


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Sixty pictures in three classes, of which three turn out to be unreadable in training."""
    root, noise = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for i in range(60):
        folder = root / "abc"[i % 3]
        folder.mkdir(exist_ok=True)
        path = folder / f"{i:02d}.jpg"
        picture = noise.integers(0, 256, (28, 28, 3), dtype=np.uint8)
        Image.fromarray(picture).save(path, quality=90)
        if i in (7, 30, 31):
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2] + b"\xff\xd9")
    return root


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory):
    """The same command by one process, run once for all that share it."""
    root, done = tmp_path_factory.mktemp("alone"), {}

    def run(name: str) -> Path:
        words = RUNS[name][0]
        if "--accumulate" in words:
            words = words[: words.index("--accumulate")]
        key = tuple(words)
        if key not in done:
            done[key] = root / str(len(done))
            call("train", data, *words[1:], "--out", done[key])
        return done[key]

    return run


def by_two(names: tuple[str, ...], data: Path, folder: Path, *more: list[str]) -> None:
    """The runs of these names, by two processes in one launch, since launching is what costs."""
    commands = [
        ["train", str(data), *words[1:], "--parallel", way, "--out", str(folder / name)]
        for name in names
        for words, way, _ in [RUNS[name]]
    ]
    commands += more
    (folder / "commands.json").write_text(json.dumps(commands))
    status, _, err = finished(torchrun(2, "tests.training.driver", folder / "commands.json"))
    assert status == 0, err


@pytest.fixture(scope="module")
def quick(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    by_two(QUICK, data, folder, [*WORDS, "--out", str(folder / "whole")])
    return folder


@pytest.fixture(scope="module")
def thorough(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("thorough")
    by_two(tuple(name for name in RUNS if name not in QUICK), data, folder)
    return folder


def check(name: str, two: Path, one: Path) -> None:
    # Fifteen pictures over two processes, and some unreadable: the mean is exact all the same.
    most = RUNS[name][2]
    assert furthest(tensors_of(one), tensors_of(two)) <= most
    for mine, others in zip(records(one, "eval"), records(two, "eval"), strict=True):
        assert mine["loss"] == pytest.approx(others["loss"], rel=max(1e-6, 10 * most))
    losses = [[r["loss"] for r in records(out, "step")] for out in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=RUNS[name][2])
    ends = [records(out, "eval")[-1] for out in (one, two)] if records(one, "eval") else [{}, {}]
    assert ends[0].get("top1") == ends[1].get("top1")
    assert len(records(two, "done")) == 1
    details = [json.loads((out / "config.json").read_bytes())["vitrail"] for out in (one, two)]
    assert details[0]["skipped"] == details[1]["skipped"]
    assert len(details[0]["skipped"]) > 0


@pytest.mark.parametrize("name", QUICK)
def test_two_processes_compute_what_one_does(name, quick, alone):
    check(name, quick / name, alone(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name not in QUICK])
def test_two_processes_compute_what_one_does_in_every_way(name, thorough, alone):
    check(name, thorough / name, alone(name))


def test_shares_are_saved_by_all_and_opened_by_one(quick):
    shares = quick / "fsdp-pieces" / "checkpoints" / "step-00000020"
    assert {path.name for path in shares.iterdir()} == {"__0_0.distcp", "__1_0.distcp", ".metadata"}
    manifest = json.loads(shares.with_suffix(".json").read_bytes())
    assert set(manifest["files"]) == {path.name for path in shares.iterdir()}
    saved = tensors_of(quick / "fsdp-pieces")
    for name, tensor in tensors_of(quick / "ddp").items():
        assert saved[name].shape == tensor.shape
        assert saved[name].dtype == tensor.dtype


def test_damage_in_any_file_of_shares_is_found(quick, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(quick / "fsdp-pieces", out)
    for name in ("__0_0.distcp", "__1_0.distcp", ".metadata"):
        path = out / "checkpoints" / "step-00000020" / name
        whole = path.read_bytes()
        broken = bytearray(whole)
        broken[len(broken) // 3] ^= 16
        path.write_bytes(broken)
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            Checkpoints(out).newest()
        path.write_bytes(whole)
    assert Checkpoints(out).newest()[0].step == 20


@pytest.mark.slow
def test_resharding_keeps_every_bit(data, tmp_path):
    one = tmp_path / "one"
    call("train", data, *BASE[1:], *SMALL, *DEPTH, *DRAWS, "--out", one)
    before, current = tensors_of(one), one
    for count, way in ((2, "fsdp"), (4, "fsdp"), (2, "ddp"), (2, "fsdp"), (1, "fsdp")):
        target = tmp_path / f"{count}-{way}-{current.name}"
        run = torchrun(count, "tests.training.reshard", current, target, way, "fp32")
        status, _, err = finished(run)
        assert status == 0, err
        after = tensors_of(target)
        assert after.keys() == before.keys()
        for name, tensor in before.items():
            assert torch.equal(after[name], tensor), f"{name} by {count} ({way})"
        current = target


# One of two processes is killed from outside: the other says so and ends, and the run goes on.


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


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_others_end_and_the_same_command_goes_on_bit_for_bit(quick, tmp_path, seed):
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
    assert_same(quick / "whole", out)


@pytest.mark.slow
def test_torchrun_gives_the_command_again_by_itself(quick, tmp_path):
    # A restart may find the other process not listening yet, and be restarted once more.
    out = tmp_path / "out"
    run = torchrun(2, "vitrail", *WORDS, "--out", out, restarts=3)
    kill_rank(run, out, rank=1, at=20)
    status, _, err = finished(run)
    assert status == 0, err
    assert "process 1 of 2 (counted from 0) of this run ended too early" in err
    assert len(records(out, "start")) == 2
    assert_same(quick / "whole", out)


@pytest.mark.slow
def test_ctrl_c_to_all_saves_in_all(quick, tmp_path):
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
    assert_same(quick / "whole", out)


def test_processes_are_asked_for_as_they_can_be_had(tmp_path):
    _, err = call("train", "demo:fashion", "--out", tmp_path, "--parallel", "fsdp", status=2)
    assert "start them with torchrun --nproc-per-node N" in err
