"""How many cores there are."""

import os

import pytest

from vitrail.kit.cores import cores


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux alone says which")
def test_a_process_that_was_given_one_core_has_one():
    before = os.sched_getaffinity(0)
    assert cores() == len(before)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cores() == 1
    finally:
        os.sched_setaffinity(0, before)
