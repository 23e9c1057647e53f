"""The page in a real browser, against the real server: what a visitor does, and what goes wrong.

One browser and one server for all of it. The server asks for a token; a context of the browser
that bears it by itself sees the page as it is where none is asked for.
"""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import time
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import Image

import vitrail
from tests.export.small import pictures, sure_model
from tests.serving.running import command
from vitrail.data.decode import decode
from vitrail.serving import page as page_module

pytest.importorskip("fastapi")
sync_api = pytest.importorskip("playwright.sync_api")
expect = sync_api.expect
expect.set_options(timeout=30_000)  # of a machine that has other things to do
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
TOKEN = "open-sesame"
MOST = 300_000  # bytes of a file
# Nothing that a test of a page needs, and nothing that asks anybody anything.
QUIET = ("--disable-gpu", "--no-sandbox", "--disable-quic", "--disable-background-networking")


@pytest.fixture(scope="module")
def browser():
    if not BROWSER:
        pytest.skip("needs a Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=BROWSER, args=[*QUIET])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder: a picture of any shape, of which the middle is seen."""
    folder = tmp_path_factory.mktemp("page") / "trees"
    vitrail.save_model(sure_model(), folder)
    return folder


@pytest.fixture(scope="module")
def classify(model):
    return vitrail.Classifier(model, threads=1)


@pytest.fixture(scope="module")
def address(model, tmp_path_factory):
    words = ("--threads", 1, "--max-bytes", MOST, "--token", TOKEN)
    with command(tmp_path_factory.mktemp("server"), model, *words) as server:
        yield f"{server.address}/"


class Visit:
    """A page under way, and all that it said and asked for."""

    def __init__(self, browser, address, token=True, **settings):
        bearing = {"extra_http_headers": {"Authorization": f"Bearer {TOKEN}"}} if token else {}
        self.context = browser.new_context(**{**bearing, **settings})
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.said, self.asked, self.choosers, self.address = [], [], [], address
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        # from the beginning: one that opens before anybody listens is gone
        self.page.on("filechooser", lambda chooser: self.choosers.append(chooser))
        self.page.goto(address)
        if token:
            self.page.locator("#about").wait_for()

    def drop(self, files, event="drop"):
        """Files {name: (bytes, type)} on the page, as a drag or the clipboard brings them."""
        listed = [[n, base64.b64encode(d).decode(), kind] for n, (d, kind) in files.items()]
        self.page.evaluate(
            """([listed, event]) => {
                const transfer = new DataTransfer();
                for (const [name, data, type] of listed) {
                    const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
                    transfer.items.add(new File([bytes], name, { type }));
                }
                const options = { bubbles: true, cancelable: true };
                document.body.dispatchEvent(event === "paste"
                    ? new ClipboardEvent("paste", { ...options, clipboardData: transfer })
                    : new DragEvent(event, { ...options, dataTransfer: transfer }));
            }""",
            [listed, event],
        )

    def answers(self):
        """What stands on the page: a list of [(label, per cent), ...], a picture each."""
        rows = self.page.locator("#list > li").evaluate_all(
            """(items) => items.map((item) => [...item.querySelectorAll(".labels li")].map(
                (li) => [li.querySelector(".label").textContent,
                         li.querySelector(".share").textContent,
                         li.querySelector(".track span").getBoundingClientRect().width
                             / li.querySelector(".track").getBoundingClientRect().width]))"""
        )
        return [[(label, share, width) for label, share, width in row] for row in rows]

    def overflow(self):
        """Pixels that the page is wider than its window."""
        return self.page.evaluate("document.documentElement.scrollWidth - innerWidth")


@pytest.fixture
def visit(browser, address):
    visits = []

    def opened(**settings):
        visits.append(Visit(browser, address, **settings))
        return visits[-1]

    yield opened
    for one in visits:
        one.context.close()
        # a refusal is logged by the browser itself; nothing else may be said
        left = [words for words in one.said if not words.startswith("Failed to load resource")]
        assert left == []
        hosts = {urlsplit(url).netloc for url in one.asked if not url.startswith("blob:")}
        assert hosts == {urlsplit(address).netloc}


def png(picture, **options):
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", **options)
    return file.getvalue()


def photo(seed=0, size=(90, 61)):
    """A picture [61 90 3] that is no square, so that something is cut off."""
    return np.asarray(Image.fromarray(pictures(1, seed=seed)[0]).resize(size))


def percent(text):
    return float(text.strip("<> %"))


def pixels(canvas):
    """A canvas as uint8 [h w 4]."""
    address = canvas.evaluate("(canvas) => canvas.toDataURL('image/png')")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))))


