"""What a learning rule sends where: forward on the left, backward on the right, as it is observed.

The rule runs once on random tokens in the model that params.yaml chooses, with its initial weights,
in double precision, so the picture is the same on every machine. See `evaluation.signals`.
"""

import textwrap

import torch

from lmlab.core import registry
from lmlab.core.errors import UserError
from lmlab.core.params import Tree
from lmlab.core.registry import Choice
from lmlab.evaluation.signals import ABOVE, NOTHING, Signals, Unit, signals
from lmlab.experiments import catalogue
from lmlab.experiments.drawing.svg import Picture
from lmlab.experiments.wording import quantity
from lmlab.model import noise
from lmlab.model.models import base as models
from lmlab.training.outline import refuse_endless, without_storage

WIDTH, LEFT, BOX, HEIGHT, ROW = 700, 190, 260, 78, 122
SEQUENCES, TOKENS, VOCABULARY = 4, 16, 64
"""Of the random batch."""
EXACT = 0.999999
"""From this cosine on a signal is drawn as the gradient itself."""
MOST_PARAMETERS = 20_000_000
"""Of a model that is run for a drawing."""
CHARACTERS = 106
"""In a line of text."""


def draw(tree: Tree, name: str) -> Picture:
    """The signals of a rule, with its options from params.yaml. Raises UserError where it does not
    work with the model.
    """
    choice = registry.choose(tree, "models", tree["train"]["model"], "train.model")
    _refuse_large(choice)
    rule_choice = registry.choose(tree, "learning_rules", name, "train.learning_rule")
    with noise.forked(seed=0):
        model = models.build(choice, VOCABULARY, TOKENS).double()
        rule = rule_choice.build(model).double()
        tokens = torch.randint(VOCABULARY, (SEQUENCES, TOKENS + 1))
        seen = signals(rule, model, tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())
    return _drawn(seen, name, choice.name)


def _refuse_large(choice: Choice) -> None:
    """Raise UserError for a model that takes long to run, as it must to be watched."""
    refuse_endless(choice, VOCABULARY, TOKENS)
    with without_storage():
        count = models.parameter_count(models.build(choice, VOCABULARY, TOKENS))
    if count > MOST_PARAMETERS:
        raise UserError(
            f"lmlab draw rule: to watch the rule at work the model is run, and {count:,} parameters"
            f" are too many for that; set models.{choice.name} lower (at most {MOST_PARAMETERS:,})"
        )


def _drawn(seen: Signals, name: str, model: str) -> Picture:
    title = f"What the learning rule {name} sends where in the model {model}"
    picture = Picture(title, WIDTH)
    picture.text(20, 24, name.replace("_", " "), "title start")
    y = 30
    summary = catalogue.parts()["learning_rules"].get(name, "")
    for line in [*textwrap.wrap(summary, CHARACTERS), _passes(seen, model)]:
        y += 18
        picture.text(20, y, line, "small start")
    y += 24
    picture.box(LEFT, y, BOX, 34, "tokens")
    y += 34
    for number, unit in enumerate(seen.units):
        top = y + ROW - HEIGHT
        picture.arrow(f"M{LEFT + 60} {y}V{top - 1}")
        if number and seen.units[number - 1].source == ABOVE:
            _backward(picture, seen.units[number - 1], top, y)
        picture.box(LEFT, top, BOX, HEIGHT, unit.name, _parameters(unit), _weights(unit))
        if unit.source != ABOVE:
            _beside(picture, unit, top + HEIGHT - 14)
        y = top + HEIGHT
    top = y + ROW - HEIGHT
    picture.arrow(f"M{LEFT + 60} {y}V{top - 1}")
    if seen.units[-1].source == ABOVE:
        _backward(picture, seen.units[-1], top, y)
    picture.box(LEFT, top, BOX, 34, "loss")
    _legend(picture, top + 64)
    return picture


def _passes(seen: Signals, model: str) -> str:
    """How often the model runs, and what the rule keeps."""
    count = sum(_size(shape) for shape in seen.own.values())
    own = f"; {count:,} numbers of its own" if count else ""
    passes = (
        "1 forward pass" if seen.forward_passes == 1 else f"{seen.forward_passes} forward passes"
    )
    return f"Observed in one step of {model.replace('_', ' ')}: {passes}{own}."


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _parameters(unit: Unit) -> str:
    return quantity(unit.parameters, "parameter")


def _weights(unit: Unit) -> str:
    """What the unit's own weights are given."""
    if unit.weights is None:
        return "weights: nothing, they stay"
    if unit.weights >= EXACT:
        return "weights: their gradient"
    return f"weights: cosine {_number(unit.weights)} with their gradient"


def _backward(picture: Picture, unit: Unit, bottom: int, top: int) -> None:
    """The signal that comes to a unit from the one above it (below it on the page)."""
    is_exact = unit.signal is not None and unit.signal >= EXACT
    picture.arrow(f"M{LEFT + BOX - 60} {bottom}V{top + 1}", "true" if is_exact else "replaced")
    if not is_exact and unit.signal is not None:
        label = f"cosine {_number(unit.signal)}"
        picture.text(LEFT + BOX - 48, (top + bottom) // 2 + 4, label, "small start")


def _beside(picture: Picture, unit: Unit, y: int) -> None:
    """A unit to which nothing comes from the one above it."""
    x = LEFT + BOX
    if unit.source == NOTHING:
        picture.text(x + 20, y - 12, "nothing comes back", "small start")
        return
    is_exact = unit.signal is not None and unit.signal >= EXACT
    picture.arrow(f"M{x + 60} {y}H{x + 1}", "true" if is_exact else "replaced")
    picture.text(x + 68, y - 4, "a signal of its own", "small start")
    if unit.signal is not None and not is_exact:
        picture.text(x + 68, y + 12, f"cosine {_number(unit.signal)}", "small start")
    elif is_exact:
        picture.text(x + 68, y + 12, "equal to the gradient", "small start")


def _number(value: float) -> str:
    """With two decimals, or four where two would say 1; never minus zero."""
    decimals = 4 if value >= 0.995 else 2
    return f"{round(value, decimals) + 0.0:.{decimals}f}"


def _legend(picture: Picture, y: int) -> None:
    entries = {"line": "forward", "true": "the gradient", "replaced": "another signal"}
    x = 20
    for style, words in entries.items():
        picture.arrow(f"M{x} {y - 4}h40", style)
        picture.text(x + 50, y, words, "small start")
        x += 160
    picture.text(x, y, "cosines: with backpropagation's", "small start")
