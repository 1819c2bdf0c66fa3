"""Sections on the model that was trained and the rule that trained it: what the stage `probe` drew
of them, and the model's sizes from model.json.
"""

from pydantic import BaseModel, ValidationError

from lmlab.experiments.compare.run import Run
from lmlab.experiments.drawing.svg import Picture
from lmlab.experiments.report.elements import Drawing, Element, Section, Table
from lmlab.experiments.report.numbers import words
from lmlab.experiments.report.shown import Shown, read_json

PICTURES = "data/probes/pictures.json"


class Part(BaseModel):
    """A part as model.json records it."""

    name: str


class Size(BaseModel):
    """What model.json says of the model's size."""

    width: int
    blocks: int
    batch: int
    forward_flops_per_token: float | None = None


class ModelRecord(BaseModel):
    """What is shown of model.json."""

    model: Part
    vocabulary_size: int
    context: int
    parameters: int
    precision: str = ""
    size: Size


def model_section(shown: Shown) -> Section | None:
    """Each variant's model: a picture, and its sizes; one for all where all are the same."""
    panels: dict[int, list[Element]] = {}
    for number, (_, run) in enumerate(shown.first_runs()):
        content = [*_picture(run, "model"), *_facts(run)]
        if content:
            panels[number] = content
    intro = (
        "From tokens to logits, with the places where states can be recorded and changed: B"
        " sequences, T tokens; other numbers are widths."
    )
    return _section("Model", intro, panels, shown)


def rule_section(shown: Shown) -> Section | None:
    """What each variant's learning rule sent where, as it was observed."""
    panels: dict[int, list[Element]] = {}
    for number, (_, run) in enumerate(shown.first_runs()):
        picture = _picture(run, "rule")
        if picture:
            panels[number] = picture
    intro = (
        "What the rule sent where in one step, without interventions: forward on the left,"
        " backward on the right, as it was observed. A cosine of 1 is the direction of"
        " backpropagation, 0 a direction that has nothing to do with it."
    )
    return _section("Learning rule", intro, panels, shown)


def _section(
    heading: str, intro: str, panels: dict[int, list[Element]], shown: Shown
) -> Section | None:
    """A panel for each variant, or one for all where all are the same."""
    if not panels:
        return None
    distinct = {repr(content) for content in panels.values()}
    if len(distinct) == 1 and len(panels) == len(shown.variants):
        number, content = next(iter(panels.items()))
        panels = {number: content}
    return Section(heading, intro, [shown.choice(panels)])


def _picture(run: Run, name: str) -> list[Element]:
    """The run's picture of this name; none where it has none, or one of other code."""
    drawn = read_json(run, PICTURES)
    try:
        return [Drawing(Picture.model_validate(drawn[name]))] if drawn else []
    except (ValidationError, KeyError, TypeError):
        return []


def _facts(run: Run) -> list[Element]:
    """The model's sizes; nothing where model.json is missing or of other code."""
    content = run.open("data/model/model.json")
    try:
        record = ModelRecord.model_validate_json(content) if content else None
    except ValidationError:
        record = None
    if record is None:
        return []
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
    return [Table(["", words(record.model.name)], [row for row in rows if row[1]])]
