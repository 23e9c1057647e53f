"""The errors that are the user's to mend: one sentence that names what, where and how.

Anything else that escapes from Vitrail is a bug of ours and keeps its traceback.
"""

import difflib
from collections.abc import Iterable, Sequence


class Error(ValueError):
    """Something the user can mend. The message is one sentence, fit to print as it is."""


class WeightsError(Error):
    """Weights that do not fit a model.

    Attributes:
        missing: our names that the file has no tensor for.
        unexpected: the file's names that the model has no place for.
        mismatched: our names whose shapes differ, each with both shapes in words.
    """

    def __init__(
        self,
        message: str,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        mismatched: Sequence[str] = (),
    ):
        super().__init__(message)
        self.missing = list(missing)
        self.unexpected = list(unexpected)
        self.mismatched = list(mismatched)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A tail for an error message: ``; did you mean 'x'?``, or nothing when nothing is near."""
    lowered = {item.lower(): item for item in known}
    near = difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.6)
    if not near:
        return ""
    return f"; did you mean {' or '.join(repr(lowered[item]) for item in near)}?"


def listing(names: Sequence[str], most: int = 5) -> str:
    """At most ``most`` names joined by commas, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
