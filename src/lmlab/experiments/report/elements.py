"""What a report is made of, as data: sections, and the elements that stand in them.

`page` turns them into HTML: the macro in elements.html that is called like an element's `kind`
draws it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from lmlab.evaluation.heldout import Piece
from lmlab.experiments.drawing.svg import Picture
from lmlab.experiments.report.charts import Spec
from lmlab.experiments.report.numbers import is_number


class Element:
    """Anything that a macro of elements.html draws."""

    kind: ClassVar[str]
    """The macro's name."""


@dataclass(frozen=True)
class Section:
    """A part of the page under a heading of its own."""

    heading: str
    """Empty for what stands above the first heading."""
    intro: str
    content: Sequence[Element]

    @property
    def anchor(self) -> str:
        """What a link to the section names."""
        return re.sub(r"\W+", "-", self.heading.lower())


@dataclass(frozen=True)
class Lead(Element):
    """The report in a few sentences."""

    kind: ClassVar[str] = "lead"
    text: str


@dataclass(frozen=True)
class Heading(Element):
    """A heading within a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Note(Element):
    """A sentence or two on what stands beside it."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class Chart(Element):
    """A Vega-Lite chart."""

    kind: ClassVar[str] = "chart"
    spec: Spec
    title: str = ""
    least_width: int = 0
    """In pixels; on smaller screens it scrolls."""
    sides: tuple[float, float] | None = None
    """Width and height of what is drawn, where the box is to have that shape."""


@dataclass(frozen=True)
class Table(Element):
    """The first column names the rows. Cells are text, numbers or elements."""

    kind: ClassVar[str] = "table"
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    style: str = ""
    """The class of the table in page.css."""

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold numbers alone, and stand to the right."""
        columns = range(len(self.head))
        return [
            bool(self.rows) and all(is_number(row[column]) for row in self.rows)
            for column in columns
        ]


def without_empty_columns(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    """A table of the columns in which some row has something, the first in any case."""
    columns = range(len(head))
    kept = [column for column in columns if not column or any(row[column] != "" for row in rows)]
    return Table(
        [head[column] for column in kept], [[row[column] for column in kept] for row in rows]
    )


@dataclass(frozen=True)
class VerdictWords(Element):
    """A verdict in words, in a cell of a table."""

    kind: ClassVar[str] = "verdict"
    style: str
    """`better`, `worse` or another class of page.css."""
    text: str
    detail: str


@dataclass(frozen=True)
class Interval(Element):
    """A difference and its interval as a small picture in a cell; zero is in the middle."""

    kind: ClassVar[str] = "interval"
    style: str
    difference: float
    low: float | None
    high: float | None
    reach: float
    """How far the picture goes to either side of zero."""

    def x(self, value: float) -> str:
        """Where a value stands in a picture that is 160 wide."""
        return f"{80 + 74 * value / self.reach:.1f}"


@dataclass(frozen=True)
class Fold(Element):
    """What is shown when its summary is clicked."""

    kind: ClassVar[str] = "fold"
    summary: str
    content: Sequence[Element]
    style: str = ""


@dataclass(frozen=True)
class Pair(Element):
    """Elements side by side where the screen is wide enough."""

    kind: ClassVar[str] = "pair"
    content: Sequence[Element]


@dataclass(frozen=True)
class Panel:
    """What belongs to one variant."""

    variant: int
    label: str
    content: Sequence[Element]


@dataclass(frozen=True)
class Choice(Element):
    """A panel for each of several variants, of which one is shown; the reader chooses."""

    kind: ClassVar[str] = "choice"
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Sample:
    """A generated text."""

    title: str
    """Empty where nothing has to tell it from others."""
    text: str
    variant: int | None = None
    """Whose colour the title has; None for none."""


@dataclass(frozen=True)
class Samples(Element):
    """Generated texts side by side."""

    kind: ClassVar[str] = "samples"
    samples: Sequence[Sample]


@dataclass(frozen=True)
class ColouredText(Element):
    """Held-out text, each piece coloured by its cross-entropy, with the likeliest tokens."""

    kind: ClassVar[str] = "coloured_text"
    pieces: Sequence[Piece]


@dataclass(frozen=True)
class Drawing(Element):
    """A picture."""

    kind: ClassVar[str] = "drawing"
    picture: Picture
