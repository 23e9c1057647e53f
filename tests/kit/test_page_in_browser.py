"""The sliders of a page, moved in a real browser; skipped where there is none."""

import shutil

import numpy as np
import pytest

from vitrail.kit.chart import Line, heat_colors, line_chart
from vitrail.kit.page import Layered, Page

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)

PIXELS = """() => {
  const canvas = document.querySelectorAll("canvas")[INDEX];
  const context = canvas.getContext("2d");
  const at = (x, y) => [...context.getImageData(x, y, 1, 1).data.slice(0, 3)];
  return [at(10, 10), at(245, 10), at(10, 245), at(245, 245)];
}"""
MOVE = """([name, value]) => {
  const slider = document.querySelector(`.sliders input[name=${name}]`);
  slider.value = value;
  slider.dispatchEvent(new Event("input", { bubbles: true }));
}"""


@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("needs Chromium, which is not here")
    with sync.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield opened
        opened.close()


def one_hot(index: int) -> np.ndarray:
    """A map [2 2] that is 1 in one corner."""
    return np.eye(4)[index].reshape(2, 2)


def test_sliders_show_the_layer_and_the_head_that_they_say(browser, tmp_path):
    # Layer 0 has heads in the corners 0 and 1, layer 1 has one head in corner 3; the other
    # picture has them the other way round.
    first = [np.stack([one_hot(0), one_hot(1)]), one_hot(3)[None]]
    second = [np.stack([one_hot(1), one_hot(0)]), one_hot(2)[None]]
    page = Page("maps")
    pictures = [
        Layered(np.full((40, 40, 3), 90, np.uint8), maps, (0, 0, 1, 1), "a picture")
        for maps in (first, second)
    ]
    page.section("Maps").layered(pictures, ["early", "late"], "What is looked at.")
    page.save(tmp_path / "page.html")
    tab = browser.new_page(viewport={"width": 390, "height": 844})
    said: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.goto((tmp_path / "page.html").as_uri())
    tab.wait_for_function("document.querySelectorAll('canvas')[1].width === 256")
    bright, dark = heat_colors(np.array([1.0, 0.0])).astype(int)

    def shown(picture: int) -> list[int]:
        """The corners that are bright; every corner is either bright, or dark, or between."""
        corners = tab.evaluate(PIXELS.replace("INDEX", str(picture)))
        assert any(np.abs(np.array(corner) - dark).max() < 12 for corner in corners)
        return [
            i for i, corner in enumerate(corners) if np.abs(np.array(corner) - bright).max() < 12
        ]

    assert (shown(0), shown(1)) == ([3], [2])  # the last layer at first
    tab.evaluate(MOVE, ["layer", "0"])
    assert (shown(0), shown(1)) == ([0, 1], [0, 1])  # the mean of its heads
    tab.evaluate(MOVE, ["head", "1"])
    assert (shown(0), shown(1)) == ([0], [1])
    tab.evaluate(MOVE, ["head", "2"])
    assert (shown(0), shown(1)) == ([1], [0])
    told = tab.eval_on_selector_all(".sliders output", "all => all.map((one) => one.value)")
    assert told[:2] == ["0: early", "1 of 0 to 1"]
    tab.evaluate(MOVE, ["layer", "1"])  # which has one head alone
    assert (shown(0), shown(1)) == ([3], [2])
    tab.evaluate(MOVE, ["heat", "20"])
    assert tab.evaluate("document.querySelector('canvas').style.opacity") == "0.2"
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    # Not a word of the content security policy; reading pixels back, as here, is remarked upon.
    assert [message for message in said if "getImageData" not in message] == []
    tab.close()


def test_maps_without_heads_have_no_slider_for_them(browser, tmp_path):
    page = Page("maps")
    maps = [one_hot(0)[None], one_hot(3)[None]]
    picture = Layered(np.full((40, 40, 3), 90, np.uint8), maps, (0, 0, 1, 1), "a picture")
    page.section("Maps").layered([picture], ["early", "late"], "What is there.")
    page.save(tmp_path / "page.html")
    tab = browser.new_page()
    tab.goto((tmp_path / "page.html").as_uri())
    tab.wait_for_function("document.querySelector('canvas').width === 256")
    bright = heat_colors(np.array([1.0])).astype(int)[0]
    for layer, corner in (("1", 3), ("0", 0)):
        tab.evaluate(MOVE, ["layer", layer])
        corners = np.array(tab.evaluate(PIXELS.replace("INDEX", "0")))
        assert np.abs(corners - bright).max(1).argmin() == corner
    told = tab.eval_on_selector_all(".sliders output", "all => all.map((one) => one.value)")
    assert told == ["0: early", "65 %"]
    tab.close()


def test_charts_stand_two_in_a_row_and_one_alone_fills_its_card(browser, tmp_path):
    page = Page("charts")
    svg = line_chart([Line("a", [0, 1], [0, 1])], title="t", size=(560, 340))
    page.section("Three").charts([("one", svg), ("two", svg), ("three", svg)])
    page.section("Alone").charts([("one", svg)])
    page.save(tmp_path / "page.html")
    sizes = """() => [...document.querySelectorAll(".charts figure")].map((figure) => {
      const [outer, inner] = [figure, figure.querySelector("svg")].map(
        (element) => element.getBoundingClientRect());
      return [outer.top, outer.width, inner.width];
    })"""
    for width in (1200, 400):
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.goto((tmp_path / "page.html").as_uri())
        (first, *_), (second, *_), (third, *_), (_, card, chart) = tab.evaluate(sizes)
        assert (first == second) == (width == 1200)
        assert third > second
        assert chart > 0.9 * card
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        tab.close()
