"""A model: its layers, their parameters and the places between them.

The model runs once, so what is drawn is what the code does, for any model. Blocks that are alike
are drawn once, and layers that do not read one another side by side.
"""

import re
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.experiments.drawing.svg import Picture
from lmlab.experiments.wording import quantity
from lmlab.model import places
from lmlab.model.layers.attention.base import Attention
from lmlab.model.layers.position.base import Position
from lmlab.model.models import base as models
from lmlab.model.models.base import LanguageModel

WIDTH, LEFT, BOX, GAP = 700, 90, 270, 40
MIDDLE, BESIDE = LEFT + BOX // 2, LEFT + BOX + 14
"""Where the stream runs, and where words stand beside a box."""
HEADING = 72
"""The height of what stands above a block's first layer."""
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
    position: Position | None
    """The position encoding that acts in it."""
    places: list[str] = field(default_factory=list)
    """Its places with the shapes of what flows there."""
    after: str = ""
    """The place of the stream behind it, with its shape."""
    joined_by: str = ""
    """What adds it to the stream, where that is a module."""

    @property
    def details(self) -> list[str]:
        """The small lines in its box."""
        lines = [quantity(self.parameters, "parameter")]
        if self.position is not None:
            lines.append(f"{_part(self.position)} positions")
        if self.joined_by:
            lines.append(self.joined_by)
        return lines

    @property
    def height(self) -> int:
        """Of its box."""
        return 34 + 16 * len(self.details)


class Run:
    """What is seen in one run of a model."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self._read: dict[str, list[Tensor]] = {}
        self._written: dict[str, list[Tensor]] = {}
        tokens = torch.zeros(SEQUENCES, TOKENS, dtype=torch.long, device=_device(model))
        with torch.enable_grad(), places.record(model) as states, ExitStack() as hooks:
            for number, block in enumerate(model.blocks):
                for name, child in block.named_children():
                    for part in child if isinstance(child, nn.ModuleList) else [child]:
                        note = self._noted(f"blocks.{number}.{name}")
                        hooks.callback(part.register_forward_hook(note).remove)
            model(tokens)
        self.shapes = {place: _shape(state) for place, state in states.items()}
        """Of what flows at every place, in words."""

    def _noted(self, name: str) -> Any:
        def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            self._read.setdefault(name, []).extend(_tensors(inputs))
            self._written.setdefault(name, []).extend(_tensors(output))

        return note

    def reads(self, name: str, other: str) -> bool:
        """Whether what flows into one layer comes from another, both by their names."""
        outputs = [each for each in self._written.get(other, []) if each.requires_grad]
        inputs = [each for each in self._read.get(name, []) if each.requires_grad]
        for each in inputs:
            found = torch.autograd.grad(each.sum(), outputs, retain_graph=True, allow_unused=True)
            if any(gradient is not None for gradient in found):
                return True
        return False


def _tensors(values: Any) -> list[Tensor]:
    """The tensors of floating point among a module's inputs or outputs."""
    if isinstance(values, Tensor):
        return [values] if values.is_floating_point() else []
    return [each for value in values for each in _tensors(value)] if _is_list(values) else []


def _is_list(values: Any) -> bool:
    return isinstance(values, list | tuple)


def drawn(model: LanguageModel) -> Picture:
    """A model in evaluation mode, with or without storage (on the device `meta`)."""
    run = Run(model)
    name = model.choice.name
    count = quantity(models.parameter_count(model), "parameter")
    picture = Picture(description=f"The model {name} with {count}", width=WIDTH)
    picture.text(20, 24, f"{name.replace('_', ' ')}: {count}", "title start")
    picture.box(LEFT, 44, BOX, 34, f"token ids below {model.vocabulary_size:,}")
    before, after = _ends(model)
    y = _end(picture, 78, model, before)
    picture.text(MIDDLE + 12, y + 24, f"embedding  {run.shapes['embedding']}", "code start")
    leaves = y
    for first, last in _runs(model):
        leaves, y = _block(picture, leaves, y + GAP, run, first, last)
    if after:
        y = leaves = _end(picture, leaves, model, after, y)
    _arrow(picture, leaves, y + GAP)
    picture.box(LEFT, y + GAP, BOX, 34, f"logits  {run.shapes['logits']}")
    legend = (
        "B sequences, T tokens, numbers are widths; in code letters: places to record and change"
    )
    picture.text(20, y + GAP + 64, legend, "small start")
    return picture


