"""While a study is at work: in a terminal a live line, elsewhere nothing but finished runs."""

import contextlib
import os
import re
import signal
import sys
from types import SimpleNamespace

import pytest

from tests.commands import call
from tests.terminal import terminal
from vitrail.cli import main
from vitrail.kit.errors import Error
from vitrail.studies import progress, study
from vitrail.studies.definition import Ask, Definition, Point
from vitrail.studies.progress import LEAST_NAME, Outlook, RunLine, StudyWatcher, shortened
from vitrail.training.display import Display
from vitrail.training.loop import stop_signals

MODEL = "ViT=vit_nano_patch7_28:width=24:depth=1:heads=2:mlp_width=48"
WORDS = (
    *("study", "data-size", "demo:fashion", "--models", MODEL, "--sizes", "40", "--seeds", "2"),
    *("--durations", "12steps", "--batch-size", "20", "--held-out", "0.02", "--most-test", "50"),
    *("--device", "cpu", "--out"),
)
TIME = r"(?:\d+ min )?\d+ s"
FINISHED = rf"{{}} of 2 runs: ViT-40-seed{{}} in {TIME}, \d+\.\d\d % on test; {TIME} to go"


def test_a_terminal_shows_the_run_under_way_and_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    with terminal(100) as screen, os.fdopen(os.dup(screen.end), "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        assert main([*WORDS, str(tmp_path / "study")]) == 0
        monkeypatch.undo()
    lines = [line.rstrip() for line in screen.text.split("\n")]
    for seed in (0, 1):
        left = rf"  study: {seed} of 2 runs, {TIME} to go"
        step = rf"ViT-40-seed{seed}  \d+/12(  {TIME} to go)?{left}"
        assert any(re.match(step, line) for line in lines), lines
        assert any(re.fullmatch(rf". ViT-40-seed{seed}  measuring{left}", line) for line in lines)
        assert any(re.fullmatch(FINISHED.format(seed + 1, seed), line) for line in lines), lines
    assert max(map(len, lines)) <= 100, "one line is redrawn, so it must not become two"


def test_a_log_has_the_finished_runs_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as continuous integration sets it; no terminal
    _, err = call(*WORDS, tmp_path / "study")
    assert "\x1b" not in err
    assert "\r" not in err
    said = err.splitlines()
    assert [line.partition(":")[0] for line in said[:2]] == ["study", "runs"]
    assert said[3].startswith("left:  2 runs")
    assert re.fullmatch(FINISHED.format(1, 0), said[4])
    assert re.fullmatch(FINISHED.format(2, 1), said[5])
    assert len(said) == 6


class Costs:
    """Every run takes 10 s, 8 of them for its steps."""

    def seconds(self, id: str) -> float:
        return 10.0

    def step_seconds(self, id: str) -> float:
        return 8.0


@pytest.fixture
def clock(monkeypatch):
    """A clock that a test sets."""
    held = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: held.now)
    return held


def outlook(recorded: set[str], jobs: int = 1, ids: tuple[str, ...] = tuple("abcd")) -> Outlook:
    points = tuple(Point(id=id, line=id, model="vit_mu_patch7_28") for id in ids)
    folder = SimpleNamespace(recorded=lambda: set(recorded))
    return Outlook(Definition(kind="data-size", points=points), folder, Costs(), jobs)


def test_what_is_left_follows_the_run_under_way(clock):
    recorded: set[str] = set()
    seen = outlook(recorded)
    assert seen.left() == 40
    assert seen.left("a") == 40
    # Half of the steps are done, the others take 8 s: twice what was expected of them.
    assert seen.left("a", 0.5, 8.0) == (40 - 4) * 2
    clock.now += 30
    recorded.add("a")
    assert seen.left() == 30 * 3, "it took three times what was expected"
    assert seen.done == "1 of 4 runs"
    assert seen.left("b", 1.0) == (30 - 8) * 3
    recorded.update("bcd")
    clock.now += 1
    assert seen.left("b") == (30 - 0) * 3, "the folder is not looked at for every step"
    clock.now += 10
    assert seen.left() == 0


def test_what_is_left_is_shared_by_processes_but_no_less_than_a_run_s_own(clock):
    assert outlook(set(), jobs=2).left() == 20
    assert outlook({"a", "b", "c"}, jobs=4).left("d", 0.5, 60.0) == 60


def test_the_processes_of_torchrun_share_what_is_left(tmp_path, monkeypatch):
    def stop(*how, watcher, **more):
        raise Error(f"{watcher._outlook._jobs} at work")

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(study, "take_runs", stop)
    ask = Ask(models=(MODEL,), sizes=(40,), seeds=1, durations=("12 steps",), batch_size=20)
    with pytest.raises(Error, match="3 at work"):
        study.study("data-size", "demo:fashion", tmp_path / "study", ask, most_test=50)


def test_runs_of_before_tell_nothing_of_the_pace(clock):
    recorded = {"a", "b"}
    seen = outlook(recorded)
    clock.now += 20
    recorded.add("c")
    assert seen.left() == 10 * 2


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_the_line_fits_and_keeps_both_ends_of_a_long_name(columns, clock):
    id = "self_supervised-after_masked_patches-0.003-with-labels-seed12"
    line = RunLine(id, outlook(set(), ids=(id,)))
    line.console.width, line.total = columns, 2_000
    text = line.text(1_000, 40.0, "loss 2.345  acc  12.3 %  1,234 images/s")
    assert len(text) < columns
    assert "  1,000/2,000  40 s to go  study: 0 of 1 runs, 1 min 0 s to go" in text
    assert text.startswith("self")
    assert text.split()[0].endswith("12")
    assert (columns == 200) == ("images/s" in text) == (text.split()[0] == id)


def test_waiting_for_others_is_said(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with terminal() as screen, os.fdopen(os.dup(screen.end), "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        for live in (False, True):
            with StudyWatcher(outlook({"a"}), None, print, live).waiting():
                pass
        monkeypatch.undo()
    said = "waiting for runs at work elsewhere  study: 1 of 4 runs, 30 s to go"
    assert 1 <= screen.text.count(said) <= 2, "at its begin and its end"


def test_a_stop_is_answered_above_the_live_line(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    with terminal() as screen, os.fdopen(os.dup(screen.end), "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        line = RunLine("a", outlook(set()))
        line.start(0, 12)
        with contextlib.closing(line), stop_signals(line) as stop:
            line.say("recipe: scratch")
            signal.raise_signal(signal.SIGINT)
            assert stop.is_set()
        monkeypatch.undo()
    assert "stopping after this step, to save; once more to stop at once" in screen.text
    assert "recipe" not in screen.text, "that would drown what the study says"


def test_what_is_said_while_a_terminal_shows_a_line_is_whole(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    said = "left out: /photos/" + " and /photos/".join(":ok: [1]" for _ in range(9))
    with terminal(40) as screen, os.fdopen(os.dup(screen.end), "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        display = Display()
        with display.busy("measuring"):
            display.say(said)
        monkeypatch.undo()
    assert said in screen.text


def test_a_dumb_terminal_is_told_in_lines(monkeypatch):
    with terminal() as screen, os.fdopen(os.dup(screen.end), "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        able = {}
        for term in ("dumb", "xterm"):
            monkeypatch.setenv("TERM", term)
            able[term] = Display().live
        monkeypatch.undo()
    assert able == {"dumb": False, "xterm": True}


def test_names_are_shortened_in_the_middle():
    assert shortened("ViT-40-seed0", LEAST_NAME) == "ViT-40-seed0"
    assert shortened("ViT-4000-seed10", 12) == "ViT-40…eed10"
