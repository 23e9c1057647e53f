"""What the verbs share in reading their arguments."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from vitrail.kit.errors import Error

given: list[str] = []  # the words of the command that is running


def arg(metavar: str) -> Any:
    """How an option is shown; hints are only evaluated when a parser is built from them."""
    import tyro

    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


def settings(pairs: Sequence[str]) -> dict[str, str]:
    """What ``--set`` was given: KEY=VALUE words as a mapping.

    Raises:
        Error: a word without an equals sign.
    """
    for pair in pairs:
        if "=" not in pair:
            raise Error(f"--set takes KEY=VALUE, not {pair!r}")
    return dict(pair.split("=", 1) for pair in pairs)


def gathered(argv: list[str]) -> list[str]:
    """All of ``--set a=1 b=2 ... --set c=3`` behind one ``--set``, so that it may be repeated.

    What stands behind ``--`` are names of files, and stays there.
    """
    end = argv.index("--") if "--" in argv else len(argv)
    argv, names = argv[:end], argv[end:]
    rest: list[str] = []
    settings: list[str] = []
    inside = first = False
    for word in argv:
        if word == "--set":
            inside = first = True
        elif word.startswith("--set="):
            settings.append(word.removeprefix("--set="))
            inside = True
        elif inside and not word.startswith("-") and (first or "=" in word):
            settings.append(word)
            first = False
        else:
            inside = first = False
            rest.append(word)
    rest = [*rest, "--set", *settings] if settings else rest
    for flag in REPEATED:
        rest = _joined(rest, flag)
    return [*rest, *names]


# Flags of several words, which may come again.
REPEATED = ("--axis", "--change", "--models", "--sizes", "--durations")


def _joined(argv: list[str], flag: str) -> list[str]:
    """All words behind a flag that comes several times, behind its first coming."""
    if sum(word == flag or word.startswith(f"{flag}=") for word in argv) < 2:
        return argv
    found: list[str] = []
    rest: list[str] = []
    inside = False
    for word in argv:
        if word.startswith(f"{flag}="):
            found.append(word.removeprefix(f"{flag}="))
            inside = False
            continue
        if word.startswith("-"):
            inside = word == flag
        if inside and word != flag:
            found.append(word)
        elif not inside:
            rest.append(word)
    return [*rest, flag, *found]


def again() -> str:
    """This very command, to be shown as the way to go on."""
    return shlex.join(["vitrail", *(word for word in given if word != "--overwrite")])
