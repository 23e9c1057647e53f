import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest

from tests.kit.reading import read
from vitrail.kit.chart import Line, describe, heat_colors, interval_chart, line_chart


def test_text_stays_text_and_dollars_are_no_mathematics():
    svg = line_chart(
        [Line("a_1 $x^2$ & <b>", [0, 1], [0.1, 0.9]), Line("other", [0, 1], [0.2, 0.3])],
        title="Accuracy",
        percent=True,
    )
    texts = [element.text for element in read(svg) if element.tag == "text"]
    assert "a_1 $x^2$ & <b>" in texts
    assert "step" in texts
    assert "80 %" in texts
    assert "\\" not in svg


def test_a_chart_takes_its_colours_from_the_page():
    svg = line_chart([Line("a", [0, 1], [0, 1]), Line("b", [0, 1], [1, 0])], title="t")
    for name in ("quiet", "line", "series-1", "series-2"):
        assert f"var(--{name}, #" in svg
    assert "#0a000" not in svg
    assert "series-3" not in svg


def test_gaps_and_single_points_are_drawn():
    nan = float("nan")
    gap = line_chart([Line("a", [0, 1, 2, 3, 4], [1, 2, nan, 3, 4], best="highest")], title="t")
    curve = next(e for e in read(gap) if e.tag == "path" and "series-1" in e.attributes["style"])
    assert curve.attributes["d"].count("M") == 2
    single = line_chart([Line("a", [5], [1.0], dots=True, best="lowest")], title="t")
    assert single.count("<use") == 2  # the point and the ring around it
    assert "from 1 at 5 to 1 at 5" in single


def test_what_is_drawn_is_also_said():
    line = Line("top-1", [0, 500, 1000], [0.1, 0.5, 0.8605])
    assert describe([line], percent=True) == "top-1: from 10.0 % at 0 to 86.1 % at 1,000."
    assert "Accuracy. top-1: from 0.1 at 0 to 0.861 at 1,000." in line_chart(
        [line], title="Accuracy"
    )


@pytest.mark.parametrize("y", [[0.12437, 0.124371, 0.12438], [0.5, 0.5, 0.5], [1e-5, 2e-5, 3e-5]])
def test_the_ticks_of_shares_that_hardly_differ_have_labels_of_their_own(y):
    svg = line_chart([Line("a", [0, 1, 2], y)], title="t", percent=True)
    labels = [e.text for e in read(svg) if e.tag == "text" and e.text.endswith(" %")]
    assert len(labels) == len(set(labels)) >= 3
    assert not any(label.startswith("-") for label in labels)


@pytest.mark.parametrize("count", [0, 9])
def test_no_more_lines_than_can_be_told_apart(count):
    with pytest.raises(ValueError, match="1 to 8 lines"):
        line_chart([Line("a", [0, 1], [0, 1])] * count, title="t")


def test_heat_grows_brighter_all_the_way_and_is_clipped():
    colors = heat_colors(np.linspace(0, 1, 50)).astype(float)
    brightness = colors @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(brightness) > 0).all()
    assert heat_colors(np.zeros((4, 5))).shape == (4, 5, 3)
    outside = heat_colors(np.array([-1.0, 0.0, 1.0, 7.0]))
    assert (outside[0] == outside[1]).all()
    assert (outside[2] == outside[3]).all()


def test_drawing_writes_nothing_into_the_home_folder_and_says_nothing(tmp_path):
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MPL", "XDG"))}
    environment = {**clean, "HOME": str(tmp_path)}
    code = (
        "import threading\n"  # matplotlib's word on its fonts, at once instead of after 5 s
        "threading.Timer = lambda seconds, say: type('', (), {'start': say, 'cancel': say})\n"
        "from vitrail.kit.chart import Line, line_chart\n"
        "import os\n"
        "assert '<svg' in line_chart([Line('a', [0, 1], [0, 1])], title='t')\n"
        "assert 'MPLCONFIGDIR' not in os.environ\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert run.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_equal_ratios_lie_equally_far_apart():
    line = Line("a", [1, 10, 100], [0.1, 0.2, 0.3], dots=True, low=[0, 0.1, 0.2], high=[1, 1, 1])
    svg = line_chart([line], title="t", log_x=True)
    assert [e.text for e in read(svg) if e.tag == "text"][:3] == ["100", "10", "1"]
    curve = re.search(r'd="M ([\d.]+) \S+\nL ([\d.]+) \S+\nL ([\d.]+) \S+\n"', svg)
    first, middle, last = map(float, curve.groups())
    assert middle - first == pytest.approx(last - middle) != 0
    assert "opacity: 0.16" in svg  # the band


def test_long_names_do_not_push_the_curves_out():
    names = [f"a model with a long name at {i}" for i in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of axes without room
        svg = line_chart([Line(name, [0, 1], [0, 1]) for name in names], title="t")
    assert all(name in svg for name in names)


def test_values_with_their_intervals_below_each_other():
    rows = [
        ("mean", 1.25, 0.5, 2.0),
        ("attention & more", -3.0, -4.0, -2.0),
        ("alone", 0.5, None, None),
    ]
    svg = interval_chart(rows, title="Differences", x_label="points")
    texts = [element.text for element in read(svg) if element.tag == "text"]
    assert {"mean", "attention & more", "alone", "points", "0"} <= set(texts)
    label = re.search(r'aria-label="([^"]*)"', svg)[1]
    assert "mean: +1.25 (+0.5 to +2)" in label
    assert label.endswith("alone: +0.5.")
    bars = [e for e in read(svg) if e.tag == "path" and "series-1" in e.attributes.get("style", "")]
    ends = [[float(x) for x in re.findall(r"[ML] ([\d.]+) ", bar.attributes["d"])] for bar in bars]
    long = [sorted(x) for x in ends if len(x) == 2]
    assert len(long) == 2  # a bar for each interval, and none where there is none
    assert long[1][1] < long[0][0], "below nothing lies to the left of above it"
    assert svg == interval_chart(rows, title="Differences", x_label="points")
    with pytest.raises(ValueError, match="at least one row"):
        interval_chart([], title="t", x_label="x")
