"""A model as params.yaml configures it: its layers, their parameters and the places between them.

The model is built and run once without storage (on torch's meta device), so what is drawn is what
the code does, for any model. Blocks that are alike are drawn once.
"""

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lmlab.core import registry
from lmlab.core.params import Tree
from lmlab.experiments.drawing.svg import Picture
from lmlab.experiments.wording import quantity
from lmlab.model import places
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel
from lmlab.training.outline import refuse_endless, without_storage

WIDTH, LEFT, BOX, GAP = 660, 90, 270, 40
RESIDUAL = "_residual"
"""How the name of what adds a layer to the stream ends."""
SEQUENCES, TOKENS = 3, 7
"""Of the batch that runs: lengths that nothing else has, to be recognised in shapes."""


@dataclass
class Layer:
    """A module directly within a block or the model."""

    title: str
    parameters: int
    places: list[str] = field(default_factory=list)
    """Its places with the shapes of what flows there."""
    after: str = ""
    """The place of the stream behind it, with its shape."""
    joined_by: str = ""
    """What adds it to the stream, where that is a module."""


def draw(tree: Tree, name: str, vocabulary_size: int) -> Picture:
    """The model `name`, with its options from params.yaml, for a vocabulary."""
    choice = registry.choose(tree, "models", name, "train.model")
    refuse_endless(choice, vocabulary_size, tree["train"]["context"])
    with without_storage(), torch.no_grad():
        model = models.build(choice, vocabulary_size, tree["train"]["context"]).eval()
        tokens_BT = torch.zeros(SEQUENCES, TOKENS, dtype=torch.long)
        with places.record(model) as states:
            model(tokens_BT)
    shapes = {place: _shape(state) for place, state in states.items()}
    count = quantity(models.parameter_count(model), "parameter")
    picture = Picture(f"The model {name} with {count}", WIDTH)
    picture.text(20, 24, f"{name.replace('_', ' ')}: {count}", "title start")
    picture.box(LEFT, 44, BOX, 34, f"token ids below {vocabulary_size:,}")
    y = _ends(picture, 78, model, is_start=True)
    y = _labelled_arrow(picture, y, f"embedding  {shapes.get('embedding', '')}")
    for first, last in _runs(model):
        y = _block(picture, y, model, first, last, shapes)
    y = _ends(picture, y - GAP, model, is_start=False)
    picture.arrow(f"M{LEFT + BOX // 2} {y}v{GAP - 1}")
    picture.box(LEFT, y + GAP, BOX, 34, f"logits  {shapes['logits']}")
    legend = "B sequences, T tokens, numbers are widths; grey: places to record and change"
    picture.text(20, y + GAP + 64, legend, "small start")
    return picture


def _shape(state: Tensor) -> str:
    lengths = {SEQUENCES: "B", TOKENS: "T"}
    return " ".join(lengths.get(length, str(length)) for length in state.shape)


def _ends(picture: Picture, y: int, model: LanguageModel, is_start: bool) -> int:
    """The modules before the blocks, or those behind them."""
    outside = [(name, child) for name, child in model.named_children() if name != "blocks"]
    index = [name for name, _ in model.named_children()].index("blocks")
    order = [name for name, _ in model.named_children()]
    for name, child in outside:
        parameters = models.parameter_count(child)
        if (order.index(name) < index) == is_start and (parameters or name == "position"):
            picture.arrow(f"M{LEFT + BOX // 2} {y}v{GAP - 1}")
            y += GAP
            title = "output head" if child is model.readout else _title(name, child)
            picture.box(LEFT, y, BOX, 50, title, quantity(parameters, "parameter"))
            y += 50
    return y


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
) -> int:
    """One of the blocks from `first` to `last`, in a frame."""
    layers = _layers(model.blocks[first], f"blocks.{first}.", shapes)
    count = last - first + 1
    number = f"block {first}" if count == 1 else f"blocks {first} to {last}, one of {count}"
    total = quantity(models.parameter_count(model.blocks[first]), "parameter")
    top = y
    y += 26
    start = y
    for layer in layers:
        picture.arrow(f"M{LEFT + BOX // 2} {y}v{GAP - 1}")
        y += GAP
        details = [quantity(layer.parameters, "parameter")]
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
    y += 24
    picture.arrow(f"M{LEFT + BOX // 2} {end}V{y + GAP - 1}")
    return y + GAP


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
        layer = by_name[name] = Layer(_title(name, child), parameters)
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


def _labelled_arrow(picture: Picture, y: int, label: str) -> int:
    picture.arrow(f"M{LEFT + BOX // 2} {y}v{GAP - 1}")
    picture.text(LEFT + BOX // 2 + 12, y + 24, label, "code start")
    return y + GAP


def _bypass(picture: Picture, start: int, end: int) -> None:
    """The residual stream past what stands between two heights, and the sum at its end."""
    middle, left = LEFT + BOX // 2, LEFT - 30
    picture.arrow(
        f"M{middle} {start}H{left + 10}a10 10 0 0 0 -10 10V{end + 4}a10 10 0 0 0 10 10H{middle - 3}"
    )
