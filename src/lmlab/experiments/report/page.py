"""The page of a report: sections become HTML, in one file that loads nothing.

page.html is the page, elements.html has a macro for each kind of element, page.css its looks and
page.js what draws the charts.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lmlab.core.files import whole_file
from lmlab.experiments.report.charts import Spec
from lmlab.experiments.report.elements import Chart, ColouredText, Drawing, Section
from lmlab.experiments.report.numbers import as_text

FOLDER = Path(__file__).parent
SHADES = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Bits per character at which the next stronger of the ten shades begins."""
LN_2 = 0.6931471805599453


@cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, as vl-convert carries them."""
    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    return bundle.replace("</script", "<\\/script")


class Data:
    """What the page's script reads: charts and the likeliest tokens, by the ids of their places."""

    def __init__(self) -> None:
        self.charts: dict[str, Spec] = {}
        self.texts: dict[str, list[Any]] = {}
        self.pictures = 0

    def add_chart(self, chart: Chart) -> str:
        """The id of the place of a chart."""
        name = f"chart-{len(self.charts)}"
        self.charts[name] = chart.spec
        return name

    def add_text(self, text: ColouredText) -> str:
        """The id of the place of a coloured text."""
        name = f"text-{len(self.texts)}"
        self.texts[name] = [[piece.nats, piece.guesses] for piece in text.pieces]
        return name

    def add_picture(self, drawing: Drawing) -> Markup:
        """The element of a picture, with ids that no other has."""
        self.pictures += 1
        return Markup(drawing.picture.inline(f"picture-{self.pictures}-"))


def as_script(value: Any) -> Markup:
    """JSON for a script element: no sign of a tag may stand there, not even of a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def shade(text: str, nats: float) -> int:
    """The shade of a piece of text, 0 to 9, by its bits per character."""
    bits = nats / LN_2 / max(1, len(text))
    return sum(bits >= bound for bound in SHADES)


@dataclass(frozen=True)
class Page:
    """A report that is ready to be written."""

    title: str
    legend: Sequence[tuple[str, str]]
    """The label and the name of each variant that a reader may switch off."""
    sections: Sequence[Section]

    def write(self, target: Path) -> None:
        """Write the page as one file."""
        environment = Environment(
            loader=FileSystemLoader(FOLDER),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {"as_text": as_text, "as_script": as_script, "shade": shade}
        html = environment.get_template("page.html").render(
            page=self,
            data=Data(),
            shades=SHADES,
            style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
            library=Markup(library()),
            script=Markup((FOLDER / "page.js").read_text(encoding="utf-8")),
        )
        with whole_file(target) as partial:
            partial.write_text(html, encoding="utf-8")
