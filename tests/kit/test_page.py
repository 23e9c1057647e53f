import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from tests.kit.reading import check_readable, check_self_contained, read
from vitrail.kit.chart import Line, line_chart
from vitrail.kit.page import Layered, Page, Picture, Share, confused, data_uri, show

HOSTILE = "\"'></title></style><script>alert(1)</script><img src=x onerror=alert(1)>{{ 7*7 }}"


def a_page(word: str = "word", classes: int = 3) -> Page:
    """Every kind of block, with this word wherever a word can stand."""
    picture = np.zeros((28, 28, 3), np.uint8)
    page = Page(word, lead=word, headline=[(word, word)], footer=word)
    section = page.section(word)
    section.text(word, word).note(word).code(word)
    section.facts({word: word, "n": 12_000}).facts({word: [word, 2.5]}, title=word)
    section.table((word, "n", "share"), [(word, 1, Share(0.5)), ("b", None, Share("nan"))], word)
    chart = line_chart([Line(word, [0, 1], [1, 2]), Line("b", [0, 1], [2, 3])], title=word)
    section.charts([(word, chart)])
    section.gallery([Picture([picture], [word], word, [word])], caption=word)
    section.gallery([Picture([picture, picture + 9], [word, word])])
    section.matrix(np.ones((classes, classes), int), [word] * classes, word)
    section.details(word).text(word).table((word, "n"), [(word, 1)], word)
    page.section(word).text(word)
    page.section("").text(word)
    return page


def test_a_page_asks_for_nothing_and_reads_well():
    page = a_page().html()
    check_self_contained(page)
    check_readable(page)


@pytest.mark.parametrize("classes", [3, 41])
def test_whatever_is_put_in_is_only_text(classes):
    page = a_page(HOSTILE, classes).html()
    check_self_contained(page)
    check_readable(page)
    harmless = read(a_page("word", classes).html())
    elements = read(page)
    # Besides places where a long word may be broken, the very same elements.
    tags = [element.tag for element in elements if element.tag != "wbr"]
    assert tags == [element.tag for element in harmless]
    assert next(element for element in elements if element.tag == "h1").text == HOSTILE


def test_equal_content_gives_equal_bytes_whatever_matplotlib_is_set_to():
    import matplotlib

    before = a_page().html()
    with matplotlib.rc_context(
        {"lines.linewidth": 9, "svg.fonttype": "path", "axes.labelsize": 30}
    ):
        assert a_page().html() == before
        assert matplotlib.rcParams["lines.linewidth"] == 9


def test_a_file_name_that_is_not_utf8_can_be_printed(tmp_path):
    page = Page("Skipped")
    page.section("Files").table(("file", "reason"), [("b\udce9b\udce9.jpg", "cut short")], "Files")
    page.save(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_bytes().decode()
    assert "b\\udce9b\\udce9.jpg" in text
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_matrix_of_few_classes_is_a_table_of_its_numbers():
    counts = np.array([[90, 10, 0], [0, 1234, 0], [0, 0, 0]])
    page = Page("t")
    page.section("s").matrix(counts, ["a", "b", "c"], "Confusion.")
    cells = [element for element in read(page.html()) if element.tag == "td"]
    assert [cell.text for cell in cells] == ["90", "10", "", "", "1,234", "", "", "", ""]
    kinds = [cell.attributes["class"] for cell in cells]
    assert kinds == ["hit", "miss", "none", "none", "hit", "none", "none", "none", "none"]
    heat = [float(cell.attributes["style"].split(":")[1]) for cell in cells[:2]]
    assert heat == [0.95, 0.32]  # square roots of the shares of the row


def test_matrix_of_many_classes_is_a_picture_and_the_worst_pairs():
    counts = np.diag(np.full(100, 50))
    counts[7, 3], counts[2, 99] = 5, 40
    page = Page("t")
    page.section("s").matrix(counts, [f"class {i}" for i in range(100)], "Confusion.")
    elements = read(page.html())
    picture = next(element for element in elements if element.tag == "img")
    pixels = np.array(Image.open(io.BytesIO(_decoded(picture.attributes["src"]))))
    assert pixels.shape == (100, 100, 3)
    brightness = pixels.astype(int).sum(2)
    assert brightness[2, 99] > brightness[7, 3] > brightness[0, 1]
    rows = [element for element in elements if element.tag == "tr"][1:]
    assert [cell.text for row in rows for cell in row.children] == [
        *("class 2", "class 99", "40", "44.4\N{NO-BREAK SPACE}%"),
        *("class 7", "class 3", "5", "9.1\N{NO-BREAK SPACE}%"),
    ]


def test_confused_lists_real_pairs_only_most_frequent_first():
    counts = np.array([[9, 0, 2], [3, 9, 0], [2, 0, 9]])
    assert confused(counts, most=9) == [(1, 0, 3), (0, 2, 2), (2, 0, 2)]
    assert confused(counts, most=1) == [(1, 0, 3)]
    assert counts[0, 0] == 9


@pytest.mark.parametrize("shape", [(28, 28, 3), (28, 28, 1), (64, 20, 3)])
def test_small_pictures_are_kept_exactly(shape):
    image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    read_back = np.array(Image.open(io.BytesIO(_decoded(data_uri(image)))))
    assert (read_back.reshape(shape) == image).all()


def test_large_pictures_are_made_small_in_their_own_proportions():
    ramp = np.linspace(0, 255, 800).astype(np.uint8)
    image = np.broadcast_to(ramp[None, :, None], (400, 800, 3)).copy()
    file = _decoded(data_uri(image))
    assert len(file) < 10_000
    read_back = np.array(Image.open(io.BytesIO(file)))
    assert read_back.shape == (96, 192, 3)
    assert abs(int(read_back[50, 96, 0]) - 128) < 5


def test_a_row_that_does_not_fit_its_columns_is_refused():
    with pytest.raises(ValueError, match="3 cells under 2 columns"):
        Page("t").section("s").table(("a", "b"), [(1, 2, 3)], "c")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (12_000, "12,000"),
        (np.int64(1234), "1,234"),
        (0.00123456, "0.001235"),
        (Share(0.8604), "86.0\N{NO-BREAK SPACE}%"),
        (float("nan"), "\N{EN DASH}"),
        (None, "\N{EN DASH}"),
        (True, "yes"),
        ((0.5, 2, "x"), "0.5, 2, x"),
        ("0012", "0012"),
    ],
)
def test_values_are_shown_as_people_write_them(value, shown):
    assert show(value) == shown


