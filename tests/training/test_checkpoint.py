import json
import os
import random
import shutil
import subprocess
import sys
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
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(checkpoint(0))
    poll = (
        "import sys\n"
        "from pathlib import Path\n"
        "sys.stdout.write('ready\\n'); sys.stdout.flush()\n"
        "good = 0\n"
        "while not Path(sys.argv[1], 'stop').exists():\n"
        "    folder = Path(sys.argv[1], 'checkpoints')\n"
        "    names = sorted(p.name for p in folder.glob('step-*.json'))\n"
        "    assert names, 'no checkpoint'\n"
        "    good += 1\n"
        "print(good)\n"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", poll, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout.readline() == "ready\n"
    for step in range(1, 60):
        checkpoints.save(checkpoint(step, size=16))
    (tmp_path / "stop").touch()
    looks, _ = reader.communicate(timeout=60)
    assert reader.returncode == 0
    assert int(looks) > 20


def test_the_manifest_is_plain_json(tmp_path):
    Checkpoints(tmp_path).save(checkpoint(7))
    manifest = json.loads((tmp_path / "checkpoints" / "step-00000007.json").read_bytes())
    assert manifest["step"] == 7
    assert len(manifest["sha256"]) == 64
