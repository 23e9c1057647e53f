"""`vitrail demo`."""

from __future__ import annotations  # hints name tyro, which is imported when they are read

from pathlib import Path
from typing import Annotated

from vitrail.cli.arguments import again, arg


def demo(
    *,
    out: Annotated[Path, arg("DIR")] = Path("vitrail-demo"),
    as_folder: Annotated[Path | None, arg("DIR")] = None,
    seed: int = 0,
    overwrite: bool = False,
) -> int:
    """Train a small Vision Transformer on 10,000 pictures of clothes, and use it; a few minutes.

    Example: vitrail demo --out runs/demo

    Example: vitrail demo --as-folder fashion/

    Args:
        out: Where the model and its report go; vitrail-demo here by default.
        as_folder: Only write the pictures there, as a folder to train on.
        seed: Of the run.
        overwrite: Replace the run that --out holds.
    """
    from vitrail.data.fashion import write_folder

    if as_folder is not None:
        write_folder(as_folder)
        print(f"train on it with: vitrail train {as_folder} --recipe demo --out runs/clothes")
        return 0
    from vitrail.recipes.run import train as work

    run = work(
        "demo:fashion",
        recipe="demo",
        out=out,
        val_fraction=0.05,
        seed=seed,
        overwrite=overwrite,
        quiet=False,
        command=again(),
    )
    print(run.summary())
    _show_off(out)
    return 0


def _show_off(folder: Path) -> None:
    """Use the demo's model on a few test pictures, and say what to try next."""
    from vitrail.data.sources import open_source
    from vitrail.serving.classifier import Classifier

    source, classify = open_source("demo:fashion", "test"), Classifier(folder)
    print("\nfive test pictures, and what the model says of them:")
    for example in (source.example(i) for i in range(0, len(source), len(source) // 5)):
        (answer,) = classify([example.image], top_k=2)
        said = ", ".join(f"{label} {100 * chance:.0f} %" for label, chance in answer)
        print(f"  {source.classes[example.label]:<16} -> {said}")
    print(
        f"\nopen {folder / 'report.html'} to see where it looks and what it mistakes.\n"
        "next, on a folder of your own images (one folder a class):\n"
        "  vitrail train photos/ --model vit_tiny_patch16_224 --out runs/photos\n"
        "  vitrail predict runs/photos new/*.jpg --top 3"
    )
