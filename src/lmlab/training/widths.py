"""Which dimensions of a parameter grow with the model's width, and what initialisation makes of
that.

Nothing is listed by hand. The model is built twice more without storage, once as wide as it is and
once some times wider, and the shapes are compared: what differs grows with the width. A number of
heads that is given counts as a number for this width, and grows along, so that heads keep their
width; whatever else stands in the options stays as it is (a vocabulary, a latent, a state, a
kernel, a row of a table).
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
"""How many times as wide a model is built for comparison: the first that its other options
allow.
"""


class Fans(NamedTuple):
    """Whether a parameter's fan-in and fan-out grow in proportion to the model's width.

    Fan-in is how many numbers are summed up for one of the output. A look-up and what multiplies or
    is added to each number alone (gains, biases, a depthwise convolution but for its kernel) sum up
    none that grow.
    """

    fan_in: bool
    fan_out: bool


USUAL = {
    "embeddings": Fans(False, True),
    "readout": Fans(True, False),
    "matrices": Fans(True, True),
    "vectors": Fans(False, True),
}
"""The kinds of groups, and the fans of what is called by the kind's bare name."""
_SUFFIXES = {
    Fans(True, True): "_growing",
    Fans(False, True): "_fixed_fan_in",
    Fans(True, False): "_fixed_fan_out",
    Fans(False, False): "_fixed",
}


class Widening(NamedTuple):
    """What a parametrisation that follows the width leaves on a parameter, as
    `parameter.widening`.
    """

    ratio: float
    """How many times as wide the model is as the base."""
    grows: tuple[bool, ...]
    """Which of the parameter's dimensions grow with the width."""


def widening_of(parameter: nn.Parameter) -> Widening | None:
    """What was left on it; None at the base width and in a parametrisation that does not follow the
    width.
    """
    return getattr(parameter, "widening", None)


def group_name(kind: str, fans: Fans) -> str:
    """Of the group of such parameters: the kind, with a suffix where the fans are not the kind's
    usual ones.
    """
    return kind if fans == USUAL[kind] else kind + _SUFFIXES[fans]


FANS = {group_name(kind, fans): fans for kind in USUAL for fans in _SUFFIXES}
"""Of every group, by its name."""


def kind_of(name: str) -> str:
    """The kind of a group, by its name."""
    return name.partition("_")[0]


def width_powers(power: Callable[[str, Fans], float]) -> dict[str, float]:
    """The power of the width by which the learning rate of each group goes, from a function of kind
    and fans.
    """
    return {name: float(power(kind_of(name), fans)) for name, fans in FANS.items()}


def fans_of(kind: str, parameter: nn.Parameter) -> Fans:
    """A parameter's fans: the kind's usual ones where no parametrisation has asked what grows.

    Rows of an embedding are looked up, so its features are its fan-out; any other matrix is
    (fan-out, fan-in), and what stands behind the second dimension (a kernel) belongs to the fan-in.
    """
    widening = widening_of(parameter)
    if widening is None:
        return USUAL[kind]
    if kind == "embeddings" or parameter.ndim < 2:
        return Fans(False, any(widening.grows[-1:]))
    return Fans(any(widening.grows[1:]), widening.grows[0])


def by_fans(groups: Groups) -> Groups:
    """Groups named by kind, split by what grows in their parameters; the same where nothing was
    asked about that.
    """
    split: Groups = {}
    for kind, parameters in groups.items():
        for parameter in parameters:
            split.setdefault(group_name(kind, fans_of(kind, parameter)), []).append(parameter)
    return split


def initial_power(fans: Fans) -> float:
    """The power of the width with which the standard deviation of initial weights goes under
    maximal update.

    fan_in^-1/2 where the fan-out grows as well, fan_in^-1 where it does not, and the same at any
    width where the fan-in does not grow (Yang et al. 2022, table 3; Yang et al. 2023: the spectral
    norm is to go as sqrt(fan_out / fan_in)).
    """
    return 0.0 if not fans.fan_in else -0.5 if fans.fan_out else -1.0


