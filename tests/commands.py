"""Running the real command: in a process of its own, or, where that tells as much, in this one."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

from vitrail.cli import main

# One thread: a run on the CPU is the same bit for bit at a fixed number of threads.
QUIET = {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"}


def start(*words: object, cwd: Path | None = None) -> subprocess.Popen:
    """A `vitrail` process of its own, under way."""
    return subprocess.Popen(
        [sys.executable, "-m", "vitrail", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, **QUIET, "PYTHONDONTWRITEBYTECODE": "1"},
    )


def call(*words: object, status: int = 0) -> tuple[str, str]:
    """Run a `vitrail` command to its end in this process, which is quicker."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(word) for word in words])
        except SystemExit as end:  # the parser's own
            code = end.code or 0
    return checked(code, out.getvalue(), err.getvalue(), status)


def checked(code: int, out: str, err: str, status: int) -> tuple[str, str]:
    """Check the exit status; with 2, that there is one clear line and nothing else."""
    assert code == status, f"exit status {code}\n{out}\n{err}"
    if status == 2:
        assert out == ""
        assert err.startswith("error: "), err
        assert err.count("\n") == 1, err
    return out, err


def records(folder: Path, kind: str) -> list[dict]:
    """The records of a kind in a run's folder."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [r for r in map(json.loads, lines) if r["kind"] == kind]