def _device(model: LanguageModel) -> torch.device:
    return next(model.parameters()).device


def _shape(state: Tensor) -> str:
    lengths = {SEQUENCES: "B", TOKENS: "T"}
    return " ".join(lengths.get(length, str(length)) for length in state.shape)


def _arrow(picture: Picture, top: int, bottom: int) -> None:
    """The stream from one box down to another."""
    picture.arrow(f"M{MIDDLE} {top}V{bottom - 1}")


def _ends(model: LanguageModel) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """The modules before the blocks and those behind them, also of a model within the model."""
    before: dict[str, nn.Module] = {}
    after: dict[str, nn.Module] = {}
    end = before
    for name, child in model.named_children():
        if name == "blocks":
            end = after
        elif isinstance(child, LanguageModel):
            inner_before, inner_after = _ends(child)
            before |= inner_before
            after |= inner_after
        elif models.parameter_count(child) or (
            isinstance(child, Position) and _acts_on(child, model) == "embedding"
        ):
            end[name] = child
    return before, after


def _end(
    picture: Picture, leaves: int, model: LanguageModel, modules: dict[str, nn.Module], y: int = 0
) -> int:
    """Modules in a column, one reading the other, from where the stream leaves what is above.

    They begin below `y`, if that is lower. Returns the lower edge of the last.
    """
    y = max(y, leaves)
    for name, module in modules.items():
        _arrow(picture, leaves, y + GAP)
        title = "output head" if module is model.readout else _title(name, module)
        parameters = quantity(models.parameter_count(module), "parameter")
        picture.box(LEFT, y + GAP, BOX, 50, title, parameters)
        y += GAP + 50
        leaves = y
    return y


def _acts_on(position: Position, model: LanguageModel) -> str:
    """Where a model's position encoding acts: `embedding`, `attention`, or nowhere (empty)."""
    device = _device(model)
    x_BTD = torch.zeros(1, 1, model.width, device=device)
    if _acts_in_attention(position, device):
        return "attention"
    return "embedding" if position.embed(x_BTD, 0) is not x_BTD else ""


def _acts_in_attention(position: Position, device: torch.device) -> bool:
    x_BHTK = torch.zeros(1, 1, 1, 2, device=device)
    return position.bias(1, 1, 1) is not None or position.rotate(x_BHTK, 0) is not x_BHTK


def _runs(model: LanguageModel) -> list[tuple[int, int]]:
    """The first and last numbers of blocks in a row that are alike."""
    runs: list[tuple[int, int]] = []
    descriptions = [f"{block} {_lookback(block)}" for block in model.blocks]
    for number, description in enumerate(descriptions):
        if number and description == descriptions[number - 1]:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _lookback(block: nn.Module) -> str:
    """How far a block reads, where that is limited."""
    lookback = getattr(block, "lookback", None)
    if lookback is None:
        return ""
    return f"reads {quantity(lookback, 'position')} back" if lookback else "reads no other position"


def _block(
    picture: Picture, leaves: int, top: int, run: Run, first: int, last: int
) -> tuple[int, int]:
    """One of the blocks from `first` to `last`, in a frame.

    `leaves` is where the stream leaves what is above. Returns where it leaves the last layer, and
    the frame's lower edge.
    """
    prefix, block = f"blocks.{first}.", run.model.blocks[first]
    is_residual = run.model.readout is not None
    rows = _rows(_layers(block, prefix, run), prefix, run)
    count = last - first + 1
    number = f"block {first}" if count == 1 else f"blocks {first} to {last}, one of {count}"
    total = quantity(models.parameter_count(block), "parameter")
    picture.text(BESIDE, top + 18, f"{number}: {total}", "small start")
    picture.text(BESIDE, top + 35, _lookback(block), "small start")
    picture.text(BESIDE, top + 54, f"input  {run.shapes[prefix + 'input']}", "code start")
    y = top + HEADING
    start = y - GAP  # of the stretch of the stream to which a sum is added
    for row in rows:
        _arrow(picture, leaves, y)
        y = leaves = _row(picture, y, row)
        after = row[-1].after
        if after or row is rows[-1]:
            if is_residual:
                _bypass(picture, start + 8, y + 8)
            words = after or f"output  {run.shapes[prefix + 'output']}"
            picture.text(BESIDE, y + 24, words, "code start")
            start = y + 24
            y += GAP + 24
        else:
            y += GAP
    bottom = leaves + 34
    picture.frame(20, top, WIDTH - 40, bottom - top)
    return leaves, bottom


