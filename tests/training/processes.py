"""Several processes of one run, started by torchrun as a user would; and single ones of them."""

import os
import subprocess
import sys
from pathlib import Path

from tests.commands import QUIET

ROOT = Path(__file__).resolve().parents[2]


def torchrun(
    count: int, module: str, *words: object, restarts: int = 0, **environment: str
) -> subprocess.Popen:
    """``torchrun -m module words`` under way, with ``count`` processes on this machine."""
    flags = ["--standalone", "--nproc-per-node", count, "--max-restarts", restarts]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *map(str, flags), "-m", module]
        + [str(word) for word in words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={
            **os.environ,
            **QUIET,
            "PYTHONPATH": path,
            "PYTHONDONTWRITEBYTECODE": "1",
            **environment,
        },
    )


def finished(process: subprocess.Popen, timeout: float = 280) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a process, once it has ended."""
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, out, err


def process_of(torchrun: subprocess.Popen, rank: int) -> int | None:
    """The process id of a rank; None while there is none."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(folder.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            if parent != torchrun.pid:
                continue
            environment = folder.joinpath("environ").read_bytes().split(b"\0")
        except (OSError, ValueError):  # it has just ended
            continue
        if f"RANK={rank}".encode() in environment:
            return int(folder.name)
    return None
