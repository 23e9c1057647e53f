"""timm as an oracle without torchvision, which has no CPU build beside this torch.

``from tests.reference.torchvision_stub import timm``: while timm is imported, a finder stands in
for every ``torchvision`` module; afterwards it is gone, so that no other library takes the
stand-in for the real thing. Where timm is not installed, the importing test is skipped.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class _Anything(type):
    """A class whose every attribute is there, and is a name: enough for the enums."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        made = _Anything(name, (), {})
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.split(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


@contextmanager
def torchvision_stub() -> Iterator[None]:
    """Inside, any ``import torchvision...`` succeeds; real installations are left alone."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    finder = _Finder()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]


with torchvision_stub():
    timm = pytest.importorskip("timm")