TEXT = {"notes.jpg": (b"hello, I am a text", "image/jpeg")}


# What is sent along


def test_every_file_of_the_page_is_bound_by_its_headers(address):
    for path in ("", "page/style.css", "page/app.js", "page/server.js", "page/mark.svg"):
        answer = httpx.get(address + path)  # without the token
        assert answer.status_code == 200
        headers = answer.headers
        assert headers["content-security-policy"] == page_module.POLICY
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        again = httpx.get(address + path, headers={"If-None-Match": headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    policy = dict(part.split(" ", 1) for part in page_module.POLICY.split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in page_module.POLICY
    html = httpx.get(address).text
    assert not re.search(r"<style|style=|<script(?![^>]*src)|\son\w+=|https?://", html)
    assert httpx.head(address).headers["content-length"] == str(len(html.encode()))
    assert httpx.get(address + "page/__init__.py").status_code == 404
    assert httpx.get(address + "v1/model").status_code == 401


# Pictures and answers


def test_a_dropped_picture_gets_its_labels_as_text_and_as_bars(visit, classify):
    picture, seen = photo(), visit()
    seen.drop({"a.png": (png(picture), "image/png")}, "dragenter")
    expect(seen.page.locator("body")).to_have_class("over")
    seen.drop({"a.png": (png(picture), "image/png")})
    expect(seen.page.locator(".top")).to_have_count(1)
    expect(seen.page.locator("body")).to_have_class("some")
    (row,) = seen.answers()
    (expected,) = classify([picture])
    assert [label for label, _, _ in row] == [label for label, _ in expected]
    for (_, share, width), (_, probability) in zip(row, expected, strict=True):
        assert abs(percent(share) - 100 * probability) <= 0.1
        assert abs(width - probability) < 0.01
    expect(seen.page.locator(".top")).to_have_text(expected[0][0])
    expect(seen.page.get_by_role("status")).to_contain_text(f"a.png: {expected[0][0]}, ")
    expect(seen.page.get_by_role("img", name="a.png")).to_be_visible()


def test_several_pictures_keep_their_order_and_are_cleared(visit, classify):
    many, seen = [photo(seed) for seed in range(5)], visit()
    named = {f"{i}.png": (png(picture), "image/png") for i, picture in enumerate(many)}
    seen.drop(named)
    expect(seen.page.locator(".top")).to_have_count(5)
    assert [row[0][0] for row in seen.answers()] == [row[0][0] for row in classify(many)]
    assert seen.page.locator("h3").all_text_contents() == list(named)
    seen.page.get_by_role("button", name="Remove 0.png").click()
    expect(seen.page.get_by_role("button", name="Remove 1.png")).to_be_focused()
    seen.page.get_by_role("button", name="Clear all").click()
    expect(seen.page.locator("#answers")).to_be_hidden()
    expect(seen.page.locator("#files")).to_be_focused()
    assert seen.page.locator("#list > li").count() == 0


def test_a_pasted_picture(visit, classify):
    seen = visit()
    seen.drop({"image.png": (png(photo(3)), "image/png")}, "paste")
    expect(seen.page.locator(".top")).to_have_text(classify([photo(3)])[0][0][0])
    expect(seen.page.locator("h3")).to_have_text("Pasted picture 1")


def test_a_broken_file_is_one_sentence_and_the_others_are_answered(visit):
    seen = visit()
    whole = png(photo(1))
    files = {"good.png": (whole, "image/png"), "cut.png": (whole[:900], "image/png"), **TEXT}
    files["huge.png"] = (whole + bytes(MOST), "image/png")
    seen.drop(files)
    expect(seen.page.locator(".problem:visible")).to_have_count(3)
    expect(seen.page.locator(".top")).to_have_count(1)
    said = dict(
        seen.page.locator("#list > li").evaluate_all(
            """(items) => items.map((item) => [item.querySelector("h3").textContent,
                item.querySelector(".problem")?.textContent ?? ""])"""
        )
    )
    assert said["cut.png"] == "The file is cut short."
    assert said["notes.jpg"].startswith("Not a picture of a known format (JPEG, PNG")
    assert re.fullmatch(
        r"\d+ kB is more than the 300 kB that this server takes\.", said["huge.png"]
    )
    assert said["good.png"] == ""
    assert sum("classify" in url for url in seen.asked) == 3  # what is too large stays here
    expect(seen.page.locator(".bare h3")).to_have_text("notes.jpg")  # neither picture nor answer


def test_markup_in_a_name_is_text(visit):
    seen = visit()
    seen.drop({"<img src=x onerror=alert(1)>.png": (png(photo()), "image/png")})
    expect(seen.page.locator("h3")).to_have_text("<img src=x onerror=alert(1)>.png")
    assert seen.page.locator("#list img").count() == 0


def test_attention_lies_where_the_model_looked(visit, classify):
    picture, seen = photo(4, (300, 200)), visit()
    seen.drop({"a.png": (png(picture), "image/png")})
    glow = seen.page.locator("canvas.glow")
    expect(glow).to_have_count(1)
    drawn = pixels(glow).astype(float)
    assert drawn.shape[:2] == (200, 300)
    (attention,) = classify.attention([picture])
    left, top, right, bottom = np.multiply(attention.region, (300, 200, 300, 200))
    assert (left, top, right, bottom) == pytest.approx((50, 0, 250, 200))
    outside = drawn.copy()
    outside[:, 49:251] = 0
    assert not outside.any()  # what is cut off is left as it is
    rows, columns = attention.values.shape
    step = (200 / rows, 200 / columns)
    brightness = drawn[..., :3].sum(-1)
    shown = np.array(
        [
            [
                brightness[int((r + 0.5) * step[0]), 50 + int((c + 0.5) * step[1])]
                for c in range(columns)
            ]
            for r in range(rows)
        ]
    )
    assert shown.argmax() == attention.values.argmax()
    assert np.corrcoef(shown.ravel(), attention.values.ravel())[0, 1] > 0.9
    slider = seen.page.get_by_role("slider", name="Where it looked")
    slider.fill("30")
    expect(glow).to_have_css("opacity", "0.3")
    slider.fill("0")
    expect(glow).to_have_css("opacity", "0")


@pytest.mark.parametrize("size", [(120, 700), (700, 120), (20, 20)])
def test_the_light_covers_the_preview_whatever_its_shape(visit, size):
    seen = visit()
    seen.drop({"a.png": (png(photo(4, size)), "image/png")})
    glow, preview = seen.page.locator("canvas.glow"), seen.page.locator("figure canvas").first
    expect(glow).to_have_count(1)
    look = """([over, under]) => [over, under].map((e) => {
        const { x, y, width, height } = e.getBoundingClientRect();
        return { x, y, width, height };
    })"""  # of both at one moment: they move together when they come
    over, under = seen.page.evaluate(look, [glow.element_handle(), preview.element_handle()])
    assert over == pytest.approx(under, abs=1)
    assert under["width"] / under["height"] == pytest.approx(size[0] / size[1], rel=0.02)
    assert under["height"] <= 385


@pytest.mark.parametrize("kind", ["JPEG", "WebP", "PNG"])
def test_the_preview_is_turned_as_the_model_sees_it(visit, kind):
    corners = np.zeros((200, 300, 3), np.uint8)
    corners[:100, :150], corners[:100, 150:], corners[100:, :150] = (
        (220, 0, 0),
        (0, 200, 0),
        (0, 0, 220),
    )
    seen = visit()
    named = {}
    turns = range(1, 9) if kind == "WebP" else (1, 6, 8)  # its turning is ours, not the browser's
    for turn in turns:
        file, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = turn
        Image.fromarray(corners).save(file, kind, exif=exif)
        named[f"{turn}.{kind}"] = (file.getvalue(), f"image/{kind.lower()}")
    seen.drop(named)
    expect(seen.page.locator("figure canvas:first-child")).to_have_count(len(turns))
    for place, (data, _) in enumerate(named.values()):
        upright = decode(data).astype(int)
        drawn = pixels(seen.page.locator("figure canvas:first-child").nth(place)).astype(int)
        assert drawn.shape[:2] == upright.shape[:2]
        assert np.abs(drawn[..., :3] - upright).mean() < 12


def test_of_a_large_photo_the_preview_is_small_and_the_whole_file_is_sent(visit):
    file = io.BytesIO()
    Image.new("RGB", (4000, 3000), (90, 120, 60)).save(file, "JPEG", quality=60)
    seen, sent = visit(), []

    def look(route):
        sent.append(route.request)
        route.continue_()

    seen.page.route("**/v1/classify*", look)
    seen.drop({"large.jpg": (file.getvalue(), "image/jpeg")})
    expect(seen.page.locator(".top")).to_have_count(1)
    canvas = seen.page.locator("figure canvas").first
    assert canvas.evaluate("(c) => [c.width, c.height]") == [1024, 768]
    (request,) = sent
    assert request.headers["content-type"] == "image/jpeg"
    assert request.post_data_buffer == file.getvalue()


# What goes wrong


def test_a_busy_server_is_asked_again_after_the_time_it_says(visit):
    seen, times, room = visit(), [], []

    def busy(route):
        times.append(time.monotonic())
        if room:
            return route.continue_()
        body = json.dumps({"error": "the queue is full", "request_id": "1"})
        return route.fulfill(status=429, headers={"Retry-After": "1"}, body=body)

    seen.page.route("**/v1/classify*", busy)
    seen.drop({"a.png": (png(photo()), "image/png")})
    expect(seen.page.locator(".waiting")).to_have_text("The server is busy; trying again in 1 s")
    room.append(True)
    expect(seen.page.locator(".top")).to_have_count(1)
    assert len(times) > 1
    assert min(np.diff(times)) > 0.9


def test_a_picture_of_which_the_worker_died_is_not_sent_again_by_itself(visit):
    seen, times, dead = visit(), [], [True]

    def killed(route):
        times.append(time.monotonic())
        if not dead:
            return route.continue_()
        words = "the worker that had this picture died, perhaps of it"
        return route.fulfill(status=503, body=json.dumps({"error": words, "request_id": "1"}))

    seen.page.route("**/v1/classify*", killed)
    seen.drop({"a.png": (png(photo()), "image/png")})
    problem = "The worker that had this picture died, perhaps of it."
    expect(seen.page.locator("#list .problem")).to_have_text(problem)
    seen.page.wait_for_timeout(1500)
    assert len(times) == 1
    dead.clear()
    seen.page.get_by_role("button", name="Try a.png again").click()
    expect(seen.page.locator(".top")).to_have_count(1)


def test_a_server_that_is_gone_and_comes_back(visit):
    seen = visit()
    seen.page.route("**/v1/classify*", lambda route: route.abort("connectionrefused"))
    seen.drop({"a.png": (png(photo()), "image/png")})
    problem = seen.page.locator("#list .problem")
    expect(problem).to_have_text("The server does not answer. Is it still running?")
    seen.page.unroute("**/v1/classify*")
    seen.page.get_by_role("button", name="Try a.png again").click()
    expect(seen.page.locator(".top")).to_have_count(1)
    expect(problem).to_have_count(0)


def test_an_answer_from_something_else_is_a_sentence_too(visit):
    seen = visit()
    page = "<h1>Bad gateway</h1>"
    seen.page.route("**/v1/classify*", lambda route: route.fulfill(status=502, body=page))
    seen.drop({"a.png": (png(photo()), "image/png")})
    expect(seen.page.locator("#list .problem")).to_have_text("The server answered with status 502.")


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (None, "not measured"),
        ({"n": 1200, "exported_top1": 0.875}, "87.5 % right on 1,200 pictures"),
        (
            {"n": 64, "exported_top1": None, "exported_map": 0.75},  # of several labels
            "mean average precision 75.0 % on 64 pictures",
        ),
    ],
)
def test_the_page_says_what_the_gate_measured(visit, gate, words):
    seen = visit()

    def measured(route):
        answer = route.fetch()
        route.fulfill(response=answer, json={**answer.json(), "gate": gate})

    seen.page.route("**/v1/model", measured)
    seen.page.reload()
    expect(seen.page.locator("#facts")).to_contain_text(words)


def test_a_token_is_asked_for_and_kept_in_memory_alone(visit):
    seen = visit(token=False)
    page, field = seen.page, seen.page.get_by_label("This server asks for a token")
    expect(field).to_be_focused()
    field.fill("wrong")
    field.press("Enter")
    expect(page.locator("#key-problem")).to_have_text("The server does not take this token.")
    field.fill(TOKEN)
    page.get_by_role("button", name="Use it").click()
    expect(field).to_be_hidden()
    seen.drop({"a.png": (png(photo()), "image/png")})
    expect(page.locator(".top")).to_have_count(1)
    assert "Bearer $VITRAIL_TOKEN" in page.locator("#curl").text_content()
    assert TOKEN not in page.content()
    kept = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
    assert kept == [0, 0, ""]
    page.reload()
    expect(field).to_be_visible()


def test_the_command_on_the_page_works(visit, classify, tmp_path):
    if not shutil.which("curl"):
        pytest.skip("needs curl")
    seen = visit(token=False)
    seen.page.get_by_label("This server asks for a token").fill(TOKEN)
    seen.page.get_by_label("This server asks for a token").press("Enter")
    seen.page.locator("#about").wait_for()
    seen.context.grant_permissions(["clipboard-read", "clipboard-write"])
    seen.page.get_by_role("button", name="Copy").click()
    expect(seen.page.get_by_role("button", name="Copied")).to_be_visible()
    copied = seen.page.evaluate("navigator.clipboard.readText()")
    assert copied == seen.page.locator("#curl").text_content()
    (tmp_path / "picture.jpg").write_bytes(png(photo(2)))
    environment = {**os.environ, "VITRAIL_TOKEN": TOKEN, "no_proxy": "*"}
    done = subprocess.run(
        ["sh", "-c", f"{copied} -sS"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        check=True,
    )
    (result,) = json.loads(done.stdout)["results"]
    assert result["predictions"][0]["label"] == classify([photo(2)])[0][0][0]


# For everybody


def test_by_keyboard_alone(visit, tmp_path):
    (tmp_path / "a.png").write_bytes(png(photo()))
    seen = visit()
    page, keys = seen.page, seen.page.keyboard
    keys.press("Tab")
    expect(page.locator("#files")).to_be_focused()
    ring = page.locator("#files + .button").evaluate("(b) => getComputedStyle(b).outlineStyle")
    assert ring == "solid"
    keys.press("Enter")
    for _ in range(200):
        if seen.choosers:
            break
        page.wait_for_timeout(50)
    (chooser,) = seen.choosers
    assert chooser.is_multiple()
    chooser.set_files(tmp_path / "a.png")
    expect(page.locator(".top")).to_have_count(1)
    order = []
    for _ in range(5):
        keys.press("Tab")
        order.append(
            page.evaluate("document.activeElement.ariaLabel || document.activeElement.id ")
        )
    assert order == ["opacity", "clear", "Remove a.png", "curl command", "copy"]
    page.locator("#opacity").focus()
    keys.press("ArrowLeft")
    expect(page.locator("canvas.glow")).to_have_css("opacity", "0.79")
    page.locator("#clear").focus()
    keys.press("Enter")
    expect(page.locator("#answers")).to_be_hidden()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_scrolls_sideways_and_all_text_can_be_read(visit, scheme):
    seen = visit(
        viewport={"width": 360, "height": 740}, color_scheme=scheme, reduced_motion="reduce"
    )
    assert seen.overflow() == 0
    wide = png(np.tile(photo(), (1, 12, 1)))
    seen.drop({f"{'long-name' * 30}.png": (wide, "image/png"), **TEXT})
    expect(seen.page.locator(".top")).to_have_count(1)
    expect(seen.page.locator("#list .problem")).to_have_count(1)
    seen.page.locator(".top").evaluate("(top) => (top.textContent = 'label'.repeat(40))")
    assert seen.overflow() == 0
    for place in (
        "h1",
        ".quiet",
        ".top",
        ".label",
        ".share",
        ".problem:visible",
        ".button",
        "#copy",
    ):
        assert contrast(seen.page.locator(place).first) >= 4.5, place
    ground = seen.page.locator("body").evaluate("(b) => getComputedStyle(b).backgroundColor")
    assert (luminance(ground) < 0.05) == (scheme == "dark")


def contrast(element):
    """Of text and the ground behind it (WCAG 2.2, 1.4.3)."""
    text, ground = element.evaluate(
        """(element) => {
            let behind = element;
            const ground = (e) => getComputedStyle(e).backgroundColor;
            while (ground(behind) === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
            return [getComputedStyle(element).color, ground(behind)];
        }"""
    )
    dark, light = sorted((luminance(text), luminance(ground)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
