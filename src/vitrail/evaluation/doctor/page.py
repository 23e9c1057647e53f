"""The doctor's page: what is wrong with the data, with the pictures side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.decode import decode
from vitrail.evaluation.doctor.findings import Findings, Place, Twins
from vitrail.kit.errors import Error
from vitrail.kit.page import Page, Picture, Section, Share

SHOWN = 48  # pictures or pairs of a kind
OPEN = 12  # of them that are not folded away
WHERE = {"": "inside of a split", "splits": "across splits", "other": "with the other set"}


def write_page(
    path: Path,
    found: Findings,
    *,
    data: str,
    accuracy: Sequence[tuple[str, float, int]] = (),
    command: str = "",
    footer: str = "",
) -> None:
    """Write ``report.html``, whole or not at all.

    Args:
        data: what the user called it.
        accuracy: (what was measured on, top-1, images) of the model, before and after cleaning.
        command: what was typed.
    """
    n = sum(map(len, found.splits.values()))
    too_many = sum(map(len, found.dropped().values()))
    page = Page(
        f"{data}: {n:,} pictures looked at",
        lead="What is there twice, what cannot be read, what is odd, and which labels look wrong. "
        "Nothing was changed.",
        headline=[
            (len(found.unreadable), "unreadable"),
            (sum(not t.pair.exact for t in found.twins), "near-duplicate pairs"),
            (sum(t.pair.exact for t in found.twins), "exact pairs"),
            (len(found.suspects) if found.out_of_fold is not None else None, "doubtful labels"),
            (n - too_many, "pictures in the clean list"),
        ],
        footer=footer,
    )
    _summary(page.section("In short"), found, accuracy)
    _twins(page.section("Duplicates"), found)
    _labels(page.section("Labels"), found)
    _classes(page.section("Classes"), found)
    _odd(page.section("Odd pictures"), found)
    if found.unreadable:
        page.section("Unreadable").table(
            ("picture", "reason"), found.unreadable[:200], caption="What cannot be read."
        )
    if command:
        page.section("Again").code(command)
    page.save(path)


def _summary(section: Section, found: Findings, accuracy: Sequence[tuple[str, float, int]]) -> None:
    section.text(*found.lines())
    if accuracy:
        rows = [(what, Share(top1), images) for what, top1, images in accuracy]
        section.table(
            ("measured on", "top-1", "images"),
            rows,
            caption="The model before and after cleaning: what duplicates of training pictures in "
            "the test set are worth.",
        )


def _twins(section: Section, found: Findings) -> None:
    if not found.twins:
        section.text("No picture is there twice.")
        return
    section.text(
        "The score is the correlation of the two, laid over each other; brightness and colour do "
        "not count. Pairs of the lowest scores come first: those are the ones to doubt."
    )
    for across, words in WHERE.items():
        pairs = [twins for twins in found.twins if twins.across == across]
        if not pairs:
            continue
        pairs.sort(key=lambda twins: (twins.pair.exact, twins.pair.score))
        shown = [picture for twins in _apart(pairs) if (picture := _pair(found, twins))]
        caption = f"Duplicates {words}: {len(shown)} of {len(pairs):,} pairs."
        section.gallery(shown[:OPEN], caption=caption)
        if len(shown) > OPEN:
            section.details(f"{len(shown) - OPEN} more").gallery(shown[OPEN:])


def _apart(pairs: list[Twins]) -> list[Twins]:
    """Some of the pairs, in their order, no picture twice: else one large group fills the page."""
    seen: set[Place] = set()
    some = []
    for twins in pairs:
        if twins.a not in seen and twins.b not in seen and len(some) < SHOWN:
            seen |= {twins.a, twins.b}
            some.append(twins)
    return some


def _pair(found: Findings, twins: Twins) -> Picture | None:
    images = [_image(found, place) for place in (twins.a, twins.b)]
    if images[0] is None or images[1] is None:
        return None
    keys = [found.key(place) for place in (twins.a, twins.b)]
    labels = [found.label(place) for place in (twins.a, twins.b)]
    kind = "exact" if twins.pair.exact else f"score {twins.pair.score:.3f}"
    doubt = ", not confirmed by features" if twins.confirmed is False else ""
    return Picture(
        [image for image in images if image is not None],
        keys,
        f"{kind}{', mirrored' if twins.pair.mirrored else ''}{doubt}",
        [
            f"{place.split}: {key} ({label})"
            for place, key, label in zip((twins.a, twins.b), keys, labels, strict=True)
        ],
    )


def _labels(section: Section, found: Findings) -> None:
    if found.conflicts:
        pictures = []
        for group in found.conflicts[:SHOWN]:
            images = [(place, _image(found, place)) for place in group[:4]]
            seen = [(place, image) for place, image in images if image is not None]
            pictures.append(
                Picture(
                    [image for _, image in seen],
                    [found.key(place) for place, _ in seen],
                    " / ".join(sorted({found.label(place) for place in group})),
                    [found.key(place) for place, _ in seen],
                )
            )
        section.gallery(
            pictures, caption=f"{len(found.conflicts):,} groups of duplicates with several labels."
        )
    if found.out_of_fold is None:
        section.text("Labels were not checked: that takes a model (--model).")
        return
    section.text(
        f"{len(found.suspects):,} labels are doubtful. They are judged by linear probes on the "
        "model's features, each learnt without the pictures that it judges; those are right for "
        f"{100 * found.out_of_fold:.1f} % of the labels. A person has to decide."
    )
    pictures = []
    for suspect in found.suspects[:SHOWN]:
        image = _image(found, suspect.place)
        if image is not None:
            key = found.key(suspect.place)
            title = f"{found.label(suspect.place)}, or {suspect.suggested}?"
            pictures.append(Picture([image], [key], title, [key, f"score {suspect.score:.2f}"]))
    section.gallery(pictures, caption="The most doubtful first.")


def _classes(section: Section, found: Findings) -> None:
    for sentence in found.order:
        section.note(sentence)
    names = list(next(iter(found.counts.values())))
    rows = [(name, *(counts.get(name, 0) for counts in found.counts.values())) for name in names]
    part = section if len(rows) <= 40 else section.details(f"all {len(rows):,} classes")
    part.table(("class", *found.counts), rows, caption="Pictures of each class.")


def _odd(section: Section, found: Findings) -> None:
    if not found.odd:
        section.text("None.")
        return
    pictures: list[Picture] = []
    rows: dict[str, int] = {}
    for odd in found.odd:
        rows[odd.what] = rows.get(odd.what, 0) + 1
        if rows[odd.what] <= SHOWN // 4 and (image := _image(found, odd.place)) is not None:
            key = found.key(odd.place)
            pictures.append(Picture([image], [key], odd.what, [key]))
    section.table(("what", "pictures"), list(rows.items()), caption="Pictures that stand out.")
    section.gallery(pictures, caption="Some of each kind.")


def _image(found: Findings, place: Place) -> np.ndarray | None:
    source: Any = found.other if place.split == "other" else found.splits[place.split]
    try:
        image = source.image(place.index)
        return decode(image, min_size=192) if isinstance(image, bytes) else image
    except Error:
        return None
