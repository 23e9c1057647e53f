"""Sentences for users."""

import vitrail
from vitrail.kit.errors import Error, WeightsError, did_you_mean, listing


def test_errors_are_value_errors_and_public():
    assert vitrail.Error is Error
    assert vitrail.WeightsError is WeightsError
    assert issubclass(WeightsError, Error)
    assert issubclass(Error, ValueError)


def test_a_weights_error_holds_what_was_left_over():
    error = WeightsError("they do not fit", missing=["a"], unexpected=("b",), mismatched=["c: ..."])
    assert str(error) == "they do not fit"
    assert (error.missing, error.unexpected, error.mismatched) == (["a"], ["b"], ["c: ..."])
    assert WeightsError("x").missing == []


def test_did_you_mean():
    known = ["vit_base", "vit_tiny", "resnet50"]
    assert did_you_mean("vit_bose", known).startswith("; did you mean 'vit_base'")
    assert did_you_mean("RESNET50", known) == "; did you mean 'resnet50'?"
    assert did_you_mean("quite another thing", known) == ""
    assert did_you_mean("", known) == ""
    assert did_you_mean("x", []) == ""
    assert did_you_mean("Depth", (name for name in ["depth"])) == "; did you mean 'depth'?"


def test_listing_says_how_many_more_there_are():
    assert listing(["a", "b"]) == "a, b"
    assert listing([str(i) for i in range(5)]) == "0, 1, 2, 3, 4"
    assert listing([str(i) for i in range(9)]) == "0, 1, 2, 3, 4 and 4 more"
    assert listing(["a", "b", "c"], most=1) == "a and 2 more"
