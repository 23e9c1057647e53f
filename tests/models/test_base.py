"""What every family's config is checked for."""

from dataclasses import dataclass

import pytest

from vitrail import Error
from vitrail.models.base import checked_config, height_width, square_or_pair


@dataclass(frozen=True, kw_only=True)
class Staged:
    depths: tuple[int, ...] = (1, 2)
    rate: float = 0.0
    stem: str | None = None


def test_types_of_fields_are_checked_whatever_the_family():
    assert checked_config(Staged, {"depths": [3, 4], "rate": 1}).depths == [3, 4]
    assert checked_config(Staged, {"stem": None}).stem is None
    for name, value, sentence in [
        ("depths", 3, "depths must be a list of numbers, not 3"),
        ("rate", "0.1", "rate must be a number, not '0.1'"),
        ("rate", True, "rate must be a number, not True"),
        ("stem", 7, "stem must be a word or nothing, not 7"),
        ("depth", 7, "Staged has no field 'depth'; did you mean 'depths'"),
    ]:
        with pytest.raises(Error, match=sentence):
            checked_config(Staged, {name: value})


def test_sizes():
    assert height_width(224) == (224, 224)
    assert height_width((32, 48)) == (32, 48)
    assert square_or_pair([224, 224]) == square_or_pair(224) == 224
    assert square_or_pair((32, 48)) == (32, 48)
    for bad in [(1, 2, 3), (), "22", (2.0, 2.0)]:
        with pytest.raises(Error, match="an image size is a whole number or"):
            square_or_pair(bad)
