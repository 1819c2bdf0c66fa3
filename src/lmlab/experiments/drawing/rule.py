"""What a learning rule sends where: forward on the left, backward on the right, as it is observed
(see `evaluation.signals`).
"""

import inspect
import math
import textwrap

from lmlab.evaluation.signals import ABOVE, LOSS, NOTHING, RULE, ZERO, Signals, Unit
from lmlab.experiments.drawing.svg import Picture
from lmlab.experiments.wording import quantity
from lmlab.training.learning_rules.base import LearningRule

WIDTH, LEFT, BOX, HEIGHT, ROW = 700, 60, 310, 78, 122
EXACT = 0.999999
"""From this cosine on a signal is drawn as the gradient itself."""
CHARACTERS = 106
"""In a line of text."""


def drawn(rule: LearningRule, model: str, seen: Signals, when: str) -> Picture:
    """What a rule, without interventions, has been seen to do in a model of this name.

    `when` ends the sentence "Observed in one step of the model".
    """
    module = inspect.getmodule(rule)
    name = type(rule).__module__.rpartition(".")[2]
    title = f"What the learning rule {name} sends where in the model {model}"
    picture = Picture(description=title, width=WIDTH)
    picture.text(20, 24, name.replace("_", " "), "title start")
    y = 30
    summary = " ".join((inspect.getdoc(module) or "").split("\n\n")[0].split())
    observed = f"Observed in one step of the model {model.replace('_', ' ')} {when}:"
    for line in [*textwrap.wrap(summary, CHARACTERS), observed, _passes(seen)]:
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
        _beside(picture, unit, top + HEIGHT - 24)
        y = top + HEIGHT
    top = y + ROW - HEIGHT
    picture.arrow(f"M{LEFT + 60} {y}V{top - 1}")
    if seen.units[-1].source == ABOVE:
        _backward(picture, seen.units[-1], top, y)
    picture.box(LEFT, top, BOX, 34, "loss")
    _legend(picture, seen, top + 64)
    return picture


def _passes(seen: Signals) -> str:
    """How often the model runs, and what the rule keeps."""
    count = sum(math.prod(shape) for shape in seen.own.values())
    own = f"; {count:,} numbers of its own" if count else ""
    passes = (
        "1 forward pass" if seen.forward_passes == 1 else f"{seen.forward_passes} forward passes"
    )
    return f"{passes}{own}."


def _parameters(unit: Unit) -> str:
    return quantity(unit.parameters, "parameter")


def _weights(unit: Unit) -> str:
    """What the unit's own weights are given."""
    if unit.weights_given_zero:
        return "weights: zero in this step"
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
    """What comes to a unit otherwise than from the one above it."""
    x = LEFT + BOX
    if unit.source == NOTHING:
        picture.text(x + 20, y + 4, "nothing comes back", "small start")
        return
    if unit.source == ABOVE and not unit.more:
        return
    is_exact = unit.source != ABOVE and unit.signal is not None and unit.signal >= EXACT
    picture.arrow(f"M{x + 60} {y}H{x + 1}", "true" if is_exact else "replaced")
    for line, words in enumerate(_set_by_rule(unit, is_exact)):
        picture.text(x + 68, y + 4 + 16 * line, words, "small start")


def _set_by_rule(unit: Unit, is_exact: bool) -> list[str]:
    """The lines beside a signal, or a part of one, that the rule has put there."""
    if unit.source == ABOVE:
        return ["and more, set by the rule"]
    if unit.source == ZERO:
        return ["a signal that is zero in this step"]
    sources = {RULE: "", LOSS: ", from the loss"}
    lines = [f"set by the rule{sources.get(unit.source, f', from the {unit.source}')}"]
    if is_exact:
        lines.append("equal to the gradient")
    elif unit.signal is not None:
        lines.append(f"cosine {_number(unit.signal)}")
    return lines


def _number(value: float) -> str:
    """With two decimals, or four where two would say 1; never minus zero."""
    decimals = 4 if value >= 0.995 else 2
    return f"{round(value, decimals) + 0.0:.{decimals}f}"


def _legend(picture: Picture, seen: Signals, y: int) -> None:
    """What the lines mean, and the words beside them."""
    entries = {"line": "forward", "true": "the gradient", "replaced": "another signal"}
    x = 20
    for style, words in entries.items():
        picture.arrow(f"M{x} {y - 4}h40", style)
        picture.text(x + 50, y, words, "small start")
        x += 160
    picture.text(x, y, "cosines: with backpropagation's", "small start")
    if any(unit.source not in (ABOVE, NOTHING, ZERO) or unit.more for unit in seen.units):
        notes = (
            "Set by the rule: the rule makes the signal itself, from the loss, or from what the"
            " unit that is named hands back. Where nothing is named it is made of neither, but for"
            " example of a loss of the unit's own."
        )
        y += 6
        for line in textwrap.wrap(notes, CHARACTERS):
            y += 18
            picture.text(20, y, line, "small start")
