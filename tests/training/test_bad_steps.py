"""Steps whose loss or gradient is not finite: never applied, named, and then as the recipe says.

The pictures that make them are white; the objective is a user's own that cannot bear white.
"""

import json
import math

import pytest
import torch

import vitrail
from tests.commands import records
from tests.training.small import CVT, CutOff, assert_equal, pictures, session, weights
from vitrail.data.loader import order, train_batches
from vitrail.kit.errors import Error
from vitrail.training.loop import run, take_step
from vitrail.training.objectives import Example, Loss, Supervised
from vitrail.training.recipe import Optim
from vitrail.training.session import Options, Session


class Allergic(Supervised):
    """`Supervised`, but a white picture makes the loss or its gradient not finite."""

    def __init__(self, where: str, value: float):
        super().__init__()
        self.where, self.value = where, value

    def forward(self, model, batch: Example) -> Loss:
        loss = super().forward(model, batch)
        white = bool((batch.images.flatten(2).std(2) == 0).all(1).any())
        if not white:
            return loss
        if self.where == "loss":
            return Loss(loss.value * self.value, loss.parts)
        weight = next(model.parameters())
        # Zero, with a derivative that is not finite: that of a root at zero, or of 0 times that.
        zero = (weight - weight.detach()).abs().sum()
        root = (zero + weight.sum() - weight.sum().detach()).clamp(min=0).sqrt()
        return Loss(loss.value + (root if math.isinf(self.value) else 0 * root), loss.parts)


def bad_place(batch_size: int = 8, n: int = 48) -> int:
    """A picture of the third batch of the first epoch."""
    return int(order(0, 0, n)[2 * batch_size + 5])


