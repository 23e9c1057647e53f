"""What README and docs say is run: every block of shell commands and of Python."""

import re
import shlex
from pathlib import Path

import pytest

from tests.commands import call

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.M | re.S)


@pytest.fixture
def workplace(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_page_does_what_it_says(page, workplace):
    for block in blocks(page, "sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if not words or words[0] == "make":  # `make demo` and `make test` are run by CI itself
                continue
            assert words[0] == "vitrail", f"{page.name}: only vitrail commands stand in sh blocks"
            call(*words[1:])
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_map_names_real_places():
    text = (ROOT / "README.md").read_text()
    block = text.partition("## Where things are")[2].split("```")[1]
    for line in block.splitlines():
        if not line.strip():
            continue
        name = line.split()[0]
        if line.startswith("  "):
            assert (ROOT / "src" / "vitrail" / name).exists(), name
        else:
            assert (ROOT / name).exists(), name
    rooms = {path.name for path in (ROOT / "src" / "vitrail").iterdir() if path.is_dir()}
    named = set(re.findall(r"^  (\w+)/", block, re.M))
    assert rooms - {"__pycache__"} == named
