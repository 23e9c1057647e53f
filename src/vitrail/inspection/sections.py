"""What the sections of a report are made of, and the list of those that need model and pictures.

A section is a function `section(model, pictures) -> Part | None`; None where there is nothing to
say. To add one, write such a function and put it into `SECTIONS`, under the name by which
``--figures`` asks for it. The sections on filters, positions and attention are made in
`report`, because those on attention share one pass.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vitrail.inspection.figures import Figure
from vitrail.inspection.pictures import Pictures
from vitrail.kit.page import Section as PageSection
from vitrail.models.base import ImageClassifier


@dataclass(frozen=True)
class Part:
    """What a section says.

    Args:
        title: its heading.
        text: paragraphs.
        figures: saved as PNG and SVG, and shown in the page.
        arrays: by their names in ``arrays.npz``.
        summary: numbers for ``--json``, put together with those of the other sections.
        fill: adds to the page, below the text and above the figures, what is no figure: a table,
            a gallery.
        apart: names of figures that are saved and not shown in the page.
    """

    title: str
    text: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    fill: Callable[[PageSection], None] | None = None
    apart: Sequence[str] = ()


Section = Callable[[ImageClassifier, Pictures], Part | None]

SECTIONS: dict[str, Section] = {}
