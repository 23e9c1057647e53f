"""The temperature of a model folder: stored beside the weights that it was fitted on.

In the ``vitrail`` section of `config.json`, ``temperature`` holds a number for ``final`` and one
for ``best``; ``calibration`` says for each of them on what it was fitted, and the SHA-256 of the
weights file. A temperature whose weights have been replaced since is passed over, for it says
nothing of the new ones.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail.kit.errors import Error
from vitrail.kit.files import sha256_of
from vitrail.weights.folder import update_details
from vitrail.weights.read import BEST_FILE, DIGESTS, MODEL_FILE, read_config, read_section

KINDS = {MODEL_FILE: "final", BEST_FILE: "best"}


def read_temperature(source: Path | str, which: str = "final") -> float:
    """What to divide a model's logits by before the softmax; 1 where nothing was fitted.

    Args:
        source: a model folder, or a weights file in one.
        which: ``final`` or ``best``, as for `load_model`.

    Raises:
        Error: a temperature that is no number above 0.
    """
    path = Path(source).expanduser()
    folder = path if path.is_dir() else path.parent
    if path.is_file() and path.name not in KINDS:
        return 1.0
    if not (folder / "config.json").exists():
        return 1.0
    section = read_config(folder).get("vitrail", {})
    file = _weights_file(folder, which) if path.is_dir() else path.name
    kind = KINDS[file]
    fitted = (section.get("temperature") or {}).get(kind, 1.0)
    if isinstance(fitted, bool) or not isinstance(fitted, int | float) or not fitted > 0:
        raise Error(f"{source}: its temperature is a number above 0, not {fitted!r}")
    of = (section.get("calibration") or {}).get(kind, {}).get("sha256")
    if of is not None:
        # A folder's file was compared with the recorded hash when it was opened.
        now = section.get(DIGESTS[file]) if path.is_dir() else None
        if of != (now or sha256_of(folder / file)):
            return 1.0
    return float(fitted)


def check_storable(source: Path | str) -> None:
    """Find out whether a temperature could be stored, before it is fitted.

    Raises:
        Error: no model folder of ours.
    """
    if not Path(source).expanduser().is_dir():
        raise Error(
            f"{source}: a temperature is stored in a model folder, and this is none: save the "
            "model with vitrail.save_model first"
        )
    read_section(source)


def write_temperature(
    folder: Path | str, which: str, temperature: float, facts: Mapping[str, Any]
) -> str:
    """Store a temperature in a model folder; the config is rewritten whole or not at all.

    Args:
        which: as for `load_model`: ``best`` is the final weights where there are no others.
        temperature: above 0.
        facts: on what it was fitted, as JSON values.

    Returns:
        ``final`` or ``best``: whose it is.

    Raises:
        Error: no model folder, no room, no right to write.
    """
    check_storable(folder)
    folder = Path(folder).expanduser()
    file = _weights_file(folder, which)
    kind = KINDS[file]
    section = read_section(folder)
    digest = section.get(DIGESTS[file]) or sha256_of(folder / file)
    about = {"temperature": temperature, "sha256": digest, **facts}
    update_details(
        folder,
        temperature={**(section.get("temperature") or {}), kind: temperature},
        calibration={**(section.get("calibration") or {}), kind: about},
    )
    return kind


def _weights_file(folder: Path, which: str) -> str:
    """The file that `load_model` opens."""
    return BEST_FILE if which == "best" and (folder / BEST_FILE).exists() else MODEL_FILE
