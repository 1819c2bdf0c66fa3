"""Noise in weights, and what it did to the loss: for learning rules that need no backward pass.
Nodes are next door.

Noise is never stored: drawn for the same member of a population and the same parameter it is the
same again. No pass keeps a graph, so what a pass needs in memory does not grow with the model's
depth. Callers hold `torch.no_grad()`, and `noise.repeatable()`, so that passes that are compared
drop the same units.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmlab.model import noise
from lmlab.model.models.base import LanguageModel, next_token_loss

Draw = Callable[[Tensor, torch.Generator], Tensor]
"""Noise of mean 0 and variance 1 in a tensor's shape, precision and place."""
Distribution = Literal["gaussian", "rademacher"]


def gaussian(like: Tensor, rng: torch.Generator) -> Tensor:
    """Normal numbers."""
    return torch.randn(like.shape, generator=rng, dtype=like.dtype, device=like.device)


def rademacher(like: Tensor, rng: torch.Generator) -> Tensor:
    """-1 or 1: the least fourth moment there is, hence the least variance of what is estimated with
    it.
    """
    return torch.randint(2, like.shape, generator=rng, dtype=like.dtype, device=like.device) * 2 - 1


def low_rank(rank: int) -> Draw:
    """Noise A Bᵀ / sqrt(rank) for a matrix, A and B normal (a convolution is rows x the rest);
    plain normal for a vector.
    """

    def draw(like: Tensor, rng: torch.Generator) -> Tensor:
        if like.ndim < 2:
            return gaussian(like, rng)
        left, right = (
            gaussian(like.new_empty(side, rank), rng) for side in (len(like), like[0].numel())
        )
        return (left @ right.T / rank**0.5).view_as(like)

    return draw


DRAWS: dict[Distribution, Draw] = {"gaussian": gaussian, "rademacher": rademacher}


Named = list[tuple[str, nn.Parameter]]


def taught(model: nn.Module) -> Named:
    """The parameters that learn, by name; a tied one once."""
    return [
        (name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
    ]


def add_to_gradient(parameter: nn.Parameter, estimate: Tensor) -> None:
    """`estimate`, in the parameter's shape, is added to what is in p.grad."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    parameter.grad += estimate


MEMBER = "member"
"""The site of a population's member, or of one of several samples; its number follows."""


def drawn(draw: Draw, like: Tensor, member: int, *site: noise.Word) -> Tensor:
    """A member's noise at a site: the same tensor whenever it is asked for under the same key."""
    return draw(like, noise.generator(like.device, MEMBER, member, *site))


def direction(parameters: Named, draw: Draw, member: int) -> dict[str, Tensor]:
    """A member's noise for every parameter, by name."""
    return {name: drawn(draw, parameter, member, name) for name, parameter in parameters}


def moved(parameters: Named, draw: Draw, member: int, distance: float) -> dict[str, Tensor]:
    """Copies of the parameters, each moved by `distance` times the member's noise."""
    return {
        name: parameter.detach() + distance * drawn(draw, parameter, member, name)
        for name, parameter in parameters
    }


def loss_with(
    weights: Mapping[str, Tensor], model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
) -> Tensor:
    """The mean loss with some of the model's weights replaced; its own are not touched."""
    return next_token_loss(functional_call(model, dict(weights), (tokens_BT,)), targets_BT)


def pair_losses(
    model: LanguageModel,
    pairs: int,
    draw: Draw,
    sigma: float,
    tokens_BT: Tensor,
    targets_BT: Tensor,
) -> tuple[Tensor, Tensor]:
    """The mean loss at the weights, and losses_N2 at both ends of N directions: `sigma` forward and
    back along each.
    """
    parameters = taught(model)
    losses = [
        loss_with(moved(parameters, draw, member, distance), model, tokens_BT, targets_BT)
        for member in range(pairs)
        for distance in (sigma, -sigma)
    ]
    return loss_with({}, model, tokens_BT, targets_BT), torch.stack(losses).view(-1, 2)


def teach_weights(model: LanguageModel, draw: Draw, slopes_N: Tensor) -> None:
    """Add to the gradients the sum over N members of slope times direction, each drawn again."""
    for member, slope in enumerate(slopes_N):
        for name, parameter in taught(model):
            add_to_gradient(parameter, slope * drawn(draw, parameter, member, name))


Shaping = Literal["none", "ranks"]


def centred_ranks(losses: Tensor) -> Tensor:
    """Evenly spaced from -0.5, for the least of all losses, to 0.5; in their shape."""
    ranks = losses.flatten().argsort().argsort().view_as(losses)
    return ranks.to(losses.dtype) / (losses.numel() - 1) - 0.5


SHAPINGS: dict[Shaping, Callable[[Tensor], Tensor]] = {
    "none": lambda losses: losses,
    "ranks": centred_ranks,
}
"""How losses become the weights of a population's members."""


def differentiable_attention() -> AbstractContextManager[None]:
    """Inside, attention is in its plain form: its fused kernels have no forward derivative on a
    CPU.
    """
    return sdpa_kernel(SDPBackend.MATH)


def slopes_along(
    directions: Mapping[str, Tensor], model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean loss, and slopes_N of it along N directions: for each parameter there is a tensor
    (N, ...).

    What does not depend on the direction is computed once.
    """
    weights = {name: parameter.detach() for name, parameter in taught(model)}

    def along(one: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        loss, slope, *_ = torch.func.jvp(
            lambda at: loss_with(at, model, tokens_BT, targets_BT), (weights,), (one,)
        )
        return loss, slope

    with differentiable_attention():
        losses_N, slopes_N = torch.vmap(along, randomness="same")(dict(directions))
    return losses_N[0], slopes_N
