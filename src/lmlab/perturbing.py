"""Noise in weights or activations, and what it did to the loss: for learning rules that need no backward pass.

Noise is never stored: a seed gives the same noise again whenever it is needed. No pass keeps a graph, so what a pass needs
in memory does not grow with the model's depth; callers hold `torch.no_grad()`.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.grad import conv1d_weight
from torch.overrides import TorchFunctionMode

from lmlab.models.base import LanguageModel, next_token_loss

# ---------------------------------------------------------------------------------------------------------------- chance

Draw = Callable[[Tensor, torch.Generator], Tensor]
"""Noise of mean 0 and variance 1 in a tensor's shape, precision and place."""
Distribution = Literal["gaussian", "rademacher"]


def gaussian(like: Tensor, chance: torch.Generator) -> Tensor:
    """Normal numbers."""
    return torch.randn(like.shape, generator=chance, dtype=like.dtype, device=like.device)


def rademacher(like: Tensor, chance: torch.Generator) -> Tensor:
    """-1 or 1: the least fourth moment there is, hence the least variance of what is estimated with it."""
    return torch.randint(2, like.shape, generator=chance, dtype=like.dtype, device=like.device) * 2 - 1


def low_rank(rank: int) -> Draw:
    """Noise A Bᵀ / sqrt(rank) for a matrix, A and B normal (a convolution is rows x the rest); plain normal for a vector."""

    def draw(like: Tensor, chance: torch.Generator) -> Tensor:
        if like.ndim < 2:
            return gaussian(like, chance)
        left, right = (gaussian(like.new_empty(side, rank), chance) for side in (len(like), like[0].numel()))
        return (left @ right.T / rank**0.5).view_as(like)

    return draw


DRAWS: dict[Distribution, Draw] = {"gaussian": gaussian, "rademacher": rademacher}


def new_seed() -> int:
    """A seed drawn from torch's global generator."""
    return int(torch.randint(2**62, (), device="cpu"))


def new_seeds(count: int) -> list[int]:
    """Several of them."""
    return [new_seed() for _ in range(count)]


