"""Names on the Hugging Face hub, ``hf-hub:org/name`` or ``hf-hub:org/name@revision``.

Only safetensors and JSON are ever asked for, so that nothing in a repository can run code. Files
are kept under ``VITRAIL_CACHE`` in the hub's own layout (``hub/models--org--name/snapshots/...``),
and are used from there when the network is gone.
"""

import os
import re
from functools import cache
from pathlib import Path

from vitrail.kit.errors import Error

PREFIXES = ("hf-hub:", "hf_hub:")
WANTED = ("*.safetensors", "*.safetensors.index.json", "*config.json")
LEFT = ("*/*", "open_clip*", "*onnx*", "*trainer*")  # other folders and other libraries' files


def is_hub_name(source: object) -> bool:
    """Whether a source is written as a name on the hub."""
    return isinstance(source, str) and source.startswith(PREFIXES)


def cache_folder() -> Path:
    """Where downloads are kept: ``VITRAIL_CACHE``, by default ``~/.cache/vitrail``."""
    return Path(os.environ.get("VITRAIL_CACHE") or "~/.cache/vitrail").expanduser()


def downloaded(name: str) -> Path:
    """The local folder of a hub name, downloaded where it is not there yet.

    Raises:
        Error: no such repository or revision, no right to it, no network and nothing in the
            cache, no safetensors in it, or the extra ``hf`` is not installed.
    """
    written = name.split(":", 1)[1]
    found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", written)
    if found is None:
        raise Error(f"{name} is not written as hf-hub:org/name or hf-hub:org/name@revision")
    return _snapshot(name, found[1], found[2], cache_folder())


@cache
def _snapshot(name: str, repository: str, revision: str | None, folder: Path) -> Path:
    # Where the transfer of large files keeps its logs; read when the library is imported.
    os.environ.setdefault("HF_XET_CACHE", str(folder / "xet"))
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    except ImportError:
        raise Error(
            f"{name} is on the hub, which needs huggingface_hub: pip install 'vitrail[hf]'"
        ) from None
    if not are_progress_bars_disabled() and not os.isatty(2):
        disable_progress_bars()
    try:
        path = snapshot_download(
            repository,
            revision=revision,
            cache_dir=folder / "hub",
            allow_patterns=list(WANTED),
            ignore_patterns=list(LEFT),
        )
    except Exception as error:  # the library's, the network's or the proxy's own kind
        raise Error(_reason(name, error, folder)) from None
    snapshot = Path(path)
    if not any(file.suffix == ".safetensors" for file in snapshot.iterdir()):
        raise Error(
            f"{name} has no safetensors: only those and JSON are taken from the hub, because a "
            "pickle can run code"
        )
    return snapshot


def _reason(name: str, error: Exception, folder: Path) -> str:
    """What went wrong, in a sentence."""
    kind = {of.__name__ for of in type(error).__mro__}
    if "GatedRepoError" in kind:
        return f"{name} asks for its terms to be accepted: do so on its page, then log in"
    if "RevisionNotFoundError" in kind:
        return f"{name}: the repository has no such revision"
    if {"RepositoryNotFoundError", "HFValidationError"} & kind:
        return f"{name}: the hub has no such repository, or it is private: check the name"
    if "IncompleteSnapshotError" in kind:
        return (
            f"{name} is only partly in the cache {folder}, and the hub cannot be reached for the "
            "rest: try again with a network"
        )
    if isinstance(error, OSError) and getattr(error, "errno", None) is not None:
        return f"{name} cannot be kept in {folder} ({(error.strerror or str(error)).lower()})"
    return (
        f"{name} is not in the cache {folder}, and the hub cannot be reached: try again with a "
        "network, or download the files and give their folder"
    )
