"""A model: its layers, their parameters and the places between them.

The model runs once, so what is drawn is what the code does, for any model. Blocks that are alike
are drawn once.
"""

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lmlab.experiments.drawing.svg import Picture
from lmlab.experiments.wording import quantity
from lmlab.model import places
from lmlab.model.layers.position.base import Position
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel

WIDTH, LEFT, BOX, GAP = 660, 90, 270, 40
RESIDUAL = "_residual"
"""How the name of what adds a layer to the stream ends."""
SEQUENCES, TOKENS = 3, 7
"""Of the batch that runs: lengths that nothing else has, to be recognised in shapes."""


@dataclass
class Layer:
    """A module directly within a block or the model."""

    name: str
    """In its block."""
    title: str
    parameters: int
    places: list[str] = field(default_factory=list)
    """Its places with the shapes of what flows there."""
    after: str = ""
    """The place of the stream behind it, with its shape."""
    joined_by: str = ""
    """What adds it to the stream, where that is a module."""


@torch.no_grad()
def drawn(model: LanguageModel) -> Picture:
    """A model in evaluation mode, with or without storage (on the device `meta`)."""
    device = next(model.parameters()).device
    with places.record(model) as states:
        model(torch.zeros(SEQUENCES, TOKENS, dtype=torch.long, device=device))
    shapes = {place: _shape(state) for place, state in states.items()}
    name = model.choice.name
    count = quantity(models.parameter_count(model), "parameter")
    picture = Picture(description=f"The model {name} with {count}", width=WIDTH)
    picture.text(20, 24, f"{name.replace('_', ' ')}: {count}", "title start")
    picture.box(LEFT, 44, BOX, 34, f"token ids below {model.vocabulary_size:,}")
    _, y = _ends(picture, 78, 78, model, is_start=True)
    picture.text(LEFT + BOX // 2 + 12, y + 24, f"embedding  {shapes['embedding']}", "code start")
    leaves = y
    for first, last in _runs(model):
        _arrow(picture, leaves, y + GAP)
        leaves, y = _block(picture, y + GAP, model, first, last, shapes)
    leaves, y = _ends(picture, leaves, y, model, is_start=False)
    _arrow(picture, leaves, y + GAP)
    picture.box(LEFT, y + GAP, BOX, 34, f"logits  {shapes['logits']}")
    legend = "B sequences, T tokens, numbers are widths; grey: places to record and change"
    picture.text(20, y + GAP + 64, legend, "small start")
    return picture


def _shape(state: Tensor) -> str:
    lengths = {SEQUENCES: "B", TOKENS: "T"}
    return " ".join(lengths.get(length, str(length)) for length in state.shape)


def _arrow(picture: Picture, top: int, bottom: int) -> None:
    """The stream from one box down to another."""
    picture.arrow(f"M{LEFT + BOX // 2} {top}V{bottom - 1}")


def _ends(
    picture: Picture, leaves: int, y: int, model: LanguageModel, is_start: bool
) -> tuple[int, int]:
    """The modules before the blocks, or those behind them, below y.

    `leaves` is where the stream leaves what is above. Returns both for what comes next.
    """
    children = dict(model.named_children())
    blocks = list(children).index("blocks")
    of_end = list(children)[:blocks] if is_start else list(children)[blocks + 1 :]
    for name in of_end:
        child = children[name]
        parameters = models.parameter_count(child)
        if parameters or (isinstance(child, Position) and _acts_on(child, model) == "embedding"):
            _arrow(picture, leaves, y + GAP)
            y += GAP
            title = "output head" if child is model.readout else _title(name, child)
            picture.box(LEFT, y, BOX, 50, title, quantity(parameters, "parameter"))
            y += 50
            leaves = y
    return leaves, y


def _acts_on(position: Position, model: LanguageModel) -> str:
    """Where a model's position encoding acts: `embedding`, `attention`, or nowhere (empty)."""
    device, width = next(model.parameters()).device, model.width
    x_BTD, x_BHTK = torch.zeros(1, 1, width, device=device), torch.zeros(1, 1, 1, 2, device=device)
    if position.bias(1, 1, 1) is not None or position.rotate(x_BHTK, 0) is not x_BHTK:
        return "attention"
    return "embedding" if position.embed(x_BTD, 0) is not x_BTD else ""


def _runs(model: LanguageModel) -> list[tuple[int, int]]:
    """The first and last numbers of blocks in a row that are alike."""
    runs: list[tuple[int, int]] = []
    descriptions = [repr(block) for block in model.blocks]
    for number, description in enumerate(descriptions):
        if number and description == descriptions[number - 1]:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _block(
    picture: Picture, y: int, model: LanguageModel, first: int, last: int, shapes: dict[str, str]
) -> tuple[int, int]:
    """One of the blocks from `first` to `last`, in a frame.

    Returns where the stream leaves its last layer, and the frame's lower edge.
    """
    layers = _layers(model.blocks[first], f"blocks.{first}.", shapes)
    count = last - first + 1
    number = f"block {first}" if count == 1 else f"blocks {first} to {last}, one of {count}"
    total = quantity(models.parameter_count(model.blocks[first]), "parameter")
    position = next((each for each in model.children() if isinstance(each, Position)), None)
    top = y
    y += 26
    start = y
    for layer in layers:
        picture.arrow(f"M{LEFT + BOX // 2} {y}v{GAP - 1}")
        y += GAP
        details = [quantity(layer.parameters, "parameter")]
        if layer.name == "attention" and position and _acts_on(position, model) == "attention":
            details.append(f"{_part(position)} positions")
        if layer.joined_by:
            details.append(layer.joined_by)
        height = 34 + 16 * len(details)
        picture.box(LEFT, y, BOX, height, layer.title, *details)
        for line, place in enumerate(layer.places):
            picture.text(LEFT + BOX + 14, y + 20 + 17 * line, place, "code start")
        y += max(height, 17 * len(layer.places) + 8)
        if layer.after:
            if model.readout is not None:
                _bypass(picture, start + 8, y + 8)
            picture.arrow(f"M{LEFT + BOX // 2} {y}v{GAP - 1}")
            picture.text(LEFT + BOX + 14, y + 24, layer.after, "code start")
            y += GAP
            start = y
    end = y
    output = f"output  {shapes[f'blocks.{first}.output']}"
    if not layers or not layers[-1].after:
        if model.readout is not None:
            _bypass(picture, start + 8, y + 8)
        picture.text(LEFT + BOX + 14, y + 24, output, "code start")
        end = y
        y += 10
    picture.frame(20, top, WIDTH - 40, y + 24 - top, f"{number}: {total}")
    return end, y + 24


def _layers(block: nn.Module, prefix: str, shapes: dict[str, str]) -> list[Layer]:
    """The modules of a block that have parameters, with what flows in and behind them."""
    layers: list[Layer] = []
    by_name: dict[str, Layer] = {}
    own = [name for name in shapes if name.startswith(prefix)]
    for name, child in block.named_children():
        if isinstance(child, places.Place):
            place = f"{name}  {shapes.get(prefix + name, '')}"
            if name.startswith("after_"):
                layers[-1].after = place
            elif layers:
                layers[-1].places.append(place)
            continue
        parameters = models.parameter_count(child)
        if not parameters:
            continue
        if name.endswith(RESIDUAL):
            layer = by_name[name.removesuffix(RESIDUAL)]
            count = quantity(parameters, "parameter")
            layer.joined_by = f"{_part(child)} residual and norm: {count}"
            continue
        layer = by_name[name] = Layer(name, _title(name, child), parameters)
        inner = f"{prefix}{name}."
        layer.places = [
            f"{place[len(inner) :]}  {shapes[place]}" for place in own if place.startswith(inner)
        ]
        layers.append(layer)
    return layers


def _title(name: str, module: nn.Module) -> str:
    """A module's name in the model, with its part where that says more."""
    part = _part(module)
    words = name.replace("_", " ")
    return words if part in (words, "module list", "module") else f"{words}: {part}"


def _part(module: nn.Module) -> str:
    """The part's name as in params.yaml, or else the class's, in words."""
    cls = type(module)
    file = cls.__module__.rpartition(".")[2]
    if file.replace("_", "") == cls.__name__.lower():
        return file.replace("_", " ")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__).lower()


def _bypass(picture: Picture, start: int, end: int) -> None:
    """The residual stream past what stands between two heights, and the sum at its end."""
    middle, left = LEFT + BOX // 2, LEFT - 30
    picture.arrow(
        f"M{middle} {start}H{left + 10}a10 10 0 0 0 -10 10V{end + 4}a10 10 0 0 0 10 10H{middle - 3}"
    )