def _layers(block: nn.Module, prefix: str, run: Run) -> list[Layer]:
    """The modules of a block that have parameters, with what flows in and behind them."""
    layers: list[Layer] = []
    by_name: dict[str, Layer] = {}
    own = [name for name in run.shapes if name.startswith(prefix)]
    for name, child in block.named_children():
        if isinstance(child, places.Place):
            place = f"{name}  {run.shapes.get(prefix + name, '')}"
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
        position = child.position if isinstance(child, Attention) else None
        if position is not None and not _acts_in_attention(position, _device(run.model)):
            position = None
        layer = by_name[name] = Layer(name, _title(name, child), parameters, position)
        inner = f"{prefix}{name}."
        layer.places = [
            f"{place[len(inner) :]}  {run.shapes[place]}"
            for place in own
            if place.startswith(inner)
        ]
        layers.append(layer)
    return layers


def _rows(layers: list[Layer], prefix: str, run: Run) -> list[list[Layer]]:
    """The layers of a block from its input on, those in a row that read none of each other."""
    rows: list[list[Layer]] = []
    for layer in layers:
        name = prefix + layer.name
        last = rows[-1] if rows else []
        follows = any(other.after or run.reads(name, prefix + other.name) for other in last)
        if follows or not last:
            rows.append([layer])
        else:
            last.append(layer)
    return rows


def _row(picture: Picture, top: int, row: list[Layer]) -> int:
    """Layers side by side, at whose first the stream arrives; returns their lower edge."""
    gap, count = 20, len(row)
    width = BOX if count == 1 else (WIDTH - LEFT - 40 - gap * (count - 1)) // count
    height = max(layer.height for layer in row)
    for column, layer in enumerate(row):
        left = LEFT + column * (width + gap)
        # beside a layer that stands alone there is room for its places
        own_places = layer.places if count > 1 else []
        picture.box(left, top, width, height, layer.title, *layer.details, *own_places)
        if column:
            middle = left + width // 2
            picture.arrow(f"M{MIDDLE} {top - 10}H{middle}V{top - 1}")
            picture.arrow(f"M{middle} {top + height}v8H{MIDDLE + 3}")
    if count > 1:
        return top + height
    for line, place in enumerate(row[0].places):
        picture.text(BESIDE, top + 20 + 17 * line, place, "code start")
    return top + max(height, 17 * len(row[0].places) + 8)


def _title(name: str, module: nn.Module) -> str:
    """A module's name in the model, with its part where that says more."""
    part = _part(module)
    words = name.replace("_", " ")
    if isinstance(module, nn.ModuleList):
        return f"{len(module)} {words}"
    return words if part in (words, "module") else f"{words}: {part}"


def _part(module: nn.Module) -> str:
    """The part's name as in params.yaml, or else the class's, in words."""
    cls = type(module)
    file = cls.__module__.rpartition(".")[2]
    if file.replace("_", "") == cls.__name__.lower():
        return file.replace("_", " ")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__).lower()


def _bypass(picture: Picture, start: int, end: int) -> None:
    """The residual stream past what stands between two heights, and the sum at its end."""
    left = LEFT - 30
    picture.arrow(
        f"M{MIDDLE} {start}H{left + 10}a10 10 0 0 0 -10 10V{end + 4}a10 10 0 0 0 10 10H{MIDDLE - 3}"
    )
