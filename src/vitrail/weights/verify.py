"""Is a model folder still what was saved? Hashes, shapes, finite values, golden values.

Nothing here raises for a folder that fails: every check is told with the file that it is about.
Only what cannot be read at all (no such folder, no JSON, no weights) is an error.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrail.kit.errors import Error, listing
from vitrail.kit.files import sha256_of
from vitrail.models import zoo
from vitrail.models.base import ImageClassifier
from vitrail.weights.golden import TOLERANCE, golden_gap
from vitrail.weights.read import (
    BEST_FILE,
    DIGESTS,
    GOLDEN,
    MODEL_FILE,
    existing,
    open_weights,
    read_config,
    read_section,
)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        file: the file that it is about.
        name: ``sha256 config shapes finite golden``.
        passed: None where there was nothing to compare with.
        detail: what was found, in words.
    """

    file: str
    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Verdict:
    """What `verify_model` found; ``passed`` when no check failed."""

    path: str
    kind: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(check.passed is not False for check in self.checks)

    @property
    def failures(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.passed is False]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "path": self.path,
            "kind": self.kind,
            "passed": self.passed,
            "checks": [asdict(check) for check in self.checks],
        }


def verify_model(source: Path | str) -> Verdict:
    """Check a model folder: every weight file in it against its `config.json`, and that itself.

    Args:
        source: a folder that `save_model` wrote, or its name on the hub.

    Raises:
        Error: there is no such folder, or it cannot be read as one of ours.
    """
    folder = existing(source)
    if "vitrail" not in read_config(folder):
        raise Error(f"{folder} is another library's folder: it keeps no hashes to verify")
    about = read_section(folder)
    files = [name for name in (MODEL_FILE, BEST_FILE) if (folder / name).exists()]
    if not files:
        raise Error(f"{folder} has a config.json but no {MODEL_FILE}")
    checks: list[Check] = []
    model = None
    try:
        model = zoo.from_description(about)
        checks.append(Check("config.json", "config", True, _in_words(model, about)))
    except (Error, KeyError, TypeError, AttributeError) as error:
        told = f"describes no model: {error}"
        checks.append(Check("config.json", "config", False, told))
    for name in files:
        checks += _file_checks(folder / name, about, model)
    return Verdict(str(folder), "model folder", tuple(checks))


def _in_words(model: ImageClassifier, about: Mapping[str, Any]) -> str:
    count = sum(p.numel() for p in model.parameters())
    return f"{about['family']}, {count:,} parameters, {model.num_classes} classes"


def _file_checks(
    file: Path, about: Mapping[str, Any], model: ImageClassifier | None
) -> Iterator[Check]:
    recorded = [about.get(DIGESTS[file.name]), about.get("incoming", {}).get(file.name)]
    digest = sha256_of(file)
    if not any(recorded):
        yield Check(file.name, "sha256", None, "config.json has none for it")
    elif digest in recorded:
        yield Check(file.name, "sha256", True, f"{digest[:12]}…")
    else:
        yield Check(file.name, "sha256", False, "other bytes than those that were saved")
    try:
        tensors = open_weights(file)
    except Error as error:
        yield Check(file.name, "shapes", False, f"cannot be read: {error}")
        return
    if model is None:
        return
    wrong = _misshapen(tensors, model)
    told = listing(wrong, 3) if wrong else f"{len(tensors)} tensors, as the architecture has them"
    yield Check(file.name, "shapes", not wrong, told)
    bad = [name for name, t in tensors.items() if t.is_floating_point() and not _finite(t)]
    told = f"NaN or infinite values in {listing(bad)}" if bad else "no NaN, nothing infinite"
    yield Check(file.name, "finite", not bad, told)
    if wrong:
        return
    model.load_state_dict(tensors)
    yield _golden(file, about.get(GOLDEN[file.name]), model)


def _misshapen(tensors: Mapping[str, Tensor], model: ImageClassifier) -> list[str]:
    own = model.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in tensors]
    wrong += [f"{name} has no place" for name in tensors if name not in own]
    return wrong + [
        f"{name} is {list(tensors[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in own.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _golden(file: Path, golden: Any, model: ImageClassifier) -> Check:
    if golden is None:
        told = "none were kept when it was saved: save it again to have them"
        return Check(file.name, "golden", None, told)
    try:
        gap, allowed = golden_gap(model, golden), float(golden.get("tolerance", TOLERANCE))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return Check(file.name, "golden", False, f"config.json has no proper ones ({error})")
    told = "logits are not numbers" if math.isinf(gap) else f"logits within {gap:.1e}"
    if gap > allowed:
        told += f" of those at saving, where {allowed:.0e} is allowed"
    return Check(file.name, "golden", gap <= allowed, told)


def read_kind(source: Path | str) -> str:
    """What a folder holds: ``bundle`` where it has a `bundle.json`, else ``model``.

    Raises:
        Error: there is no such folder.
    """
    return "bundle" if (existing(source) / "bundle.json").exists() else "model"
