"""`vitrail convert`."""

from __future__ import annotations  # hints name tyro, which is imported when they are read

from pathlib import Path
from typing import Annotated, Literal

from vitrail.cli.arguments import arg
from vitrail.kit.errors import Error


def convert(
    source: Annotated[str, arg("FILE")],
    out: Annotated[Path, arg("OUT")],
    /,
    *,
    to: Literal["timm", "hf", "google"],
    model: Annotated[str | None, arg("NAME")] = None,
    which: Literal["final", "best"] = "final",
    overwrite: bool = False,
) -> int:
    """Write weights in the layout of timm, of transformers (hf) or of Google.

    Example: vitrail convert ViT-B_16.npz vit_base --to timm --model ViT-B_16

    What is written is read back, and its logits are compared with the model's.

    Args:
        source: A file or folder of weights of any kind that is read, or hf-hub:org/name.
        out: The folder to make (timm, hf), or the .npz file (google).
        to: Whose layout.
        model: The name of the model, for a file that does not say it.
        which: The weights of the last step, or the best on validation.
        overwrite: Replace what is there.
    """
    from vitrail.weights.convert import check_out
    from vitrail.weights.convert import convert as write
    from vitrail.weights.folder import load_with_report

    if Path(source).expanduser().resolve() == out.expanduser().resolve():
        raise Error(f"{out} is what is read: give another place to write to")
    check_out(out.expanduser(), to, overwrite)
    opened, report = load_with_report(source, name=model, which=which)
    written = write(opened, to, out, overwrite)
    print(report)
    print(written)
    return 0
