"""Noise in the weights and what it does to the loss: for rules that need no backward pass.

Noise is never stored: drawn again for the same member of a population and the same parameter, it is
the same. So several processes exchange losses alone: each draws the others' noise by itself. No
pass keeps a graph, so memory does not grow with the model's depth. Callers hold `torch.no_grad()`,
and `noise.repeatable()`, so that all passes that are compared drop the same units. Noise at the
outputs of linear maps is in `_node_noise`.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from lmlab.model import noise, processes
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules.base import accumulate_grad

Draw = Callable[[Tensor, torch.Generator], Tensor]
"""Draws noise of mean 0 and variance 1 in a tensor's shape, precision and device."""
Distribution = Literal["gaussian", "rademacher"]


def gaussian(like: Tensor, rng: torch.Generator) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(like.shape, generator=rng, dtype=like.dtype, device=like.device)


def rademacher(like: Tensor, rng: torch.Generator) -> Tensor:
    """-1 or 1 with equal probability: of least fourth moment, so of least variance in estimates."""
    return torch.randint(2, like.shape, generator=rng, dtype=like.dtype, device=like.device) * 2 - 1


def low_rank(rank: int) -> Draw:
    """Noise A B^T / sqrt(rank) for a matrix, with A and B standard normal; normal for a vector.

    A convolution's weight counts as a matrix of its first dimension by all others.
    """

    def draw(like: Tensor, rng: torch.Generator) -> Tensor:
        if like.ndim < 2:
            return gaussian(like, rng)
        rows = len(like)
        columns = like[0].numel()
        a_NR = gaussian(like.new_empty(rows, rank), rng)
        b_MR = gaussian(like.new_empty(columns, rank), rng)
        return (a_NR @ b_MR.T / rank**0.5).view_as(like)

    return draw


DRAWS: dict[Distribution, Draw] = {"gaussian": gaussian, "rademacher": rademacher}

NamedParameters = list[tuple[str, nn.Parameter]]
"""Parameters with their dotted names."""


def trainable_parameters(model: nn.Module) -> NamedParameters:
    """Those with `requires_grad`; a tied one once."""
    return [
        (name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad
    ]


MEMBER = "member"
"""The noise site of a population's member, or of one of several samples; its number follows."""


def member_noise(draw: Draw, like: Tensor, member: int, *site: noise.Word) -> Tensor:
    """A member's noise at a site: the same tensor whenever it is drawn under the same noise key."""
    return draw(like, noise.generator(like.device, MEMBER, member, *site))


def direction(parameters: NamedParameters, draw: Draw, member: int) -> dict[str, Tensor]:
    """A member's noise for every parameter, by name."""
    return {name: member_noise(draw, parameter, member, name) for name, parameter in parameters}


def perturbed(
    parameters: NamedParameters, draw: Draw, member: int, distance: float
) -> dict[str, Tensor]:
    """Copies of the parameters, w + distance * the member's noise."""
    return {
        name: parameter.detach() + distance * member_noise(draw, parameter, member, name)
        for name, parameter in parameters
    }


def loss_with(
    weights: Mapping[str, Tensor], model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
) -> Tensor:
    """The mean loss with some of the model's weights replaced; the model's own are not touched."""
    logits_BTV = functional_call(model, dict(weights), (tokens_BT,))
    return next_token_loss(logits_BTV, targets_BT)


def antithetic_losses(
    model: LanguageModel,
    pairs: int,
    draw: Draw,
    sigma: float,
    tokens_BT: Tensor,
    targets_BT: Tensor,
) -> tuple[Tensor, Tensor]:
    """The mean loss at the weights w, and losses_N2 at w + sigma z and w - sigma z for N pairs."""
    parameters = trainable_parameters(model)

    def loss_of(number: int) -> Tensor:
        member, is_second = divmod(number, 2)
        if member == pairs:
            return loss_with({}, model, tokens_BT, targets_BT)
        weights = perturbed(parameters, draw, member, -sigma if is_second else sigma)
        return loss_with(weights, model, tokens_BT, targets_BT)

    *losses, loss = processes.in_turn(loss_of, 2 * pairs + 1)
    return loss, torch.stack(losses).view(-1, 2)


def accumulate_directions(model: LanguageModel, draw: Draw, slopes_N: Tensor) -> None:
    """Add to the gradients the sum over N members of slope * direction, each drawn again."""
    for member, slope in enumerate(slopes_N):
        for name, parameter in trainable_parameters(model):
            accumulate_grad(parameter, slope * member_noise(draw, parameter, member, name))


Shaping = Literal["none", "ranks"]


def centred_ranks(losses: Tensor) -> Tensor:
    """Each loss's rank among all, evenly spaced from -0.5 (the least) to 0.5, in the same shape."""
    ranks = losses.flatten().argsort().argsort().view_as(losses)
    return ranks.to(losses.dtype) / (losses.numel() - 1) - 0.5


def unshaped(losses: Tensor) -> Tensor:
    """The losses as they are."""
    return losses


SHAPINGS: dict[Shaping, Callable[[Tensor], Tensor]] = {"none": unshaped, "ranks": centred_ranks}
"""Fitness shaping: how losses become the weights of a population's members."""


def differentiable_attention() -> AbstractContextManager[None]:
    """Inside, attention uses plain products: on a CPU fused kernels have no forward derivative."""
    return sdpa_kernel(SDPBackend.MATH)


def directional_derivatives(
    directions: Mapping[str, Tensor], model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean loss, and slopes_N: its derivatives along N directions, by forward-mode autodiff.

    `directions` has a tensor of shape (N, *parameter.shape) for each trainable parameter. What does
    not depend on the direction is computed once.
    """
    weights = {name: parameter.detach() for name, parameter in trainable_parameters(model)}

    def loss_at(changed: dict[str, Tensor]) -> Tensor:
        return loss_with(changed, model, tokens_BT, targets_BT)

    def derivative(tangents: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        loss, slope, *_ = torch.func.jvp(loss_at, (weights,), (tangents,))
        return loss, slope

    with differentiable_attention():
        losses_N, slopes_N = torch.vmap(derivative, randomness="same")(dict(directions))
    return losses_N[0], slopes_N
