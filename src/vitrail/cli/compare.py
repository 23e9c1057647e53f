"""`vitrail compare`."""

from __future__ import annotations  # hints name tyro, which is imported when they are read

from pathlib import Path
from typing import Annotated, Any

from vitrail import __version__
from vitrail.cli.arguments import arg
from vitrail.cli.output import check_out, print_json, print_rows


def compare(
    runs: Annotated[tuple[Path, ...], arg("RUN")],
    /,
    *,
    out: Annotated[Path, arg("DIR")],
    json: bool = False,
) -> int:
    """Put several runs beside each other on one page: curves, outcomes, settings, compute.

    Example: vitrail compare runs/a runs/b --out runs/compared

    Args:
        runs: Folders of two to eight runs, finished or not.
        out: A folder for compare.html and compare.json.
        json: Print the comparison as one JSON object on stdout.
    """
    from json import dumps

    from vitrail.kit.errors import Error
    from vitrail.kit.files import write_text_whole
    from vitrail.training.compare import compare as work
    from vitrail.training.compare import open_runs, setting, write_comparison

    opened = open_runs(runs)
    if any(out.resolve() == run.folder.resolve() for run in opened):
        raise Error(f"--out {out} is one of the runs: give a folder of its own")
    check_out(out)
    found: dict[str, Any] = {**work(opened), "report": str(out / "compare.html")}
    out.mkdir(parents=True, exist_ok=True)
    write_text_whole(out / "compare.json", dumps(found, ensure_ascii=False, indent=1))
    write_comparison(out / "compare.html", opened, footer=f"Vitrail {__version__}")
    if json:
        print_json(found)
        return 0
    measures = {run["measure"] for run in found["runs"]}
    measure = "score" if len(measures) > 1 else {"top1": "top1"}.get(measures.pop(), "mAP")
    rows = [
        {
            "run": run["name"],
            measure: _percent(run["score"]),
            "best val": _percent(run["best_val_score"]),
            "loss": "-" if run["loss"] is None else f"{run['loss']:.3f}",
            "steps": run["steps"],
            "exaFLOPs": f"{run['ledger'].get('exaflops', float('nan')):.3g}",
        }
        for run in found["runs"]
    ]
    columns = {"run": "", measure: "", "best val": "", "loss": "", "steps": ",d", "exaFLOPs": ""}
    print_rows(columns, rows)
    for name, values in found["differences"].items():
        print(f"{name}: {' | '.join(setting(value) for value in values)}")
    print(f"page  {found['report']}")
    return 0


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"
