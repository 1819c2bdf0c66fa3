"""A picture as SVG: boxes, arrows and text, in colours for light and for dark pages."""

from html import escape

from pydantic import BaseModel, ConfigDict

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
    .line { fill: none; stroke: #57606a; stroke-width: 1.5 }
    .true { fill: none; stroke: #1a7f37; stroke-width: 2.5 }
    .replaced { fill: none; stroke: #bc4c00; stroke-width: 2.5 }
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
HEADS = {"line": "grey", "true": "green", "replaced": "orange"}
"""The colour of an arrow's head by the arrow's style."""
MARKER = (
    '<marker id="{id}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8"'
    ' markerUnits="userSpaceOnUse" orient="auto">'
    '<path class="{colour}" d="M0 0 8 4 0 8z"/></marker>'
)


class Shape(BaseModel):
    """Something drawn; what is written in its fields is all there is to it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Rectangle(Shape):
    """A rectangle with round corners: a box, or with the style `frame` a dashed line."""

    x: int
    y: int
    width: int
    height: int
    style: str = ""

    def svg(self, prefix: str) -> str:
        """The element, without the ids that others refer to."""
        radius = 12 if self.style else 8
        return (
            f'<rect{_class(self.style)} x="{self.x}" y="{self.y}" width="{self.width}"'
            f' height="{self.height}" rx="{radius}"/>'
        )


class Text(Shape):
    """A line of text."""

    x: int
    y: int
    text: str
    style: str = ""

    def svg(self, prefix: str) -> str:
        """The element."""
        return f'<text{_class(self.style)} x="{self.x}" y="{self.y}">{escape(self.text)}</text>'


class Arrow(Shape):
    """An arrow along a path in SVG's own notation."""

    path: str
    style: str = "line"

    def svg(self, prefix: str) -> str:
        """The element; its head is a marker whose id begins with the prefix."""
        marker = f"{prefix}{HEADS.get(self.style, 'grey')}"
        path = escape(self.path)
        return f'<path{_class(self.style)} d="{path}" marker-end="url(#{marker})"/>'


def _class(style: str) -> str:
    return f' class="{escape(style)}"' if style else ""


class Picture(BaseModel):
    """What has been drawn so far; y grows downwards, in pixels."""

    description: str
    """In words, for those who do not see it."""
    width: int
    height: int = 0
    """Of what has been drawn."""
    shapes: list[Rectangle | Text | Arrow] = []

    def box(self, x: int, y: int, width: int, height: int, title: str, *details: str) -> None:
        """A box with a title and small lines below it."""
        self._reach(y + height)
        self.shapes.append(Rectangle(x=x, y=y, width=width, height=height))
        first = y + height // 2 + 5 - 8 * len(details)
        self.text(x + width // 2, first, title, "title")
        for number, detail in enumerate(details, start=1):
            self.text(x + width // 2, first + 1 + 16 * number, detail, "small")

    def frame(self, x: int, y: int, width: int, height: int) -> None:
        """A dashed frame around what belongs together."""
        self._reach(y + height)
        self.shapes.append(Rectangle(x=x, y=y, width=width, height=height, style="frame"))

    def text(self, x: int, y: int, text: str, style: str = "") -> None:
        """A line of text; the style is one or more of the classes of STYLE."""
        self._reach(y + 5)
        self.shapes.append(Text(x=x, y=y, text=text, style=style))

    def arrow(self, path: str, style: str = "line") -> None:
        """An arrow along a path in SVG's own notation."""
        self.shapes.append(Arrow(path=path, style=style))

    def svg(self) -> str:
        """A file's content."""
        return self._element("", f"  <style>{STYLE}\n  </style>") + "\n"

    def inline(self, prefix: str) -> str:
        """The element for a page that has styles of its own for STYLE's classes.

        `prefix` tells the ids in it from those of other pictures on the page.
        """
        return self._element(prefix)

    def _element(self, prefix: str, *styles: str) -> str:
        markers = [MARKER.format(id=prefix + colour, colour=colour) for colour in HEADS.values()]
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height + 10}"'
            f' width="{self.width}" role="img" aria-labelledby="{prefix}title">',
            f'  <title id="{prefix}title">{escape(self.description)}</title>',
            *styles,
            f"  <defs>{''.join(markers)}</defs>",
            *(f"  {shape.svg(prefix)}" for shape in self.shapes),
            "</svg>",
        ]
        return "\n".join(lines)

    def _reach(self, y: int) -> None:
        self.height = max(self.height, y)
