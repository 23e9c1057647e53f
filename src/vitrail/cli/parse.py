"""From the words of a command to a call of its verb; the parser's boxes become one sentence.

tyro says what is wrong in a box of several lines. A mistake of the user is one line here, as every
other is, so what tyro prints is caught and put into a sentence. `--help` passes through.
"""

import contextlib
import functools
import io
import itertools
import re
import sys
from collections.abc import Callable, Sequence

from vitrail.kit.errors import Error


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether a help is asked for; behind ``--`` all words are names of files."""
    return any(word in ("-h", "--help") for word in itertools.takewhile("--".__ne__, words))


def parsed(verb: Callable[..., int], name: str, words: list[str]) -> Callable[[], int]:
    """The call that the words ask for, not yet made.

    Raises:
        Error: words that the verb does not take.
    """
    import tyro

    @functools.wraps(verb)
    def later(*values: object, **named: object) -> Callable[[], int]:
        return functools.partial(verb, *values, **named)

    if asks_for_help(words):
        words = ["--help"]  # else tyro leaves out the places that are taken
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                later,
                prog=f"vitrail {name}",
                args=words,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as end:
        if not end.code:
            sys.stderr.write(said.getvalue())
            raise
        raise Error(f"{sentence(said.getvalue())} (vitrail {name} --help says more)") from None


def sentence(box: str) -> str:
    """What one of tyro's boxes says, in one sentence."""
    lines = [line.strip("\u2502|").rstrip() for line in box.split("\n")]
    said: list[list[str]] = [[]]  # what stands between the rules; the first begins with the title
    for line in lines[1:]:
        if line.strip(" \u2500-\u256d\u256e\u2570\u256f"):
            said[-1].append(line)
        elif said[-1]:
            said.append([])
    text = " ".join(" ".join(said[0]).split()).rstrip(".")
    if lost := re.match(r"Unrecognized options: ([^,\s]+)", text):
        near = re.findall(
            r"^\s*(--[\w-]+)", "\n".join(line for part in said for line in part), re.M
        )
        what = "option" if lost[1].startswith("-") else "place for the word"
        return f"there is no {what} {lost[1]}" + (f"; did you mean {near[0]}?" if near else "")
    if text.startswith("Missing from"):
        named = re.findall(r"^\s{2,6}(--[\w-]+|[A-Z]{2,})\b", "\n".join(said[0]), re.M)
        return f"missing: {', '.join(dict.fromkeys(named))}" if named else text
    if lost := re.match(r"Missing value for argument '([^']*)'", text):
        return f"{lost[1].split('/')[0]} needs a value"
    if wrong := re.match(r"Error parsing (\S+?): .*?\['(.*?)'\]", text):
        kinds = "a whole number" if "INT" in text else "a number" if "FLOAT" in text else ""
        return f"{wrong[1]} cannot be {wrong[2]!r}" + (f": it takes {kinds}" if kinds else "")
    if wrong := re.match(r"invalid choice (.*) for argument '(.*?)'. Expected one of (.*)", text):
        choices = [choice for choice in re.findall(r"'([^']*)'", wrong[3]) if choice != "None"]
        return f"{wrong[2]} cannot be {wrong[1]}: it is one of {', '.join(sorted(choices))}"
    return text
