"""Rules: how a publisher's tensors become ours, and back.

A family of files is a list of rules, tried in order. Each works both ways, so that a round trip
can be tested and every family that is read can also be written. A pattern holds ``{i}`` for a
number and ``{name}`` for any text; several patterns on their side make one tensor on ours.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from vitrail.kit.errors import WeightsError, listing


def same(tensor: Tensor) -> Tensor:
    """The tensor as it is."""
    return tensor


@dataclass(frozen=True)
class Rule:
    """One tensor of ours and where it comes from.

    Args:
        theirs: the publisher's name, or several names whose tensors are put together.
        ours: our state-dict name.
        to_ours: takes as many tensors as ``theirs`` has names; raises ValueError on a bad shape.
        to_theirs: the inverse; returns one tensor, or a tuple where ``theirs`` has several names.
    """

    theirs: str | tuple[str, ...]
    ours: str
    to_ours: Callable[..., Tensor] = same
    to_theirs: Callable[[Tensor], Any] = same

    @property
    def parts(self) -> tuple[str, ...]:
        """The publisher's names, however many there are."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


@dataclass
class Reading:
    """What a family makes of one file, before anything is known to fit.

    Args:
        family: `LoadReport.family`.
        rules: what the names mean.
        tensors: the file's tensors under the publisher's plain names.
        names: plain name to the name in the file, where they differ.
        wrappers: prefixes that the publisher put before the plain names.
        dropped: the file's names that belong to something else (an optimizer, a text model).
        droppable: our names, or prefixes ending in a dot, that a model may do without.
        numerics: config fields that these weights were trained with, and their values.
        resize: how the family resizes position tables (a key of `kit.grid.RESIZES`).
        resize_kept: the same where the model's own numerics are kept.
        preprocessing: fields of `Preprocessing` that come with the family.
        notes: sentences for the report.
    """

    family: str
    rules: Sequence[Rule]
    tensors: Mapping[str, Tensor]
    names: Mapping[str, str] = field(default_factory=dict)
    wrappers: Sequence[str] = ()
    dropped: Sequence[str] = ()
    droppable: Sequence[str] = ()
    numerics: Mapping[str, Any] = field(default_factory=dict)
    resize: str = "bicubic_antialias"
    resize_kept: str = "bicubic_antialias"
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def in_file(self, name: str) -> str:
        """A plain name as it stands in the file."""
        return self.names.get(name, name)


@dataclass
class Translation:
    """The outcome of `to_ours`.

    Attributes:
        tensors: by our names.
        origin: our name to the publisher's names that it was made from.
        unknown: the publisher's names that no rule knows.
        lacking: the publisher's names that a rule needs beside others that are there.
        misshapen: our names that could not be made, each with the reason.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    origin: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    lacking: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)


def to_ours(rules: Sequence[Rule], tensors: Mapping[str, Tensor]) -> Translation:
    """Apply the rules to a publisher's tensors. Nothing is lost: see `Translation`."""
    done, left = Translation(), dict.fromkeys(tensors)
    for rule in rules:
        for values, found in _groups(rule, left).items():
            for name in found:
                del left[name]
            wanted = [_fill(part, values) for part in rule.parts]
            missing = [name for name in wanted if name not in found]
            done.lacking += missing
            if missing:
                continue
            ours = _fill(rule.ours, values)
            try:
                done.tensors[ours] = rule.to_ours(*(tensors[name] for name in wanted))
                done.origin[ours] = tuple(wanted)
            except (ValueError, IndexError, RuntimeError) as error:
                done.misshapen.append(f"{ours}: {str(error).splitlines()[0]}")
    done.unknown = list(left)
    return done


def to_theirs(rules: Sequence[Rule], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Apply the rules the other way, to tensors under our names.

    Raises:
        WeightsError: tensors that the publisher's format has no place for.
    """
    done, left = {}, dict.fromkeys(tensors)
    for rule in rules:
        for name in list(left):
            found = re.fullmatch(_pattern(rule.ours), name)
            if not found:
                continue
            del left[name]
            made = rule.to_theirs(tensors[name])
            made = made if isinstance(made, tuple) else (made,)
            values = tuple(found.groupdict().items())
            for part, tensor in zip(rule.parts, made, strict=True):
                done[_fill(part, values)] = tensor
    if left:
        raise WeightsError(
            f"this format has no place for {listing(list(left))}", unexpected=list(left)
        )
    return done


def misfit(
    source: str,
    missing: Sequence[str] = (),
    unexpected: Sequence[str] = (),
    mismatched: Sequence[str] = (),
    hint: str = "",
) -> WeightsError:
    """The error that prints both left-over sides, in one sentence."""
    sides = []
    if missing:
        sides.append(f"{_count(missing, 'tensor')} of the model not in it ({listing(missing)})")
    if unexpected:
        sides.append(f"{_count(unexpected, 'tensor')} without a place ({listing(unexpected)})")
    if mismatched:
        sides.append(f"{len(mismatched)} of another shape ({listing(mismatched, 3)})")
    message = f"{source} does not fit the model: {'; '.join(sides)}{hint and '; ' + hint}"
    return WeightsError(message, missing, unexpected, mismatched)


def under(name: str, roots: Collection[str]) -> bool:
    """Whether a name is one of the roots or lies below one: ``head`` holds ``head.weight``."""
    return any(name == root or name.startswith(root.rstrip(".") + ".") for root in roots)


def _count(names: Sequence[str], what: str) -> str:
    return f"{len(names)} {what}{'' if len(names) == 1 else 's'}"


def _pattern(template: str) -> str:
    pieces = re.split(r"\{(\w+)\}", template)
    for at, piece in enumerate(pieces):
        kind = r"\d+" if len(piece) == 1 else r".+"
        pieces[at] = f"(?P<{piece}>{kind})" if at % 2 else re.escape(piece)
    return "".join(pieces)


def _fill(template: str, values: tuple[tuple[str, str], ...]) -> str:
    for key, value in values:
        template = template.replace("{" + key + "}", value)
    return template


def _groups(
    rule: Rule, names: Collection[str]
) -> dict[tuple[tuple[str, str], ...], dict[str, None]]:
    """The names that belong together, by the values of the placeholders."""
    groups: dict[tuple[tuple[str, str], ...], dict[str, None]] = {}
    for part in rule.parts:
        pattern = re.compile(_pattern(part))
        for name in names:
            found = pattern.fullmatch(name)
            if found:
                values = tuple(sorted(found.groupdict().items()))
                groups.setdefault(values, {})[name] = None
    return groups
