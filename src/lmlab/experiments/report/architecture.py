"""The section on the model that was trained: a drawing of its parts, from model.json alone.

Which parts there are, how many parameters each has and how wide the model is stands in data/model/
model.json. How a model of a kind this module has never heard of puts its parts together does not;
then the parts are drawn in the order in which the model holds them.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from lmlab.experiments.compare.run import Run
from lmlab.experiments.report.elements import Arrow, Box, Drawing, Element, Pair, Section, Table
from lmlab.experiments.report.numbers import product, words
from lmlab.experiments.report.shown import Shown
from lmlab.experiments.wording import quantity

BEFORE = ("embedding", "position", "unigram")
"""The parts of a model that stand before its blocks."""
AFTER = ("final_norm", "ends", "readout")
"""Those that stand behind them."""
TITLES = {"readout": "output head", "ends": "final norm and output head"}
RESIDUAL = "_residual"
"""How the name of what joins a part of a block to the stream ends."""
BOX, LINE, ARROW, ARROW_WITH_LABEL, FRAME_TITLE, MARGIN = 30, 16, 24, 34, 22, 8
"""Heights in pixels: of a box without details, of each line of them, and so on."""


class Part(BaseModel):
    """A part as model.json records it."""

    name: str
    options: dict[str, Any] = {}
    inner: dict[str, "Part"] = {}


class Size(BaseModel):
    """What model.json says of the model's size."""

    width: int
    blocks: int
    batch: int
    parameters: dict[str, int]
    """By part; those of all blocks together."""
    forward_flops_per_token: float | None = None


class ModelRecord(BaseModel):
    """What the drawing needs of model.json."""

    model: Part
    vocabulary_size: int
    context: int
    parameters: int
    precision: str = ""
    size: Size


def model_section(shown: Shown) -> Section | None:
    """A drawing of each variant's model; one for all where all are the same."""
    records = {number: _record(run) for number, (_, run) in enumerate(shown.first_runs())}
    panels: dict[int, list[Element]] = {
        number: [Pair([_drawing(record), _facts(record)])]
        for number, record in records.items()
        if record
    }
    if not panels:
        return None
    distinct = {repr(content) for content in panels.values()}
    if len(distinct) == 1 and len(panels) == len(shown.variants):
        number, content = next(iter(panels.items()))
        panels = {number: content}
    intro = (
        "From tokens to logits: B windows in a batch, T tokens in a window, stream of width D,"
        " vocabulary of V ids. Residual connections are drawn where the model's record names them."
    )
    return Section("Model", intro, [shown.choice(panels)])


def _record(run: Run) -> ModelRecord | None:
    content = run.open("data/model/model.json")
    try:
        return ModelRecord.model_validate_json(content) if content else None
    except ValidationError:
        return None


def _facts(record: ModelRecord) -> Table:
    flops = record.size.forward_flops_per_token
    rows = [
        ["parameters", f"{record.parameters:,}"],
        ["FLOPs per token, forward", f"{flops:,.0f}" if flops else ""],
        ["context T, tokens", f"{record.context:,}"],
        ["batch B, windows", f"{record.size.batch:,}"],
        ["width D", f"{record.size.width:,}"],
        ["vocabulary V", f"{record.vocabulary_size:,}"],
        ["blocks", f"{record.size.blocks:,}"],
        ["precision in training", record.precision],
    ]
    return Table(["", words(record.model.name)], [row for row in rows if row[1]])


# --------------------------------------------------------------------------------------------------
# the drawing


class _Pen:
    """Boxes and arrows one below another."""

    def __init__(self) -> None:
        self.y = MARGIN
        self.boxes: list[Box] = []
        self.arrows: list[Arrow] = []
        self.bypasses: list[tuple[int, int]] = []

    def box(self, title: str, *details: str) -> None:
        height = BOX + LINE * len(details)
        self.boxes.append(Box(self.y, height, title, details))
        self.y += height

    def arrow(self, label: str = "") -> None:
        end = self.y + (ARROW_WITH_LABEL if label else ARROW)
        self.arrows.append(Arrow(self.y, end, label))
        self.y = end


