"""Micro-batches: their number changes nothing, and too little memory only makes more of them."""

import os
import subprocess
import sys

import pytest
import torch

from tests.commands import QUIET, records
from tests.training.small import CVT, CutOff, assert_equal, pictures, session, weights
from vitrail.kit.errors import Error
from vitrail.training.loop import run
from vitrail.training.objectives import Example, Loss, Supervised
from vitrail.training.recipe import Target
from vitrail.training.session import Options, Session

MIXED = Target(mixup=0.4, cutmix=1.0)


class Narrow(Supervised):
    """`Supervised` on a device that has room for so many pictures only."""

    def __init__(self, room: int, error: type[Exception] = torch.OutOfMemoryError):
        super().__init__()
        self.room, self.error, self.calls = room, error, 0

    def forward(self, model, batch: Example) -> Loss:
        loss = super().forward(model, batch)
        self.calls += 1
        if self.calls > 5 and len(batch.images) > self.room:  # in the third step: not at once
            raise self.error("no room")
        return loss


def furthest(one, other) -> float:
    one, other = weights(one.state), weights(other.state)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("pieces", [2, 3, 8])
def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path, pieces):
    whole, cut = (
        session(
            tmp_path / str(count),
            pictures(),
            options=Options(accumulate=count),
            precision="fp64",
            target=MIXED,
        )
        for count in (1, pieces)
    )
    run(whole)
    run(cut)
    assert furthest(whole, cut) < 1e-9


def test_more_pieces_than_pictures_are_refused(tmp_path):
    with pytest.raises(Error, match="a batch of 8 cannot be cut into 1 processes x 9"):
        session(tmp_path / "out", pictures(), options=Options(accumulate=9))


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_batch(tmp_path):
    options = Options(record_keys=True, save_every=4)
    roomy = session(tmp_path / "roomy", pictures(), options=options, precision="fp64", target=MIXED)
    narrow = session(
        tmp_path / "narrow",
        pictures(),
        objective=Narrow(room=3),
        options=options,
        precision="fp64",
        target=MIXED,
    )
    run(roomy)
    run(narrow)
    told = records(tmp_path / "narrow", "memory")
    assert [(r["step"], r["micro_batch"], r["accumulate"]) for r in told] == [(6, 4, 2), (6, 2, 4)]
    keys = [(tmp_path / name / "keys.jsonl").read_text() for name in ("roomy", "narrow")]
    assert keys[0] == keys[1]
    assert furthest(roomy, narrow) < 1e-9
    assert narrow.checkpoints.newest()[0].state["progress"]["accumulate"] == 4


def test_going_on_after_it_is_exact(tmp_path):
    def begin(name: str) -> Session:
        return session(tmp_path / name, pictures(), objective=Narrow(room=3))

    whole, cut = begin("whole"), begin("cut")
    run(whole)
    cut.display = CutOff(10)
    with pytest.raises(CutOff.Now):
        run(cut)
    rest = begin("cut")
    assert rest.accumulate == 4
    run(rest)
    assert_equal(weights(whole.state), weights(rest.state))


def test_batch_norm_does_not_see_a_batch_twice(tmp_path):
    plain = session(tmp_path / "plain", pictures(), model=CVT, options=Options(accumulate=4))
    narrow = session(tmp_path / "narrow", pictures(), model=CVT, objective=Narrow(room=2))
    narrow.state.learner.objective.calls = 6  # from the first step on
    run(plain)
    run(narrow)
    assert_equal(weights(plain.state), weights(narrow.state))


def test_no_room_for_one_picture_is_a_sentence(tmp_path):
    one = session(tmp_path / "out", pictures(), objective=Narrow(room=0))
    with pytest.raises(Error, match=r"out of memory on CPU.* with one picture at a time"):
        run(one)


@pytest.mark.parametrize("error", [RuntimeError, ZeroDivisionError])
def test_other_errors_pass_through(tmp_path, error):
    one = session(tmp_path / "out", pictures(), objective=Narrow(0, error))
    with pytest.raises(error, match="no room"):
        run(one)
    assert not records(tmp_path / "out", "memory")


TIGHT = """
import resource, sys
import torch
from pathlib import Path
from tests.training.small import pictures, session
from vitrail.training.loop import run
from vitrail.training.session import Options

torch.backends.mkldnn.enabled = False  # it asks for memory of its own, and says nothing of it
warm = session(Path(sys.argv[1]) / "warm", pictures(256), steps=1, batch_size=8)
run(warm)
one = session(
    Path(sys.argv[1]) / "tight", pictures(512), steps=2, batch_size=512,
    model=("vit_mu_patch7_28", {"depth": 12, "width": 128, "heads": 2}),
)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20,) * 2)
run(one)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_that_is_really_too_small(tmp_path):
    path = os.pathsep.join(filter(None, [".", os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-c", TIGHT, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, **QUIET, "PYTHONPATH": path, "MALLOC_ARENA_MAX": "1"},
    )
    assert done.returncode == 0, done.stderr
    told = records(tmp_path / "tight", "memory")
    assert told
    assert [r["step"] for r in records(tmp_path / "tight", "step")] == [1, 2]
