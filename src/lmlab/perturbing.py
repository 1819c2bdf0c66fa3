"""Noise in weights, and what it did to the loss: for learning rules that need no backward pass. Nodes are next door.

Noise is never stored: a seed gives the same noise again whenever it is needed. No pass keeps a graph, so what a pass needs
in memory does not grow with the model's depth; callers hold `torch.no_grad()`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmlab.models.base import LanguageModel, next_token_loss

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
