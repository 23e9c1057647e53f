"""Several processes: they compute what one computes, and what they save any number can open."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.commands import call, records
from tests.training.processes import finished, torchrun
from vitrail.training.checkpoint import Checkpoints
from vitrail.training.engine import Engine

BASE = ["demo:fashion", "--steps", "20", "--batch-size", "15", "--save-every", "20"]
SMALL = ["--model", "vit_mu_patch7_28"]
DEPTH = ["--set", "model.depth=2", "eval_every=20"]
DRAWS = ["model.drop_path=0.3", "target.mixup=0.3", "target.cutmix=1.0", "augment.flip=0.5"]
EXACT = ["--precision", "fp64"]
ADAM, SGD = ["optim.lr=1e-5"], ["optim.name=sgd", "optim.lr=0.03"]
NORMS = ["--model", "cvt_13_224", "--image-size", "32"]
NORMS_DEPTH = [*("--set", "model.depths=[1,1,1]", "model.widths=[16,32,32]"), "model.heads=[1,1,2]"]
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
    "norms-ddp": ([*BASE, *NORMS, *EXACT, *NORMS_DEPTH, "--steps", "4"], "ddp", 1e-9),
}
QUICK = ("ddp", "fsdp", "fsdp-pieces", "sgd-fsdp", "norms-ddp")


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
def alone(tmp_path_factory):
    """The same command by one process, run once for all that share it."""
    root, done = tmp_path_factory.mktemp("alone"), {}

    def run(name: str) -> Path:
        words = RUNS[name][0]
        if "--accumulate" in words:
            words = words[: words.index("--accumulate")]
        key = tuple(words)
        if key not in done:
            done[key] = root / str(len(done))
            call("train", *words, "--out", done[key])
        return done[key]

    return run


def by_two(names: tuple[str, ...], folder: Path) -> None:
    """The runs of these names, by two processes in one launch, since launching is what costs."""
    commands = [
        ["train", *RUNS[name][0], "--parallel", RUNS[name][1], "--out", str(folder / name)]
        for name in names
    ]
    (folder / "commands.json").write_text(json.dumps(commands))
    status, _, err = finished(torchrun(2, "tests.training.driver", folder / "commands.json"))
    assert status == 0, err


@pytest.fixture(scope="module")
def quick(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    by_two(QUICK, folder)
    return folder


@pytest.fixture(scope="module")
def thorough(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("thorough")
    by_two(tuple(name for name in RUNS if name not in QUICK), folder)
    return folder


def check(name: str, two: Path, one: Path) -> None:
    # Fifteen pictures over two processes: the shares are unequal, and the mean is still exact.
    assert furthest(tensors_of(one), tensors_of(two)) <= RUNS[name][2]
    losses = [[r["loss"] for r in records(out, "step")] for out in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=RUNS[name][2])
    ends = [records(out, "eval")[-1] for out in (one, two)] if records(one, "eval") else [{}, {}]
    assert ends[0].get("top1") == ends[1].get("top1")
    assert len(records(two, "done")) == 1


@pytest.mark.parametrize("name", QUICK)
def test_two_processes_compute_what_one_does(name, quick, alone):
    check(name, quick / name, alone(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name not in QUICK])
def test_two_processes_compute_what_one_does_in_every_way(name, thorough, alone):
    check(name, thorough / name, alone(name))


def test_shares_are_saved_by_all_and_opened_by_one(quick):
    shares = quick / "fsdp" / "checkpoints" / "step-00000020"
    assert {path.name for path in shares.iterdir()} == {"__0_0.distcp", "__1_0.distcp", ".metadata"}
    manifest = json.loads(shares.with_suffix(".json").read_bytes())
    assert set(manifest["files"]) == {path.name for path in shares.iterdir()}
    saved = tensors_of(quick / "fsdp")
    for name, tensor in tensors_of(quick / "ddp").items():
        assert saved[name].shape == tensor.shape
        assert saved[name].dtype == tensor.dtype


def test_damage_in_any_file_of_shares_is_found(quick, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(quick / "fsdp", out)
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
def test_resharding_keeps_every_bit(tmp_path):
    one = tmp_path / "one"
    call("train", *BASE, *SMALL, *DEPTH, *DRAWS, "--out", one)
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
