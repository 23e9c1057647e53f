import json
import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from vitrail.kit.errors import Error
from vitrail.training.checkpoint import Checkpoint, Checkpoints


def checkpoint(step: int, size: int = 64) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    tensors = {"model.w": torch.randn(size, size, generator=generator), "s": torch.tensor(1.5)}
    return Checkpoint(step, tensors, {"progress": {"step": step, "best": 0.1 + step}})


def test_the_last_two_stay_and_come_back_exactly(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.newest() == (None, [])
    for step in (1, 2, 3, 10):
        checkpoints.save(checkpoint(step))
    assert checkpoints.steps() == [3, 10]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4
    newest, damaged = checkpoints.newest()
    assert damaged == []
    assert newest.state == checkpoint(10).state
    for name, tensor in checkpoint(10).tensors.items():
        assert torch.equal(newest.tensors[name], tensor)


def test_one_flipped_bit_anywhere_is_found(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(checkpoint(1, size=8))
    checkpoints.save(checkpoint(2, size=8))
    choose = random.Random(0)
    for name in ("step-00000002.safetensors", "step-00000002.json"):
        path = tmp_path / "checkpoints" / name
        whole = path.read_bytes()
        for _ in range(100):
            bit = choose.randrange(8 * len(whole))
            broken = bytearray(whole)
            broken[bit // 8] ^= 1 << bit % 8
            path.write_bytes(broken)
            newest, damaged = checkpoints.newest()
            assert newest.step == 1, f"bit {bit} of {name} went unseen"
            assert "step-00000002" in damaged[0]
        path.write_bytes(whole)
    assert checkpoints.newest()[0].step == 2


def test_nothing_whole_left_is_a_sentence(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(checkpoint(1))
    (tmp_path / "checkpoints" / "step-00000001.safetensors").write_bytes(b"short")
    with pytest.raises(Error, match="start again with --overwrite"):
        checkpoints.newest()


def test_tensors_without_their_manifest_are_no_checkpoint(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(checkpoint(1))
    checkpoints.save(checkpoint(2))
    (tmp_path / "checkpoints" / "step-00000002.json").unlink()
    (tmp_path / "checkpoints" / ".saving").mkdir()
    (tmp_path / "checkpoints" / ".saving" / "step-00000003.safetensors").write_bytes(b"half")
    assert checkpoints.newest()[0].step == 1
    assert not list((tmp_path / "checkpoints").glob(".saving"))


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small tmpfs")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("free_kib", [0, 4, 64, 200, 255, 256, 300, 500, 504, 508])
def test_a_full_disk_leaves_the_checkpoint_before(small_disk, free_kib):
    checkpoints = Checkpoints(small_disk, keep=2)
    checkpoints.save(checkpoint(1, size=360))  # about 0.5 MiB
    free = shutil.disk_usage(small_disk).free
    (small_disk / "filler").write_bytes(bytes(free - free_kib * 1024))
    with pytest.raises(
        Error, match=r"checkpoints cannot be written \(no space left.* is intact"
    ) as raised:
        checkpoints.save(checkpoint(2, size=360))
    assert "\n" not in str(raised.value)
    newest, damaged = checkpoints.newest()
    assert newest.step == 1
    assert damaged == []
    assert not list(Path(small_disk).rglob(".saving"))


def test_a_reader_never_meets_a_moment_without_one(tmp_path):
    writer = Checkpoints(tmp_path)
    writer.save(checkpoint(0, size=16))
    pipe, child = os.pipe(), os.fork()
    if not child:  # the reader, in a process of its own until the writer is done
        status = 4
        try:
            status = read_all_the_time(writer, pipe[1])
        finally:
            os._exit(status)
    assert os.read(pipe[0], 1) == b"."
    for step in range(1, 201):
        writer.save(checkpoint(step, size=16))
    (tmp_path / "stop").touch()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def read_all_the_time(checkpoints: Checkpoints, told: int) -> int:
    """0 if the newest checkpoint was whole at every look."""
    looks = 0
    while not (checkpoints.folder.parent / "stop").exists():
        newest = checkpoints.steps()[-1:]
        if not newest:
            return 1
        try:
            checkpoints._check(newest[0])
        except Error:
            # Three saves went by while it was read: only then may it be gone.
            if checkpoints.steps()[-1] < newest[0] + 2:
                return 2
            continue
        if looks == 0:
            os.write(told, b".")
        looks += 1
    return 0 if looks > 20 else 3


def test_as_many_as_asked_for_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    for step in range(1, 11):
        checkpoints.save(checkpoint(step, size=8))
    assert checkpoints.steps() == [8, 9, 10]
    assert len(list(checkpoints.folder.iterdir())) == 6


def test_the_manifest_is_plain_json(tmp_path):
    Checkpoints(tmp_path).save(checkpoint(7))
    manifest = json.loads((tmp_path / "checkpoints" / "step-00000007.json").read_bytes())
    assert manifest["step"] == 7
    assert len(manifest["sha256"]) == 64