def _decoded(address: str) -> bytes:
    return base64.b64decode(address.partition(",")[2])


def a_layered_page(word: str) -> Page:
    generator = np.random.default_rng(0)
    maps = [generator.random((2, 3, 4)), generator.random((1, 2, 2))]
    picture = Layered(np.zeros((30, 50, 3), np.uint8), maps, (0, 0.2, 1, 0.6), word, word, [word])
    page = Page(word)
    page.section(word).layered([picture, picture], [word, "b"], word)
    page.section("b").figure(np.zeros((9, 9, 3), np.uint8), word, word)
    return page


def test_maps_under_sliders_run_the_one_script_that_the_policy_names():
    page = a_layered_page(HOSTILE).html()
    check_self_contained(page, script=True)
    check_readable(page)
    elements = read(page)
    harmless = read(a_layered_page("word").html())
    tags = [element.tag for element in elements if element.tag != "wbr"]
    assert tags == [element.tag for element in harmless]
    (box,) = (e for e in elements if "data-layers" in e.attributes)
    assert json.loads(box.attributes["data-layers"]) == [[HOSTILE, 0, 3, 4, 2], ["b", 3, 2, 2, 1]]
    inner = Page("a")
    inner.section("b").details("c").layered(
        [Layered(np.zeros((9, 9, 3), np.uint8), [np.ones((1, 2, 2))], (0, 0, 1, 1), "d")],
        ["e"],
        "f",
    )
    check_self_contained(inner.html(), script=True)


def test_a_sheet_of_maps_holds_each_scaled_to_its_own_greatest():
    page = a_layered_page("word").html()
    canvas = next(e for e in read(page) if e.tag == "canvas")
    content = base64.b64decode(canvas.attributes["data-sprite"].partition("base64,")[2])
    sheet = np.asarray(Image.open(io.BytesIO(content)))
    assert sheet.shape == (3 + 2, 3 * 4)
    generator = np.random.default_rng(0)
    first, second = generator.random((2, 3, 4)), generator.random((1, 2, 2))
    for index, tile in enumerate([first.mean(0), *first]):
        shown = sheet[:3, 4 * index : 4 * index + 4]
        np.testing.assert_allclose(shown, 255 * tile / tile.max(), atol=0.51)
    np.testing.assert_allclose(sheet[3:, :2], 255 * second[0] / second.max(), atol=0.51)
    other = Layered(np.zeros((9, 9, 3), np.uint8), [second], (0, 0, 1, 1), "a")
    more = Layered(np.zeros((9, 9, 3), np.uint8), [first], (0, 0, 1, 1), "a")
    with pytest.raises(ValueError, match="maps of the same shapes"):
        Page("a").section("b").layered([other, more], ["c"], "d")
