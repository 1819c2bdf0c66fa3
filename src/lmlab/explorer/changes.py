"""What a visitor changes inside a model: a part scaled, patched or pushed, a token pinned.

Each is plain data from the page. Scaling by 1 is the model as it is, to the last bit. (Patching:
Vig et al. 2020; a direction added: Turner et al. 2023, "Activation addition".)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.explorer import features
from lmlab.explorer.subject import Subject
from lmlab.model import places
from lmlab.model.models.base import LanguageModel
from lmlab.model.places import Change as PlaceChange


class _Given(BaseModel):
    """Data from outside: nothing else than what is asked for, and no infinite numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class _AtPlace(_Given):
    """A change of what flows through a place, or of a table of n-grams."""

    place: str
    unit: int | None = Field(default=None, ge=0)
    """A head, unit, row of a state or number of the stream; None: all."""
    at: int | None = Field(default=None, ge=0)
    """The token whose prediction it acts on, counted from 0 in the text; None: all tokens."""


class Scale(_AtPlace):
    """x -> factor * x; 0 switches it off."""

    kind: Literal["scale"]
    factor: float = Field(ge=-1e6, le=1e6)


class Patch(_AtPlace):
    """x -> what flows there at a token of another text."""

    kind: Literal["patch"]
    text: str
    of: int = Field(ge=0)
    """The token of that text."""


class Add(_AtPlace):
    """x -> x + strength * (what flows at the last token of one text - at that of another)."""

    kind: Literal["add"]
    plus: str
    minus: str
    strength: float = Field(ge=-1e6, le=1e6)


class Feature(_Given):
    """A feature that a sparse autoencoder has found, scaled: x -> x + (factor - 1) a(x) d."""

    kind: Literal["feature"]
    place: str
    feature: int = Field(ge=0)
    factor: float = Field(ge=-1e6, le=1e6)
    at: int | None = Field(default=None, ge=0)
    """The token whose prediction it acts on; None: all."""


class Pin(_Given):
    """Another token in the text that is read; what is predicted stays the text."""

    kind: Literal["pin"]
    at: int = Field(ge=0)
    token: int = Field(ge=0)


Change = Annotated[Scale | Patch | Add | Feature | Pin, Field(discriminator="kind")]


def pinned(changes: Sequence[Change], ids: list[int], vocabulary_size: int) -> list[int]:
    """The ids that are read, BOS first, with pinned tokens in place."""
    read = list(ids)
    for change in changes:
        if isinstance(change, Pin):
            if change.token >= vocabulary_size:
                raise UserError(
                    f"there is no token {change.token}; the last is {vocabulary_size - 1}"
                )
            if change.at + 1 >= len(ids):
                raise UserError(f"the text has no token {change.at} to be pinned")
            read[change.at + 1] = change.token
    return read


@contextmanager
def applied(
    subject: Subject, model: LanguageModel, changes: Sequence[Change], begin: int
) -> Iterator[None]:
    """Inside, the model computes with the changes. Its first position predicts token `begin`.

    Raises UserError for a place or a part of it that the model does not have.
    """
    tables = subject.tables()
    functions = [  # made of the model as it is, before any of them acts
        (change, function_of(subject, model, change, begin))
        for change in changes
        if not isinstance(change, Pin)
    ]
    with ExitStack() as stack:
        for change, function in reversed(functions):  # at one place the innermost acts first
            if change.place in tables:
                table = model.get_submodule(change.place)
                handle = table.register_forward_hook(_hook(function), prepend=True)
                stack.callback(handle.remove)
            else:
                stack.enter_context(places.changed(model, {change.place: function}))
        yield


def _hook(function: PlaceChange) -> Callable[[object, object, Tensor], Tensor]:
    return lambda module, inputs, output: function(output.clone())


def function_of(
    subject: Subject, model: LanguageModel, change: Scale | Patch | Add | Feature, begin: int
) -> PlaceChange:
    """What the change makes of what flows through its place.

    `begin` is the token that the model's first position predicts. Raises UserError as `applied`.
    """
    if isinstance(change, Feature):
        known = features.known(subject, subject.moment, change.place)
        return features.change(known, change.feature, change.factor, change.at, begin)
    if isinstance(change, Scale):
        factor = change.factor
        return _within(change, begin, lambda x: factor * x)
    if change.place in subject.tables() or change.place.endswith(".pattern"):
        raise UserError(f"{change.place} can be scaled, not patched; take what it gives instead")
    if isinstance(change, Patch):
        other = _seen(subject, model, change.place, change.text, change.of, change.unit)
        return _within(change, begin, lambda x: other.expand_as(x))
    ends = [
        _seen(subject, model, change.place, text, None, change.unit)
        for text in (change.plus, change.minus)
    ]
    pushed = change.strength * (ends[0] - ends[1])
    return _within(change, begin, lambda x: x + pushed)


@torch.no_grad()
def _seen(
    subject: Subject, model: LanguageModel, place: str, text: str, of: int | None, unit: int | None
) -> Tensor:
    """What flows through a place where a token of a text is predicted; after its last by None."""
    ids = subject.ids(text)
    position = len(ids) - 1 if of is None else of
    if position >= len(ids):
        raise UserError(f"the text {text[:40]!r} has no token {position}; it has {len(ids) - 1}")
    ids = ids[max(0, position + 1 - model.context) : position + 1]
    with places.record(model, [place]) as states:
        model(torch.tensor([ids]))
    seen = states[place][0, -1]
    return seen if unit is None else seen[_checked(place, unit, seen.shape[0])]


def _checked(place: str, unit: int, size: int) -> int:
    if unit >= size:
        raise UserError(f"{place} has no part {unit}; the last is {size - 1}")
    return unit


def _within(change: _AtPlace, begin: int, function: Callable[[Tensor], Tensor]) -> PlaceChange:
    """The function on a part of what flows: one head or unit, one position."""
    is_pattern = change.place.endswith(".pattern")
    axis_of_units, axis_of_time = (1, 2) if is_pattern else (2, 1)

    def change_part(x: Tensor) -> Tensor:
        index: list[slice | int] = [slice(None)] * x.ndim
        if change.unit is not None:
            if x.ndim <= axis_of_units:
                raise UserError(f"{change.place} has no parts to choose from")
            index[axis_of_units] = _checked(change.place, change.unit, x.shape[axis_of_units])
        if change.at is not None:
            position = change.at - begin
            if not 0 <= position < x.shape[axis_of_time]:
                return x
            index[axis_of_time] = position
        part = tuple(index)
        x[part] = function(x[part])
        return x

    return change_part
