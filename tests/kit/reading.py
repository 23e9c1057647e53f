"""A page as a browser and a screen reader meet it."""

import base64
import hashlib
import itertools
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

from vitrail import kit


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    inside: tuple["Element", ...]  # the elements around it, outermost first
    text: str = ""
    children: list["Element"] = field(default_factory=list)

    def has(self, name: str) -> bool:
        return name in self.attributes.get("class", "").split()


class _Reader(HTMLParser):
    VOID = ("meta", "link", "img", "wbr", "input")

    def __init__(self):
        super().__init__()
        self.elements: list[Element] = []
        self.open: list[Element] = []

    def handle_starttag(self, tag, attrs):
        element = Element(tag, {k: v or "" for k, v in attrs}, tuple(self.open))
        self.elements.append(element)
        if self.open:
            self.open[-1].children.append(element)
        if tag not in self.VOID:
            self.open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append(Element(tag, {k: v or "" for k, v in attrs}, tuple(self.open)))

    def handle_endtag(self, tag):
        closed = self.open.pop()
        assert closed.tag == tag, f"<{closed.tag}> closed by </{tag}>"

    def handle_data(self, data):
        for element in self.open:
            element.text += data


def read(page: str) -> list[Element]:
    """All elements in order; fails where tags do not match."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert not reader.open, f"not closed: {[element.tag for element in reader.open]}"
    return reader.elements


def check_self_contained(page: str, script: bool = False) -> None:
    """Nothing is asked for from outside, nothing runs, and the browser is told so.

    With ``script`` the one script of `page.js` runs, and the browser is told its hash.
    """
    elements = read(page)
    source = re.sub("base64,[A-Za-z0-9+/=]*", "", page)
    assert "http" not in source.replace('http-equiv="Content', "").replace("http%3A", "")
    assert "@import" not in source
    assert "url(" not in source.replace("url(#", "")
    for element in elements:
        assert element.tag not in ("iframe", "object", "embed", "form", "base")
        for name, value in element.attributes.items():
            assert not name.startswith("on"), element
            if name in ("src", "href", "srcset", "xlink:href", "action", "poster"):
                assert value.startswith(("data:image/", "#")), value
    policies = [e.attributes["content"] for e in elements if "http-equiv" in e.attributes]
    assert len(policies) == 1
    rules = dict(rule.split(maxsplit=1) for rule in policies[0].split("; "))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    scripts = re.findall("<script>(.*?)</script>", page, flags=re.DOTALL)
    assert sum(element.tag == "script" for element in elements) == len(scripts) == int(script)
    assert ("script-src" in rules) == script
    for text in scripts:
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert rules["script-src"] == f"'sha256-{digest}'"
        assert text == (Path(kit.__file__).parent / "page.js").read_text().strip()


def check_readable(page: str) -> None:
    """In order for the keyboard, the phone and the screen reader."""
    elements = read(page)
    of = lambda tag: [element for element in elements if element.tag == tag]  # noqa: E731
    assert of("html")[0].attributes["lang"] == "en"
    assert any(e.attributes.get("name") == "viewport" for e in of("meta"))
    levels = [int(e.tag[1]) for e in elements if e.tag in ("h1", "h2", "h3", "h4")]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert all(e.attributes.get("alt") for e in of("img"))
    assert all(e.attributes.get("aria-label") for e in of("svg"))
    assert all(e.attributes.get("scope") in ("col", "row") for e in of("th"))
    names = [e.attributes["id"] for e in elements if "id" in e.attributes]
    assert len(names) == len(set(names))
    for table in of("table"):
        assert table.attributes["aria-labelledby"] in names
        box = table.inside[-1]
        assert box.has("box")
        assert box.attributes["tabindex"] == "0"
    for link in of("a"):
        assert link.attributes["href"].removeprefix("#") in names
