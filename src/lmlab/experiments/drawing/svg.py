"""A picture as SVG: boxes, arrows and text, in colours for light and for dark pages."""

from dataclasses import dataclass, field
from html import escape

STYLE = """
    text { font: 13px system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif }
    text { fill: #1f2328; text-anchor: middle }
    .title { font-size: 15px; font-weight: 600 }
    .small { font-size: 12px; fill: #57606a }
    .kind { font-size: 12px; fill: #8a4b08 }
    .code { font: 12px ui-monospace, Menlo, Consolas, monospace; fill: #57606a }
    .start { text-anchor: start }
    .end { text-anchor: end }
    rect { fill: #eef4fb; stroke: #3b6ea5; stroke-width: 1.5 }
    .frame { fill: none; stroke: #9da7b3; stroke-dasharray: 4 3 }
    .line { fill: none; stroke: #57606a; stroke-width: 1.5; marker-end: url(#grey) }
    .true { fill: none; stroke: #1a7f37; stroke-width: 2.5; marker-end: url(#green) }
    .replaced { fill: none; stroke: #bc4c00; stroke-width: 2.5; marker-end: url(#orange) }
    .replaced { stroke-dasharray: 7 4 }
    .grey { fill: #57606a } .green { fill: #1a7f37 } .orange { fill: #bc4c00 }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3 }
      .small, .code { fill: #9da7b3 }
      .kind { fill: #f0b072 }
      rect { fill: #14202e; stroke: #6aa2dc }
      .frame { fill: none; stroke: #6e7681 }
      .line { stroke: #9da7b3 }
      .true { stroke: #3fb950 }
      .replaced { stroke: #f0883e }
      .grey { fill: #9da7b3 } .green { fill: #3fb950 } .orange { fill: #f0883e }
    }"""
MARKER = (
    '<marker id="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"'
    ' markerUnits="userSpaceOnUse" orient="auto"><path class="{name}" d="M0 0 8 4 0 8z"/></marker>'
)


@dataclass
class Picture:
    """What has been drawn so far; y grows downwards, in pixels."""

    description: str
    """In words, for those who do not see it."""
    width: int
    height: int = 0
    """Of what has been drawn."""
    _shapes: list[str] = field(default_factory=list)

    def box(self, x: int, y: int, width: int, height: int, title: str, *details: str) -> None:
        """A box with a title and small lines below it."""
        self._reach(y + height)
        self._shapes.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>')
        first = y + height // 2 + 5 - 8 * len(details)
        self.text(x + width // 2, first, title, "title")
        for number, detail in enumerate(details, start=1):
            self.text(x + width // 2, first + 1 + 16 * number, detail, "small")

    def frame(self, x: int, y: int, width: int, height: int, title: str) -> None:
        """A dashed frame around what belongs together."""
        self._reach(y + height)
        self._shapes.append(
            f'<rect class="frame" x="{x}" y="{y}" width="{width}" height="{height}" rx="12"/>'
        )
        self.text(x + 12, y + 18, title, "small start")

    def text(self, x: int, y: int, text: str, style: str = "") -> None:
        """A line of text; the style is one or more of the classes of STYLE."""
        self._reach(y + 5)
        of_class = f' class="{style}"' if style else ""
        self._shapes.append(f'<text{of_class} x="{x}" y="{y}">{escape(text)}</text>')

    def arrow(self, path: str, style: str = "line") -> None:
        """An arrow along a path in SVG's own notation."""
        self._shapes.append(f'<path class="{style}" d="{path}"/>')

    def svg(self) -> str:
        """The file's content."""
        markers = [MARKER.format(name=name) for name in ("grey", "green", "orange")]
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height + 10}"'
            f' width="{self.width}" role="img" aria-labelledby="title">',
            f'  <title id="title">{escape(self.description)}</title>',
            f"  <style>{STYLE}\n  </style>",
            f"  <defs>{''.join(markers)}</defs>",
            *(f"  {shape}" for shape in self._shapes),
            "</svg>",
        ]
        return "\n".join(lines) + "\n"

    def _reach(self, y: int) -> None:
        self.height = max(self.height, y)
