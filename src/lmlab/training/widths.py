"""Which dimensions of a parameter grow with the model's width, and how its initialisation follows.

Nothing is listed by hand. The model is built twice more without storage, once at its own width and
once several times wider, and the shapes are compared: a dimension that differs grows with the
width. A number of heads in the options belongs to this width and is multiplied along, so that heads
keep their width; all other options stay as they are (a vocabulary, a latent, a state, a kernel, the
width of a table's rows).
"""

from collections.abc import Callable
from math import log, sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lmlab.core.errors import UserError
from lmlab.core.registry import Choice
from lmlab.model.models.base import LanguageModel, build

Groups = dict[str, list[nn.Parameter]]
"""Parameters by the name of the optimizer's group that they belong to."""

WIDER = (2, 3, 4, 5, 6, 7, 8)
"""Factors of the width to try for the wider model: the first that its other options allow is
taken.
"""


class Fans(NamedTuple):
    """Whether a parameter's fan-in and fan-out grow in proportion to the model's width.

    Fan-in is how many numbers are summed for one number of the output. It does not grow for a
    look-up, nor for what acts on each number alone: gains, biases, a depthwise convolution.
    """

    fan_in: bool
    fan_out: bool


USUAL = {
    "embeddings": Fans(False, True),
    "readout": Fans(True, False),
    "matrices": Fans(True, True),
    "vectors": Fans(False, True),
}
"""The kinds of groups, and the fans of the group that has the kind's bare name."""
_SUFFIXES = {
    Fans(True, True): "_growing",
    Fans(False, True): "_fixed_fan_in",
    Fans(True, False): "_fixed_fan_out",
    Fans(False, False): "_fixed",
}


class Widening(NamedTuple):
    """A parametrisation's note on a parameter, as `parameter.widening`, if it follows the width."""

    ratio: float
    """How many times as wide the model is as the base."""
    grows: tuple[bool, ...]
    """Which of the parameter's dimensions grow with the width."""


def widening_of(parameter: nn.Parameter) -> Widening | None:
    """The note on a parameter; None at the base width and where the width is not followed."""
    return getattr(parameter, "widening", None)


def group_name(kind: str, fans: Fans) -> str:
    """The name of a group: its kind, with a suffix where the fans are not the usual ones."""
    return kind if fans == USUAL[kind] else kind + _SUFFIXES[fans]


FANS = {group_name(kind, fans): fans for kind in USUAL for fans in _SUFFIXES}
"""The fans of every group by its name."""


def kind_of(name: str) -> str:
    """The kind of the group of this name."""
    return name.partition("_")[0]


def width_powers(power: Callable[[str, Fans], float]) -> dict[str, float]:
    """By group, the power of the width that its learning rate follows, from its kind and fans."""
    return {name: float(power(kind_of(name), fans)) for name, fans in FANS.items()}


def fans_of(kind: str, parameter: nn.Parameter) -> Fans:
    """A parameter's fans: the kind's usual ones where there is no note on what grows.

    Rows of an embedding are looked up, so its features are its fan-out. Any other matrix is
    (fan-out, fan-in), and further dimensions (a kernel) belong to the fan-in.
    """
    widening = widening_of(parameter)
    if widening is None:
        return USUAL[kind]
    if kind == "embeddings" or parameter.ndim < 2:
        return Fans(False, any(widening.grows[-1:]))
    return Fans(any(widening.grows[1:]), widening.grows[0])


def by_fans(groups: Groups) -> Groups:
    """Groups named by kind, split by what grows in their parameters, if that has been noted."""
    split: Groups = {}
    for kind, parameters in groups.items():
        for parameter in parameters:
            name = group_name(kind, fans_of(kind, parameter))
            split.setdefault(name, []).append(parameter)
    return split


def initial_power(fans: Fans) -> float:
    """The power of the width in the standard deviation of initial weights under maximal update.

    fan_in^-1/2 where the fan-out grows as well, fan_in^-1 where it does not, and constant where the
    fan-in does not grow (Yang et al. 2022, table 3; Yang et al. 2023: the spectral norm is to go as
    sqrt(fan_out / fan_in)).
    """
    if not fans.fan_in:
        return 0.0
    return -0.5 if fans.fan_out else -1.0


