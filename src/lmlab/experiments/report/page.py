"""The page of a report: HTML made piece by piece, its charts, and the one file that all of it
becomes.
"""

import json
import math
import re
from collections.abc import Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import vl_convert

from lmlab.core.files import whole_file
from lmlab.experiments.report.charts import Spec

TEMPLATE = Path(__file__).with_name("page.html")
MINUS = "\N{MINUS SIGN}"


@cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, as vl-convert carries them."""
    bundle: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]
    return bundle.replace("</script", "<\\/script")


class Markup(str):
    """Text that is HTML already."""


class Page:
    """HTML, section by section, and the charts that its boxes stand for."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.sections: list[tuple[str, str]] = []
        self.charts: dict[str, Spec] = {}

    def add(self, *parts: str) -> None:
        self.parts += parts

    def heading(self, title: str, note: str = "") -> None:
        name = re.sub(r"\W+", "-", title.lower())
        self.sections.append((name, title))
        self.add(f'<h2 id="{name}">{escape(title)}</h2>')
        if note:
            self.note(note)

    def note(self, text: str) -> None:
        self.add(f'<p class="note">{escape(text)}</p>')

    def chart(
        self,
        spec: Spec,
        title: str = "",
        broad: bool = False,
        sides: tuple[float, float] | None = None,
    ) -> None:
        """`broad` ones scroll on small screens; `sides` give a box the shape of what is drawn in
        it.
        """
        name = f"chart-{len(self.charts)}"
        self.charts[name] = spec
        kind = "chart broad" if broad else "chart"
        shape = f' style="aspect-ratio: {sides[0]:g} / {sides[1]:g}"' if sides else ""
        caption = f"<figcaption>{escape(title)}</figcaption>" if title else ""
        self.add(
            f'<figure class="{kind}">{caption}<div id="{name}" class="vega"{shape}></div></figure>'
        )

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Any]], kind: str = "") -> None:
        """The first column names the rows; numbers stand to the right. Cells are text, numbers, or
        HTML if `Markup`.
        """
        numeric = [
            bool(rows) and all(_is_number(row[place]) for row in rows) for place in range(len(head))
        ]
        side = [' class="number"' if number else "" for number in numeric]
        self.add(f'<div class="wide" tabindex="0"><table class="{kind}"><thead><tr>')
        self.add(
            *(
                f'<th scope="col"{s}>{escape(title)}</th>'
                for title, s in zip(head, side, strict=True)
            )
        )
        self.add("</tr></thead><tbody>")
        for row in rows:
            cells = [cell if isinstance(cell, Markup) else escape(as_text(cell)) for cell in row]
            self.add(f'<tr><th scope="row">{cells[0]}</th>')
            self.add(
                *(f"<td{s}>{cell}</td>" for cell, s in zip(cells[1:], side[1:], strict=True)),
                "</tr>",
            )
        self.add("</tbody></table></div>")

    def write(self, target: Path, title: str, legend: Sequence[tuple[str, str]]) -> None:
        """Write the whole as one file that loads nothing; `legend` names the variants that a reader
        may switch off, each by a label and in full.
        """
        button = '<button type="button" class="variant" aria-pressed="true"'
        buttons = (
            f'{button} data-variant="{at}" title="{escape(name)}"><i></i>{escape(label)}</button>'
            for at, (label, name) in enumerate(legend)
        )
        charts = json.dumps(self.charts, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        pieces = {
            "title": escape(title),
            "links": "".join(
                f'<a href="#{name}">{escape(heading)}</a>' for name, heading in self.sections
            ),
            "legend": "".join(buttons),
            "body": "\n".join(self.parts),
            "charts": charts.replace(
                "<", "\\u003c"
            ),  # no sign of a tag may stand in a script, not even of a comment
            "library": library(),
        }
        text, *rest = TEMPLATE.read_text(encoding="utf-8").split("{{")
        for piece in rest:  # once each, so that nothing in a run is taken for a place to fill
            name, _, after = piece.partition("}}")
            text += pieces[name] + after
        with whole_file(target) as partial:
            partial.write_text(text, encoding="utf-8")


def _is_number(cell: Any) -> bool:
    text = cell == "" or (
        isinstance(cell, str)
        and re.fullmatch(rf"[-+{MINUS}]?[\d,.]+(e[-+]\d+)?|-", cell) is not None
    )
    return text or (isinstance(cell, int | float) and not isinstance(cell, bool))


def rounded(cell: Any) -> str:
    """A number with one decimal, or without any from 1000 on."""
    return f"{cell:,.1f}" if isinstance(cell, float) and cell < 1000 else as_text(cell)


def fixed(value: float | None) -> str:
    """Whole numbers with commas, others with four decimals, so that they stand in line."""
    if value is None:
        return ""
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4f}"


def signed(value: float) -> str:
    """A difference to three digits."""
    return f"{value:+.3g}".replace("-", MINUS) if math.isfinite(value) else "-"


def as_text(cell: Any) -> str:
    """A number to four digits, or with commas if it is whole; anything else as it is."""
    if isinstance(cell, bool) or not isinstance(cell, int | float):
        return str(cell)
    if cell != cell:
        return "-"
    if float(cell).is_integer() or abs(cell) >= 10_000:
        return f"{cell:,.0f}"
    return f"{cell:.4g}"