def _drawing(record: ModelRecord) -> Drawing:
    size = record.size
    parts = _parts(record.model)
    before = [key for key in BEFORE if key in size.parameters]
    after = [key for key in AFTER if key in size.parameters]
    joins = [key for key in size.parameters if key.endswith(RESIDUAL)]
    in_blocks = [key for key in size.parameters if key not in (*before, *after, *joins)]
    pen = _Pen()
    window = (size.batch, record.context)
    stream = product("B", "T", "D")
    pen.box("token ids", f"{product('B', 'T')} = {product(*window)}")
    for key in before:
        pen.arrow()
        pen.box(_title(key, parts), *_details(key, record, parts))
    if "ends" in after:
        pen.arrow()
        pen.box("embedding", "parameters counted with the output head")
    pen.arrow(stream)
    top = pen.y
    pen.y += FRAME_TITLE
    for key in _in_order(in_blocks):
        start = pen.y
        pen.arrow()
        pen.box(_title(key, parts), *_details(key, record, parts))
        if f"{key}{RESIDUAL}" in joins:
            pen.arrow()
            pen.bypasses.append((start + MARGIN, pen.y - MARGIN))
    pen.y += MARGIN
    frame = (top, pen.y, _frame_title(record, parts, joins)) if in_blocks else None
    for number, key in enumerate(after):
        pen.arrow("" if number else stream)
        pen.box(_title(key, parts), *_details(key, record, parts))
    if "readout" not in size.parameters and record.model.options.get("tied"):
        pen.arrow()
        pen.box("output head", "the embedding's weights, transposed")
    pen.arrow()
    logits = product(*window, record.vocabulary_size)
    pen.box("logits", f"{product('B', 'T', 'V')} = {logits}")
    description = ", ".join(f"{box.title} ({'; '.join(box.details)})" for box in pen.boxes)
    return Drawing(
        pen.boxes,
        pen.arrows,
        pen.bypasses,
        frame,
        pen.y + MARGIN,
        f"The model, from its input to its output: {description}",
    )


def _parts(model: Part) -> dict[str, Part]:
    """The parts that a model is built from by the model's names for them, nested ones too."""
    parts: dict[str, Part] = {}
    for key, part in model.inner.items():
        parts.setdefault(key, part)
        for inner_key, inner_part in _parts(part).items():
            parts.setdefault(inner_key, inner_part)
    return parts


def _in_order(keys: Sequence[str]) -> Iterator[str]:
    """The parts of a block as the model holds them, a norm before what it is the norm of."""
    for key in keys:
        stem = key.removesuffix("_norm")
        is_norm_of_earlier = stem != key and keys.index(key) > _place(keys, stem)
        if not is_norm_of_earlier:
            own_norm = f"{key}_norm"
            if own_norm in keys and keys.index(own_norm) > keys.index(key):
                yield own_norm
            yield key


def _place(keys: Sequence[str], key: str) -> int:
    return keys.index(key) if key in keys else len(keys)


def _title(key: str, parts: dict[str, Part]) -> str:
    title = TITLES.get(key, words(key))
    return f"{title}: {words(parts[key].name)}" if key in parts else title


def _details(key: str, record: ModelRecord, parts: dict[str, Part]) -> list[str]:
    """How many parameters a part has, with the shapes of its matrices where they are certain."""
    count = record.size.parameters[key]
    share = count / max(1, sum(record.size.parameters.values()))
    shapes = _shapes(key, count, record, parts)
    return [*([shapes] if shapes else []), f"{count:,} parameters, {share:.1%}"]


def _shapes(key: str, count: int, record: ModelRecord, parts: dict[str, Part]) -> str:
    """A guess from the options that is shown only where it gives the number of parameters."""
    width, vocabulary = record.size.width, record.vocabulary_size
    if key == "embedding" and count == vocabulary * width:
        return product(vocabulary, width)
    if key == "readout" and count == width * vocabulary:
        return product(width, vocabulary)
    options = parts[key].options if key in parts else {}
    hidden = round(options.get("expansion") or 0) * width
    if hidden and count == 2 * hidden * width * record.size.blocks:
        return f"{width:,} → {hidden:,} → {width:,}"
    if key == "attention" and count == 4 * width * width * record.size.blocks:
        return f"4 of {product(width, width)}"
    return ""


def _frame_title(record: ModelRecord, parts: dict[str, Part], joins: Sequence[str]) -> str:
    """How often the frame is repeated, and how its parts are joined to the stream."""
    count = record.size.blocks
    title = quantity(count, "block")
    first, second = (record.model.inner.get(key) for key in ("first", "second"))
    if first and second:  # a hybrid
        return f"{title}: {words(first.name)} and {words(second.name)} in turn"
    if joins and "placement" in parts and "normalisation" in parts:
        title += f"; {words(parts['normalisation'].name)}, {words(parts['placement'].name)}-norm"
        if "residual" in parts:
            title += f", {words(parts['residual'].name)} residual"
    return title