@torch.no_grad()
def scale_initialisation(
    module: nn.Module,
    groups: Groups,
    model: LanguageModel,
    built_on: Callable[[LanguageModel], nn.Module] = lambda model: model,
) -> None:
    """Scale a module's random initial weights so that they follow the width as in maximal update.

    `groups` has the module's parameters by kind. The module is the model itself, or what `built_on`
    builds on it. Every parameter gets a note of its dimensions that grow, for `by_fans`. What was
    not drawn at random (ones, zeros) stays as it is. Raises UserError where no wider model can be
    built, or where it cannot be seen how a parameter that is to be scaled is drawn.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    same, wider = _drafts(model, built_on)
    for kind, parameters in groups.items():
        for parameter in parameters:
            name = names[id(parameter)]
            narrow, wide = same.parameters[name], wider.parameters[name]
            sides = zip(narrow.shape, wide.shape, strict=True)
            grows = tuple(before != after for before, after in sides)
            parameter.widening = Widening(model.width_ratio, grows)  # type: ignore[attr-defined]
            power = initial_power(fans_of(kind, parameter))
            if narrow.sigma and wide.sigma:
                # some initialisations follow the width by themselves
                ratio = wide.sigma / narrow.sigma
                own_power = log(ratio) / log(wider.width / same.width)
                parameter.mul_(model.width_ratio ** (power - own_power))
            elif power and not parameter.is_meta and parameter.any():
                raise UserError(
                    f"params.yaml: train.parametrisation: maximal_update cannot see how {name} is"
                    " drawn, so it cannot tell how that goes with the width; draw it by torch's"
                    " normal_, uniform_ or randn, or choose standard"
                )


class _ParameterDraft(NamedTuple):
    """A parameter without storage."""

    shape: torch.Size
    sigma: float | None
    """The standard deviation it is drawn with; None where it is not drawn at random."""


class _Draft(NamedTuple):
    """A module without storage."""

    parameters: dict[str, _ParameterDraft]
    width: int
    """Of the model that it is built on."""


def _drafts(
    model: LanguageModel, built_on: Callable[[LanguageModel], nn.Module]
) -> tuple[_Draft, _Draft]:
    """The module at its own width, and on a wider model."""
    refusals: list[UserError] = []
    for times in WIDER:
        try:
            wider = _draft(model, built_on, times)
        except UserError as error:
            refusals.append(error)
            continue
        if wider.width == times * model.width:
            return _draft(model, built_on, times=1), wider
        refusals.append(UserError(f"models.{model.choice.name} has no option `width`"))
    reason = str(refusals[0]).removeprefix("params.yaml: ")
    raise UserError(
        "params.yaml: train.parametrisation: maximal_update builds the model at other widths to"
        f" see what grows with it, and this one cannot be built at {WIDER[0]} to {WIDER[-1]} times"
        f" its width ({reason}); mend that, or choose standard"
    )


def _draft(
    model: LanguageModel, built_on: Callable[[LanguageModel], nn.Module], times: int
) -> _Draft:
    """The module on a model so many times as wide; nothing is drawn and nothing has storage."""
    with torch.device("meta"), _Draws() as draws:
        choice = _widened(model.choice, times * model.width, times)
        other = build(choice, model.vocabulary_size, model.context)
        parameters = {
            name: _ParameterDraft(parameter.shape, draws.sigma(parameter))
            for name, parameter in built_on(other).named_parameters()
        }
        return _Draft(parameters, other.width)


def _widened(choice: Choice, width: int, times: int) -> Choice:
    """The same part for a model of this width, which is so many times as wide."""
    fields, changes = type(choice.options).model_fields, {}
    if choice.kind == "models" and "width" in fields:
        changes["width"] = width
    if "heads" in fields:
        changes["heads"] = times * choice.options.model_dump()["heads"]
    inner = {key: _widened(part, width, times) for key, part in choice.inner.items()}
    return Choice(choice.kind, choice.name, choice.options.model_copy(update=changes), inner)


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Draws nothing, and notes the standard deviation of what would be drawn.

    It follows tensors through products and quotients with a number.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sigmas: dict[int, tuple[torch.UntypedStorage, float]] = {}
        """By a storage's id; with the storage itself, so that no other gets its id."""

    def sigma(self, tensor: Tensor) -> float | None:
        """The tensor's standard deviation; None if it was not drawn, or was overwritten later."""
        entry = self._sigmas.get(id(tensor.untyped_storage()))
        return entry[1] if entry else None

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        aten, kwargs, packet = torch.ops.aten, kwargs or {}, function.overloadpacket
        if packet is aten.normal_:  # (tensor, mean, standard deviation)
            self._note(args[0], args[2] if len(args) > 2 else 1.0)
            return args[0]
        if packet is aten.uniform_:  # (tensor, low, high)
            low = args[1] if len(args) > 1 else 0.0
            high = args[2] if len(args) > 2 else 1.0
            self._note(args[0], (high - low) / sqrt(12))
            return args[0]
        result = function(*args, **kwargs)
        if packet is aten.randn:
            self._note(result, 1.0)
        elif packet is aten.rand:
            self._note(result, 1 / sqrt(12))
        elif packet in (aten.mul, aten.mul_):
            self._note(result, self._scaled(args[0], args[1], inverse=False))
        elif packet in (aten.div, aten.div_):
            self._note(result, self._scaled(args[0], args[1], inverse=True))
        elif packet in (aten.zero_, aten.fill_, aten.copy_):
            self._note(args[0], None)
        return result

    def _scaled(self, tensor: Any, factor: Any, inverse: bool) -> float | None:
        """The standard deviation of a tensor times, or divided by, a number."""
        sigma = self.sigma(tensor) if isinstance(tensor, Tensor) else None
        if sigma is None or not isinstance(factor, int | float):
            return None
        return sigma * abs(1 / factor if inverse else factor)

    def _note(self, tensor: Tensor, sigma: float | None) -> None:
        storage = tensor.untyped_storage()
        if sigma is None:
            self._sigmas.pop(id(storage), None)
        else:
            self._sigmas[id(storage)] = (storage, sigma)
