"""A save is killed at every one of its system calls, and every one of them fails once.

strace does it from outside: it attaches to a process that is about to save, and at the n-th call of
a kind sends SIGKILL or makes the call fail. Where strace is missing or may not trace, this is
skipped.
"""

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import torch

from vitrail.kit.errors import Error
from vitrail.training.checkpoint import Checkpoint, Checkpoints

CALLS = "openat,write,pwrite64,ftruncate,fallocate,fsync,fchmod,chmod,fchmodat,mkdir,rmdir,rename"
CALLS += ",renameat,renameat2,unlink,unlinkat,msync,close,mmap,munmap"
CHANGING = {
    "openat",
    "write",
    "pwrite64",
    "fsync",
    "mkdir",
    "rename",
    "unlink",
    "unlinkat",
    "chmod",
}


def checkpoint(step: int) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    return Checkpoint(step, {"w": torch.randn(64, 64, generator=generator)}, {"step": step})


def save_under(out: Path, log: Path, inject: str = "") -> int:
    """Save step 3 beside 1 and 2 in a process that strace watches; its exit status (-9: killed)."""
    shutil.rmtree(out, ignore_errors=True)
    checkpoints = Checkpoints(out)
    for step in (1, 2):
        checkpoints.save(checkpoint(step))
    third = checkpoint(3)
    start = os.pipe()
    child = os.fork()
    if not child:
        os.close(start[1])
        os.read(start[0], 1)  # until strace is there
        try:
            checkpoints.save(third)
        except Error as error:
            log.with_suffix(".error").write_text(str(error))
            os._exit(2)
        except BaseException:
            os._exit(1)
        os._exit(0)
    os.close(start[0])
    words = ["strace", "-f", "-y", "-s", "0", "-o", str(log), "-e", f"trace={CALLS}"]
    words += ["-e", f"inject={inject}"] if inject else []
    tracer = subprocess.Popen(
        [*words, "-p", str(child)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    said = tracer.stderr.readline()
    if "attached" not in said:
        os.close(start[1])
        os.waitpid(child, 0)
        tracer.wait()
        pytest.skip(f"strace may not trace here: {said.strip()}")
    os.write(start[1], b".")
    os.close(start[1])
    _, status = os.waitpid(child, 0)
    tracer.wait()
    tracer.stderr.close()
    return os.waitstatus_to_exitcode(status)


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> list[str]:
    """The lines of strace for one save that is left alone, from its first call on the disk."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    folder = tmp_path_factory.mktemp("calls")
    assert save_under(folder / "out", folder / "log") == 0
    lines = [line.partition(" ")[2].strip() for line in (folder / "log").read_text().splitlines()]
    return [line for line in lines if re.match(r"\w+\(", line)]


def name_of(line: str) -> str:
    return line.partition("(")[0]


def test_a_kill_at_any_call_leaves_a_whole_checkpoint(calls, tmp_path):
    counts = Counter(name_of(line) for line in calls)
    places = [(name, n) for name in CHANGING & set(counts) for n in range(1, counts[name] + 1)]
    assert len(places) > 25
    seen = Counter()
    out = tmp_path / "out"
    for name, n in places:
        status = save_under(out, tmp_path / "log", f"{name}:signal=SIGKILL:when={n}")
        assert status == -9, f"{name} {n} was not reached"
        checkpoints = Checkpoints(out)
        newest, damaged = checkpoints.newest()
        assert not damaged, f"{name} {n}"
        assert torch.equal(newest.tensors["w"], checkpoint(newest.step).tensors["w"])
        assert newest.step in (2, 3), f"{name} {n}"
        seen[newest.step] += 1
        # The next start has cleaned up: what is there belongs to a checkpoint.
        left = {path.stem for path in checkpoints.folder.iterdir()}
        assert left == {f"step-{step:08d}" for step in checkpoints.steps()}, f"{name} {n}"
    assert min(seen[2], seen[3]) > 0


def test_a_call_that_fails_is_a_sentence_and_the_one_before_stays(calls, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log"
    # The first mkdir is of the folder that is there already.
    for name, error, n in (("fsync", "EIO", 1), ("rename", "EACCES", 1), ("mkdir", "EROFS", 2)):
        assert sum(name_of(line) == name for line in calls) >= n
        assert save_under(out, log, f"{name}:error={error}:when={n}") == 2
        said = log.with_suffix(".error").read_text()
        assert "cannot be written" in said
        assert "what was saved there before is intact" in said
        newest, damaged = Checkpoints(out).newest()
        assert (newest.step, damaged) == (2, [])


def test_old_ones_that_cannot_be_removed_do_not_stop_the_run(calls, tmp_path):
    out = tmp_path / "out"
    last = max(i for i, line in enumerate(calls) if name_of(line) in ("unlink", "unlinkat"))
    kind = name_of(calls[last])
    before = sum(name_of(line) == kind for line in calls)
    removals = [line for line in calls if name_of(line) == kind and "step-00000001" in line]
    assert removals
    inject = f"{kind}:error=EROFS:when={before - len(removals) + 1}+"
    assert save_under(out, tmp_path / "log", inject) == 0
    newest, damaged = Checkpoints(out).newest()
    assert (newest.step, damaged) == (3, [])
    assert Checkpoints(out).steps() == [1, 2, 3]


def test_a_file_is_flushed_then_renamed_then_its_folder_is_flushed(calls):
    """Beside the target too: the same folder, so the same file system."""
    for suffix in ("safetensors", "json"):
        target = f"step-00000003.{suffix}"
        order = [
            (name_of(line), i)
            for i, line in enumerate(calls)
            if (name_of(line) == "fsync" and f".saving/{target}>" in line)
            or (name_of(line).startswith("rename") and f'checkpoints/{target}"' in line)
            or (name_of(line) == "fsync" and "checkpoints>" in line)
        ]
        names = [name for name, _ in order]
        renamed = next(i for i, name in enumerate(names) if name.startswith("rename"))
        assert "fsync" in names[:renamed]
        assert names[renamed + 1] == "fsync"