@pytest.mark.parametrize(("accumulate", "precision"), [(1, "fp32"), (4, "bf16"), (4, "fp16")])
@pytest.mark.parametrize(
    ("where", "value"),
    [("loss", math.nan), ("loss", math.inf), ("gradient", math.nan), ("gradient", math.inf)],
)
def test_the_step_leaves_everything_as_it_was(tmp_path, where, value, accumulate, precision):
    place = bad_place()
    one = session(
        tmp_path / "out",
        pictures(white=(place,)),
        objective=Allergic(where, value),
        options=Options(accumulate=accumulate),
        precision=precision,
    )
    states, before_step = [], one.state.engine.norm

    def look(*arguments):  # after the passes of a step, before it is decided on
        states.append(weights(one.state))
        return before_step(*arguments)

    one.state.engine.norm = look
    run(one)
    # Third step: what stood before it stands after it, in the optimiser and the averages too.
    assert_equal(states[2], states[3])
    assert any(not torch.equal(t, states[4][n]) for n, t in states[3].items())
    assert all(t.isfinite().all() for t in weights(one.state).values())
    bad = [record["step"] for record in records(tmp_path / "out", "skip")]
    assert bad == [3, *[s + 1 for s in range(6, 12) if place in order(0, 1, 48)[8 * s - 48 :][:8]]]
    skipped = records(tmp_path / "out", "skip")[0]
    assert where in skipped["reason"]
    assert one.data.train.keys[place] in skipped["keys"]
    # A loss that is not finite betrays its micro-batch.
    assert len(skipped["keys"]) == (8 // accumulate if where == "loss" else 8)
    assert [r["step"] for r in records(tmp_path / "out", "step")] == list(range(1, 13))


def test_statistics_of_batch_norm_are_not_touched_either(tmp_path):
    one = session(
        tmp_path / "out",
        pictures(white=(bad_place(),)),
        objective=Allergic("loss", math.nan),
        model=CVT,
    )
    one.state.model.train()
    batches = train_batches(one.data.train, one.state.model.preprocessing, None, 8)
    for number in range(3):
        before = [buffer.clone() for buffer in one.state.statistics]
        take_step(one, next(batches), 0.0)
        same = all(map(torch.equal, before, one.state.statistics))
        assert same == (number == 2)


def test_too_many_in_a_row_end_the_run_with_the_pictures_named(tmp_path):
    words = {"optim.clip_norm": None, "most_bad_steps": 4, "model.depth": 1}
    with pytest.raises(Error, match=r"4 steps in a row could not be applied.*try a lower --lr"):
        vitrail.train(
            "demo:fashion", "vit_mu_patch7_28", out=tmp_path, steps=40, lr=1e20, set=words
        )
    skips = records(tmp_path, "skip")
    assert len(skips) == 4
    assert len(skips[0]["keys"]) == 64


def test_stop_ends_the_run_at_once(tmp_path):
    one = session(
        tmp_path / "out",
        pictures(white=(bad_place(),)),
        objective=Allergic("gradient", math.inf),
        bad_step="stop",
        options=Options(save_every=1),
    )
    with pytest.raises(Error, match="step 3 could not be applied: its gradient is not finite"):
        run(one)
    assert one.checkpoints.steps() == [1, 2]


def test_rollback_passes_over_the_batches_since_the_checkpoint(tmp_path):
    def begin(name: str) -> Session:
        return session(
            tmp_path / name,
            pictures(white=(place,)),
            objective=Allergic("loss", math.nan),
            bad_step="rollback",
            options=Options(save_every=4, record_keys=True),
            steps=8,
        )

    place = int(order(0, 0, 48)[5 * 8 + 1])  # of the sixth batch; a checkpoint is after the fourth
    one = begin("one")
    run(one)
    progress = one.state.progress
    assert (progress.step, progress.rollbacks, progress.passed_over) == (8, 1, 2)
    assert [r["step"] for r in records(tmp_path / "one", "step")] == list(range(1, 9))
    skip = records(tmp_path / "one", "skip")[0]
    assert (skip["step"], skip["policy"]) == (6, "rollback")
    lines = map(json.loads, (tmp_path / "one" / "keys.jsonl").read_text().splitlines())
    seen = [key for line in lines for key in line["keys"]]
    stream = [*order(0, 0, 48).tolist(), *order(0, 1, 48).tolist()]
    kept = stream[:32] + stream[48 : 48 + 32]  # batches 5 and 6 are passed over
    assert seen == [one.data.train.keys[i] for i in kept]

    # Cut off after the return and before the next checkpoint, it goes on from the return.
    cut = begin("two")
    cut.display = CutOff(7)
    with pytest.raises(CutOff.Now):
        run(cut)
    assert cut.state.progress.rollbacks == 1
    again = begin("two")
    assert (again.state.progress.step, again.state.progress.rollbacks) == (4, 1)
    run(again)
    assert_equal(weights(one.state), weights(again.state))


def test_rollback_for_ever_ends(tmp_path):
    one = session(
        tmp_path / "out",
        pictures(white=tuple(range(48))),
        objective=Allergic("loss", math.inf),
        bad_step="rollback",
        most_bad_steps=3,
        optim=Optim(lr=1e-3),
    )
    with pytest.raises(Error, match="3 steps could not be applied"):
        run(one)
    assert one.state.progress.step <= 1


def test_one_bad_picture_of_a_thousand_is_named_and_the_run_ends_well(tmp_path):
    place = int(order(0, 0, 1000)[500])
    one = session(
        tmp_path / "out",
        pictures(1000, white=(place,)),
        objective=Allergic("loss", math.nan),
        options=Options(accumulate=5),
        batch_size=50,
        steps=20,
    )
    run(one)
    (skip,) = records(tmp_path / "out", "skip")
    assert one.data.train.keys[place] in skip["keys"]
    assert len(skip["keys"]) == 10
    assert one.state.progress.step == 20


def test_a_range_too_small_for_fp16_is_no_bad_step(tmp_path):
    one = session(tmp_path / "out", pictures(), precision="fp16", bad_step="stop")
    one.state.engine.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    run(one)
    skips = records(tmp_path / "out", "skip")
    assert skips
    assert all("beyond the range of fp16" in skip["reason"] for skip in skips)
    assert one.state.progress.bad_steps == 0
    assert one.state.progress.step == 12
