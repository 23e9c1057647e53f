"""Trackers: the records of a run, shown by somebody else's program while they are written.

`metrics.jsonl` stays the run's own record; a tracker holds the same numbers, each of them in full
(float64). What it writes lies in the run's folder. A run that goes on writes the tracker's files
anew from the records, so that they are never ahead of them nor behind.
"""

import contextlib
import importlib.util
import math
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vitrail.kit.errors import Error, did_you_mean
from vitrail.kit.records import Records
from vitrail.training.output import Output

TRACKERS = ("tensorboard",)
FOLDER = "tensorboard"
GROUPS = {"step": "train", "eval": "val", "fewshot": "fewshot"}
NO_FIGURES = ("kind", "step", "time")


def check_tracker(name: str | None) -> None:
    """Refuse a tracker that there is not, before anything is begun.

    Raises:
        Error: an unknown one, or one whose package is not installed.
    """
    if name is None:
        return
    if name not in TRACKERS:
        near = did_you_mean(name, TRACKERS) or f"; there is {', '.join(TRACKERS)}"
        raise Error(f"unknown tracker {name!r}{near}")
    if importlib.util.find_spec("tensorboard") is None:
        raise Error("--track tensorboard needs a package: pip install 'vitrail[track]'")


@contextlib.contextmanager
def tracked(output: Output, name: str | None) -> Iterator[None]:
    """Within this, what is written to an output's metrics goes to a tracker too."""
    if name is None or not getattr(output, "writes", True):
        yield
        return
    own = output.metrics
    followed = Tracked(own, output.path / FOLDER)
    output.metrics = followed
    try:
        yield
    finally:
        output.metrics = own
        followed.close()


class Tracked(Records):
    """Records that TensorBoard shows too.

    Args:
        records: the run's own.
        folder: for the event files; made, from the records that are there, on the first write.
    """

    def __init__(self, records: Records, folder: Path):
        super().__init__(records.path)
        self.folder = folder
        self._writer: Any = None

    def write(self, kind: str, **fields: Any) -> None:
        """As `Records.write`, then the same figures for TensorBoard.

        Raises:
            Error: a file cannot be written.
        """
        self._writer = self._writer or self._open()
        super().write(kind, **fields)
        self._show(self._writer, kind, fields)
        if kind in ("eval", "save", "done"):
            self._writer.flush()

    def close(self) -> None:
        """Write out what is still in memory."""
        if self._writer is not None:
            self._writer.close()

    def _open(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(self.folder, ignore_errors=True)
        try:
            writer = SummaryWriter(str(self.folder))
        except OSError as error:
            raise Error(f"{self.folder} cannot be written: {error.strerror}") from error
        for record in self.read():
            self._show(writer, record["kind"], record)
        return writer

    def _show(self, writer: Any, kind: str, fields: Mapping[str, Any]) -> None:
        step = fields.get("step", fields.get("steps", 0))
        if kind == "done":
            for split, figures in (fields.get("metrics") or {}).items():
                self._figures(writer, f"final {split}", figures, step)
        elif kind in GROUPS:
            self._figures(writer, GROUPS[kind], fields, step)

    def _figures(self, writer: Any, group: str, fields: Mapping[str, Any], step: int) -> None:
        for name, value in fields.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and name not in NO_FIGURES and math.isfinite(value):
                writer.add_scalar(
                    f"{group}/{name}", value, step, new_style=True, double_precision=True
                )
