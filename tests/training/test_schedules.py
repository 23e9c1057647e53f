"""Learning rates against the originals' own formulas, written out here as they have them."""

import bisect
import math

import pytest

from vitrail.recipes.relatives import hyperrule
from vitrail.training.optim import Rates, rate_at
from vitrail.training.recipe import Duration, Optim, Recipe, Schedule, Tuning

TOTAL, WARMUP = 1_000, 100


def rates(schedule: Schedule, total: int = TOTAL, peak: float = 1.0, **more) -> list[float]:
    warmup = schedule.warmup.steps(1, 1, total)
    return [rate_at(step, total, warmup, schedule, peak=peak, **more) for step in range(total)]


@pytest.mark.parametrize("kind", ["cosine", "linear"])
def test_vit_jax(kind):
    # vit_jax/utils.py: progress over what is left after the warm-up, times step / warm-up. Its
    # first step is at a rate of 0 and wasted; ours is one step further on in the warm-up.
    ours = rates(Schedule(kind=kind, warmup=Duration(WARMUP)))
    for step in range(WARMUP, TOTAL):
        progress = min(max((step - WARMUP) / (TOTAL - WARMUP), 0), 1)
        theirs = 0.5 * (1 + math.cos(math.pi * progress)) if kind == "cosine" else 1 - progress
        assert ours[step] == pytest.approx(theirs)
    assert ours[:WARMUP] == pytest.approx([(i + 1) / (WARMUP + 1) for i in range(WARMUP)])


def test_big_visions_reciprocal_root_with_cooldown():
    cooldown, timescale = 200, 50
    ours = rates(
        Schedule(kind="rsqrt", warmup=Duration(WARMUP)), cooldown=cooldown, timescale=timescale
    )
    for step in range(WARMUP, TOTAL):
        theirs = 1 / math.sqrt(1 + (step - WARMUP) / timescale)
        theirs *= min(1.0, (TOTAL - step) / cooldown)
        assert ours[step] == pytest.approx(theirs)
    assert ours[-1] == pytest.approx(1 / cooldown / math.sqrt(1 + (TOTAL - 1 - WARMUP) / timescale))


def test_timms_cosine_with_floor_and_cooldown():
    # DeiT's arguments in timm's CosineLRScheduler, by the step: the curve begins at the first step,
    # the warm-up goes from its own start up to the peak, and the cooldown stays at the floor.
    peak, start, floor, cooldown = 1e-3, 1e-6, 1e-5, 100
    schedule = Schedule(
        kind="cosine", over="whole", warmup=Duration(WARMUP), start=start, floor=floor
    )
    ours = rates(schedule, peak=peak, cooldown=cooldown)
    curve = TOTAL - cooldown
    for step in range(TOTAL):
        if step < WARMUP:
            theirs = start + (step + 1) * (peak - start) / (WARMUP + 1)
        elif step < curve:
            theirs = floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * step / curve))
        else:
            theirs = floor
        assert ours[step] == pytest.approx(theirs)


# Training images, and what bit_hyperrule.py's get_schedule returns for them.
SUPPORTS = {
    19_999: [100, 200, 300, 400, 500],
    20_000: [500, 3000, 6000, 9000, 10_000],
    499_999: [500, 3000, 6000, 9000, 10_000],
    500_000: [500, 6000, 12_000, 18_000, 20_000],
}


@pytest.mark.parametrize("examples", SUPPORTS)
def test_bits_rule_and_staircase(examples):
    supports = SUPPORTS[examples]
    steps, mixup, warmup, stairs = hyperrule(examples)
    assert steps == supports[-1]
    assert mixup == (0 if examples < 20_000 else 0.1)
    schedule = Schedule(kind="staircase", warmup=Duration(warmup, "percent"), stairs=stairs)
    ours = rates(schedule, steps, peak=0.003)
    for step in range(supports[0], steps):
        # get_lr: a tenth for every support but the first that lies before the step
        lower = bisect.bisect_left(supports[1:-1], step)
        assert ours[step] == pytest.approx(0.003 * 0.1**lower)
    assert ours[supports[0] - 1] < 0.003


def test_a_rate_below_the_floor_stays():
    schedule = Schedule(kind="cosine", warmup=Duration(0), floor=1e-5)
    assert set(rates(schedule, 10, peak=1e-6)) == {1e-6}


def test_head_then_all_has_two_schedules():
    recipe = Recipe(
        optim=Optim(lr=1.0),
        tuning=Tuning(part="head_then_all", head_for=Duration(25, "percent"), head_lr=10.0),
        schedule=Schedule(kind="linear", warmup=Duration(0)),
    )
    found = Rates(recipe, examples=64, total=40)
    assert found.head_steps == 10
    assert [found(step) for step in (0, 5, 9)] == pytest.approx([10, 5, 1])
    assert [found(step) for step in (10, 25, 39)] == pytest.approx([1, 0.5, 1 / 30])
