"""The kinds of study by name, each imported when it is asked for."""

from importlib import import_module

from vitrail.kit.errors import Error, did_you_mean
from vitrail.studies.definition import Kind
from vitrail.studies.flags import KINDS


def find_kind(name: str) -> Kind:
    """A kind of study.

    Raises:
        Error: there is none of that name.
    """
    if name not in KINDS:
        near = did_you_mean(name, KINDS) or f"; there are {', '.join(KINDS)}"
        raise Error(f"no study is called {name!r}{near}")
    return import_module(f"vitrail.studies.{KINDS[name]}").KIND