@torch.no_grad()
def scale_initialisation(
    module: nn.Module,
    groups: Groups,
    model: LanguageModel,
    built_on: Callable[[LanguageModel], nn.Module] = lambda model: model,
) -> None:
    """Scale what a module has drawn at random, so that it goes with the model's width as maximal
    update asks.

    `groups` has the module's parameters by kind; the module is the model itself, or what `built_on`
    builds on it. Every parameter notes which of its dimensions grow, for `by_fans`. What was not
    drawn (ones, zeros) is left as it is. Raises UserError where no wider model can be built, or
    where it cannot be seen how a parameter is drawn that is to be scaled.
    """
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    (same, same_width), (wider, wider_width) = _drafts(model, built_on)
    for kind, parameters in groups.items():
        for parameter in parameters:
            name = names[id(parameter)]
            narrow, wide = same[name], wider[name]
            grows = tuple(one != other for one, other in zip(narrow.shape, wide.shape, strict=True))
            parameter.widening = Widening(model.width_ratio, grows)  # type: ignore[attr-defined]
            power = initial_power(fans_of(kind, parameter))
            if narrow.sigma and wide.sigma:
                already = log(wide.sigma / narrow.sigma) / log(wider_width / same_width)
                parameter.mul_(model.width_ratio ** (power - already))
            elif power and not parameter.is_meta and parameter.any():
                raise UserError(
                    f"params.yaml: train.parametrisation: maximal_update cannot see how {name} is"
                    " drawn, so it cannot tell"
                    " how that goes with the width; draw it by torch's normal_, uniform_ or"
                    " randn, or choose standard"
                )


class _Draft(NamedTuple):
    """Of a parameter: its shape, and the standard deviation with which it is drawn, None where it
    is not.
    """

    shape: torch.Size
    sigma: float | None


_Drafts = tuple[dict[str, _Draft], int]
"""The parameters of a module by name, and the width of the model that it is built on."""


def _drafts(
    model: LanguageModel, built_on: Callable[[LanguageModel], nn.Module]
) -> tuple[_Drafts, _Drafts]:
    """Of the module as it is, and of the same on a wider model; nothing has storage and nothing is
    drawn.
    """

    def draft(times: int) -> _Drafts:
        with torch.device("meta"), _Draws() as draws:
            like = build(
                _widened(model.choice, times * model.width, times),
                model.vocabulary_size,
                model.context,
            )
            named = built_on(like).named_parameters()
            return {
                name: _Draft(parameter.shape, draws.sigma(parameter)) for name, parameter in named
            }, like.width

    refused: list[UserError] = []
    for times in WIDER:
        try:
            wider = draft(times)
        except UserError as error:
            refused.append(error)
            continue
        if wider[1] == times * model.width:
            return draft(1), wider
        refused.append(UserError(f"models.{model.choice.name} has no option `width`"))
    reason = str(refused[0]).removeprefix("params.yaml: ")
    raise UserError(
        "params.yaml: train.parametrisation: maximal_update builds the model at other widths to"
        " see what grows with it, and"
        f" this one cannot be built at {WIDER[0]} to {WIDER[-1]} times its width ({reason}); mend"
        " that, or choose standard"
    )


def _widened(choice: Choice, width: int, times: int) -> Choice:
    """The same part for a model of another width, so many times as wide."""
    fields, changes = type(choice.options).model_fields, {}
    if choice.kind == "models" and "width" in fields:
        changes["width"] = width
    if "heads" in fields:
        changes["heads"] = times * choice.options.model_dump()["heads"]
    inner = {key: _widened(part, width, times) for key, part in choice.inner.items()}
    return Choice(choice.kind, choice.name, choice.options.model_copy(update=changes), inner)


class _Draws(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Draws nothing, and notes the standard deviation of what was to be drawn, also where it is
    multiplied by a number.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._of: dict[int, tuple[torch.UntypedStorage, float]] = {}
        """By a storage's id; the storage stands there too, so that no other gets its id."""

    def sigma(self, tensor: Tensor) -> float | None:
        """With which the tensor was drawn, None if it was not, or something else was done to it
        afterwards.
        """
        known = self._of.get(id(tensor.untyped_storage()))
        return known[1] if known else None

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        aten, kwargs, packet = torch.ops.aten, kwargs or {}, function.overloadpacket
        if packet in (aten.normal_, aten.uniform_):
            first = args[1] if len(args) > 1 else 0.0
            second = args[2] if len(args) > 2 else 1.0
            self._note(args[0], second if packet is aten.normal_ else (second - first) / sqrt(12))
            return args[0]
        result = function(*args, **kwargs)
        if packet in (aten.randn, aten.rand):
            self._note(result, 1.0 if packet is aten.randn else 1 / sqrt(12))
        elif packet in (aten.mul, aten.mul_, aten.div, aten.div_):
            before = self.sigma(args[0]) if isinstance(args[0], Tensor) else None
            factor = args[1] if isinstance(args[1], int | float) else None
            of_product = packet in (aten.mul, aten.mul_)
            after = (
                None
                if before is None or factor is None
                else before * abs(factor if of_product else 1 / factor)
            )
            self._note(result, after)
        elif packet in (aten.zero_, aten.fill_, aten.copy_):
            self._note(args[0], None)
        return result

    def _note(self, tensor: Tensor, sigma: float | None) -> None:
        storage = tensor.untyped_storage()
        if sigma is None:
            self._of.pop(id(storage), None)
        else:
            self._of[id(storage)] = (storage, sigma)
