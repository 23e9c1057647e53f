"""What `--help` shows: choices as a person may type them, and of a study's kinds each its own."""

import re
import shlex
import subprocess
import sys

import pytest

from tests.commands import call
from vitrail.cli import VERBS
from vitrail.cli.arguments import gathered
from vitrail.cli.parse import asks_for_help, parsed
from vitrail.cli.study import kind_of, study
from vitrail.studies.flags import KINDS, KINDS_OF

HELPS = [*((verb,) for verb in VERBS), *(("study", kind) for kind in KINDS)]


def shown(*words: str) -> str:
    out, _ = call(*words, "--help")
    return out


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_no_help_offers_none_as_a_choice(words):
    # A flag that is not given is None to us; a user cannot type it.
    assert not re.search(r"\bNone\b", shown(*words))


def test_choices_are_shown():
    assert "--format table|csv|jsonl|parquet" in shown("predict")
    assert "--split test|val|train" in shown("export")


@pytest.mark.parametrize("kind", KINDS)
def test_the_help_of_a_kind_of_study_has_the_flags_that_it_takes(kind):
    flags = set(re.findall(r"^\W*(--[\w-]+)", shown("study", kind), re.M))
    every = set(re.findall(r"^\W*(--[\w-]+)", shown("study"), re.M))
    assert set(KINDS_OF) < every
    assert every - flags == {flag for flag, kinds in KINDS_OF.items() if kind not in kinds}
    text = " ".join(shown("study", kind).replace("│", " ").split())
    assert f"usage: vitrail study {kind} [-h] [OPTIONS] DATA" in text
    others = set(KINDS) - {kind}
    assert not re.search(rf"Of ({'|'.join(KINDS)})\b", text)
    assert not [other for other in others if f"Of {other}" in text or f"{other} also" in text]
    assert "Of finished runs: their models" in text, "this says nothing of kinds"


def test_the_help_of_study_names_its_kinds():
    text = shown("study")
    for kind in KINDS:
        assert re.search(rf"^- {kind}: \w", text, re.M)
    assert "vitrail study KIND --help" in text


def test_a_mistake_leads_to_the_help_of_its_kind():
    _, err = call("study", "ablation", status=2)
    assert err == "error: missing: DATA, --out (vitrail study ablation --help says more)\n"


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        (("search", "photos", "--models", "scaling"), "search"),
        (("--help", "ablation"), "ablation"),
        (("datasize", "photos", "--out", "ablation"), None),
        (("--out", "search", "ablation", "photos"), None),
        ((), None),
    ],
)
def test_a_kind_is_the_first_word_and_no_other_that_is_called_so(words, kind):
    assert kind_of(words) == kind


def test_a_file_may_be_called_like_a_flag():
    _, err = call("predict", "nowhere", "--", "--help", "-h", status=2)
    assert "nowhere" in err
    assert asks_for_help(["photos", "-h"])
    assert not asks_for_help(["photos", "--", "-h", "--help"])
    words = ["--set", "a=1", "X", "--", "--set", "b=2"]
    assert gathered(words) == ["X", "--set", "a=1", "--", "--set", "b=2"]


def test_help_shows_every_place_though_some_are_taken():
    assert "OPTIONS] DATA\n" in shown("doctor", "photos", "--out", "page")
    assert "OPTIONS] KIND DATA\n" in shown("study", "datasize", "photos")


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_of_a_kind_is_a_command_of_that_kind(kind):
    (line,) = re.findall(rf"^Example: vitrail study ({kind} .*)$", shown("study", kind), re.M)
    call_of = parsed(study, "study", shlex.split(line))
    assert call_of.args == (kind, "photos/")
    of_others = {flag for flag, kinds in KINDS_OF.items() if kind not in kinds}
    assert not of_others & set(line.split())


def test_presets_are_those_that_there_are():
    from vitrail.cli.study import OWN
    from vitrail.studies.presets import DATA_SIZE, SCALING

    for kind, presets in (("data-size", DATA_SIZE), ("scaling", SCALING)):
        listed = OWN[kind, "preset"].partition(": ")[2].rstrip(".").split(", ")
        assert set(listed) == set(presets.named)


def test_the_help_of_a_kind_comes_without_torch():
    script = (
        "import sys; from vitrail.cli import main\n"
        "try: main(['study', 'ablation', '--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.rstrip().endswith("False")