def generator(seed: int, device: torch.device) -> torch.Generator:
    """A generator of its own."""
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def same_chance(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, the global generators start at the seed, so that passes that are compared drop the same units."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed looks for every other device: a millisecond
        if device.type in ("cuda", "mps"):
            getattr(torch, device.type).manual_seed(seed)
        yield


# --------------------------------------------------------------------------------------------------------------- weights

Named = list[tuple[str, nn.Parameter]]


def taught(model: nn.Module) -> Named:
    """The parameters that learn, by name; a tied one once."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def add_to_gradient(parameter: nn.Parameter, estimate: Tensor) -> None:
    """`estimate`, in the parameter's shape, is added to what is in p.grad."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    parameter.grad += estimate


def direction(parameters: Named, draw: Draw, chance: torch.Generator) -> dict[str, Tensor]:
    """Noise for every parameter, by name."""
    return {name: draw(parameter, chance) for name, parameter in parameters}


def moved(parameters: Named, draw: Draw, chance: torch.Generator, distance: float) -> dict[str, Tensor]:
    """Copies of the parameters, each moved by `distance` times its noise: what `direction` gives for the same chance."""
    return {name: parameter.detach() + distance * draw(parameter, chance) for name, parameter in parameters}


def loss_with(
    weights: Mapping[str, Tensor], model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor, seed: int
) -> Tensor:
    """The mean loss with some of the model's weights replaced; its own are not touched. `seed` says what dropout drops."""
    with same_chance(seed, tokens_BT.device):
        return next_token_loss(functional_call(model, dict(weights), (tokens_BT,)), targets_BT)


def pair_losses(
    model: LanguageModel, seeds: list[int], draw: Draw, deviation: float, tokens_BT: Tensor, targets_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean loss at the weights, and losses_N2 at both ends of N directions: `deviation` forward and back along each."""
    dropout, parameters, device = new_seed(), taught(model), tokens_BT.device
    losses = [
        loss_with(moved(parameters, draw, generator(seed, device), distance), model, tokens_BT, targets_BT, dropout)
        for seed in seeds
        for distance in (deviation, -deviation)
    ]
    return loss_with({}, model, tokens_BT, targets_BT, dropout), torch.stack(losses).view(-1, 2)


def teach_weights(model: LanguageModel, seeds: list[int], draw: Draw, slopes_N: Tensor) -> None:
    """Add to the gradients the sum over directions of slope times direction, each drawn again."""
    for seed, slope in zip(seeds, slopes_N, strict=True):
        chance = generator(seed, slopes_N.device)
        for _, parameter in taught(model):
            add_to_gradient(parameter, slope * draw(parameter, chance))


Shaping = Literal["none", "ranks"]


def centred_ranks(losses: Tensor) -> Tensor:
    """Evenly spaced from -0.5, for the least of all losses, to 0.5; in their shape."""
    ranks = losses.flatten().argsort().argsort().view_as(losses)
    return ranks.to(losses.dtype) / (losses.numel() - 1) - 0.5


SHAPINGS: dict[Shaping, Callable[[Tensor], Tensor]] = {"none": lambda losses: losses, "ranks": centred_ranks}
"""How losses become the weights of a population's members."""


def differentiable_attention() -> AbstractContextManager[None]:
    """Inside, attention is in its plain form: its fused kernels have no forward derivative on a CPU."""
    return sdpa_kernel(SDPBackend.MATH)


def slopes_along(
    noise: Mapping[str, Tensor], model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """The mean loss, and slopes_N of it along N directions: `noise` has for each parameter a tensor (N, ...).

    What does not depend on the direction is computed once. `seed` says what dropout drops.
    """
    weights = {name: parameter.detach() for name, parameter in taught(model)}

    def along(one: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        loss, slope, *_ = torch.func.jvp(lambda at: loss_with(at, model, tokens_BT, targets_BT, seed), (weights,), (one,))
        return loss, slope

    with differentiable_attention():
        losses_N, slopes_N = torch.vmap(along, randomness="same")(dict(noise))
    return losses_N[0], slopes_N


# ----------------------------------------------------------------------------------------------------------------- nodes

_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    nn.functional.linear: ("input", "weight", "bias"),
    nn.functional.conv1d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    nn.functional.embedding: ("input", "weight"),
}
"""The maps that are linear in their weights: a node is a number in the output of one (an embedding maps one-hot vectors)."""


@dataclass(frozen=True)
class Group:
    """What gets noise in the same pass: the nodes of maps with these weights, and parameters outside maps themselves."""

    weights: Named
    outside: Named


def noise_groups(model: nn.Module, at_once: int) -> list[Group]:
    """`at_once` maps at a time, in the model's order, then what is outside (gains, decays); 0: everything in one pass."""
    maps = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding)]
    inside = {id(parameter) for module in maps for parameter in module.parameters(recurse=False)}
    of_maps = {id(module.weight) for module in maps}
    weights = [(name, parameter) for name, parameter in taught(model) if id(parameter) in of_maps]
    outside = [(name, parameter) for name, parameter in taught(model) if id(parameter) not in inside]
    if not at_once:
        return [Group(weights, outside)]
    groups = [Group(weights[first : first + at_once], []) for first in range(0, len(weights), at_once)]
    return [*groups, Group([], outside)] if outside else groups


@dataclass
class Call:
    """One call of a map, and which tokens the rows of its output belong to."""

    function: Any
    arguments: dict[str, Any]
    output: Tensor
    batch: int
    time: int
    rows: Tensor | None
    """For an output with a row for some of the tokens (a mixture's expert): their places in the batch laid out flat."""
    step: int
    """How often this weight was called before in this pass: the time step, where a row stands for a sequence."""

    def noise(self, draw: Draw, chance: torch.Generator) -> Tensor:
        """Noise for the output. A token has its own, also when an expert is sent other tokens beside it."""
        if self.rows is None:
            return draw(self.output, chance)
        return draw(self.output.new_empty(self.batch * self.time, self.output.shape[-1]), chance)[self.rows]

    def spread(self, credit_BT: Tensor) -> Tensor:
        """Each token's credit laid over the rows it has in the output.

        Where rows are not those of single tokens (a table of positions), all get the credit of the batch's first tokens
        together, which is the change of the whole loss: unbiased too, but noisier.
        """
        shape, is_linear = self.output.shape, self.function is nn.functional.linear
        if self.rows is not None:
            return credit_BT.flatten()[self.rows, None]
        if self.function is nn.functional.conv1d and shape[::2] == (self.batch, self.time):
            return credit_BT[:, None, :]
        if len(shape) == 3 and shape[:2] == (self.batch, self.time):
            return credit_BT[:, :, None]
        if is_linear and len(shape) == 2 and shape[0] == self.batch * self.time:
            return credit_BT.flatten()[:, None]
        if is_linear and len(shape) == 2 and shape[0] == self.batch and self.step < self.time:
            return credit_BT[:, self.step, None]
        return credit_BT[:, 0].sum()

    def teach(self, gradient: Tensor) -> None:
        """From the gradient at the output, those of weight and bias: products of what is at hand here, no backward pass."""
        weight, bias, given = self.arguments["weight"], self.arguments.get("bias"), self.arguments["input"]
        gradient = gradient.to(weight.dtype)
        rows = gradient.flatten(0, -2)
        if self.function is nn.functional.embedding:
            add_to_gradient(weight, torch.zeros_like(weight).index_add_(0, given.flatten(), rows))
        elif self.function is nn.functional.linear:
            add_to_gradient(weight, rows.T @ given.to(weight.dtype).flatten(0, -2))
        else:
            shape = {key: self.arguments[key] for key in ("stride", "padding", "dilation", "groups")}
            found = conv1d_weight(given.to(weight.dtype), weight.shape, gradient, **shape)  # type: ignore[no-untyped-call]
            add_to_gradient(weight, found)
            rows = gradient.transpose(1, 2).flatten(0, 1)
        if bias is not None:
            add_to_gradient(bias, rows.sum(dim=0))


class AtMaps(TorchFunctionMode):
    """While it is entered, every call of a map with one of the weights gives what `visit` makes of it."""

    def __init__(self, weights: Named, tokens_BT: Tensor, visit: Callable[[Call], Tensor]) -> None:
        super().__init__()
        self.weights, self.visit = {id(parameter) for _, parameter in weights}, visit
        self.batch, self.time = tokens_BT.shape
        self.picked: Tensor | None = None
        self.calls: Counter[int] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is Tensor.__getitem__:
            self._note_picked(*args)
        if func not in _ARGUMENTS:
            return output
        arguments = {**dict(zip(_ARGUMENTS[func], args, strict=False)), **(kwargs or {})}
        weight, rows = id(arguments["weight"]), self._rows(output)
        if weight not in self.weights:
            return output
        call = Call(func, arguments, output, self.batch, self.time, rows, self.calls[weight])
        self.calls[weight] += 1
        return self.visit(call)

    def _note_picked(self, tensor: Tensor, index: Any) -> None:
        """A mixture of experts picks rows of x_ND, where N counts all tokens, for the next maps."""
        of_all = tensor.ndim == 2 and len(tensor) == self.batch * self.time
        if of_all and isinstance(index, Tensor) and index.ndim == 1 and not index.is_floating_point():
            self.picked = index

    def _rows(self, output: Tensor) -> Tensor | None:
        """The tokens of a map's rows, where they are those picked last; a map over all tokens ends that."""
        if self.picked is not None and output.ndim == 2 and len(output) == len(self.picked):
            return self.picked
        self.picked = None
        return None


def token_losses(model: LanguageModel, weights: Mapping[str, Tensor], tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
    """losses_BT: each token's share of the mean loss, which is their sum."""
    logits_BTV = functional_call(model, dict(weights), (tokens_BT,)) if weights else model(tokens_BT)
    precise = torch.promote_types(logits_BTV.dtype, torch.float32)
    losses_N = nn.functional.cross_entropy(logits_BTV.flatten(0, 1).to(precise), targets_BT.flatten(), reduction="none")
    return losses_N.view_as(targets_BT) / targets_BT.numel()


def credit(change_BT: Tensor) -> Tensor:
    """What noise at each token may have changed: the losses there and later in its sequence, as models are causal."""
    return change_BT.flip(1).cumsum(dim=1).flip(1)


def noisy_losses(
    model: LanguageModel, group: Group, seed: int, draw: Draw, deviation: float, tokens_BT: Tensor, targets_BT: Tensor
) -> Tensor:
    """losses_BT with `deviation` times noise at the nodes of the group's maps and in its parameters outside maps."""
    chance = generator(seed, tokens_BT.device)
    weights = moved(group.outside, draw, chance, deviation)
    with AtMaps(group.weights, tokens_BT, lambda call: call.output + deviation * call.noise(draw, chance)):
        return token_losses(model, weights, tokens_BT, targets_BT)


def dual(value: Tensor, tangent: Tensor) -> Tensor:
    """The value, with the direction in which what follows is differentiated."""
    made: Tensor = forward_mode.make_dual(value, tangent)  # type: ignore[no-untyped-call]
    return made


def value_and_slope(of_duals: Tensor) -> tuple[Tensor, Tensor]:
    """What was computed from duals, and its derivative: zero if no dual had a part in it."""
    value, slope = forward_mode.unpack_dual(of_duals)  # type: ignore[no-untyped-call]
    return value, torch.zeros_like(value) if slope is None else slope


def slopes_along_noise(
    model: LanguageModel, group: Group, seed: int, draw: Draw, tokens_BT: Tensor, targets_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """losses_BT, and their derivatives along the noise of `noisy_losses`."""
    chance = generator(seed, tokens_BT.device)

    def along_noise(call: Call) -> Tensor:
        return call.output + dual(torch.zeros_like(call.output), call.noise(draw, chance))

    with forward_mode.dual_level(), differentiable_attention():
        weights = {name: dual(parameter.detach(), draw(parameter, chance)) for name, parameter in group.outside}
        with AtMaps(group.weights, tokens_BT, along_noise):
            return value_and_slope(token_losses(model, weights, tokens_BT, targets_BT))


@dataclass
class Sample:
    """Noise, by its seed, for a group of parameters, and what it did."""

    group: Group
    seed: int
    credit_BT: Tensor  # noqa: N815


def teach_nodes(model: LanguageModel, samples: list[Sample], draw: Draw, tokens_BT: Tensor) -> None:
    """Add to the gradients the sum over samples of noise times credit, in a further pass that draws the noise again.

    Doing it there keeps no map's input for later.
    """
    by_weight: dict[int, list[tuple[torch.Generator, Tensor]]] = {}
    for sample in samples:
        chance = generator(sample.seed, tokens_BT.device)
        for _, parameter in sample.group.outside:
            add_to_gradient(parameter, sample.credit_BT[:, 0].sum() * draw(parameter, chance))
        for _, parameter in sample.group.weights:
            by_weight.setdefault(id(parameter), []).append((chance, sample.credit_BT))

    def teach(call: Call) -> Tensor:
        gradient = torch.zeros_like(call.output)
        for chance, credit_BT in by_weight[id(call.arguments["weight"])]:
            gradient += call.spread(credit_BT) * call.noise(draw, chance)
        call.teach(gradient)
        return call.output

    with AtMaps([named for sample in samples for named in sample.group.weights], tokens_BT, teach):
        model(tokens_BT)
