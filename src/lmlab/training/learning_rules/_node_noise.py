"""Noise at nodes and what it does to each token's loss: for rules that need no backward pass.

A node is one number in the output of a linear map. As in `_weight_noise`, noise is drawn again
rather than kept and no pass keeps a graph; callers hold `torch.no_grad()` and `noise.repeatable()`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as forward_mode
from torch import Tensor, nn
from torch.func import functional_call

from lmlab.model.models.base import LanguageModel
from lmlab.training.learning_rules._linear_maps import LinearMapCall, LinearMapMode
from lmlab.training.learning_rules._token_losses import token_losses
from lmlab.training.learning_rules._weight_noise import (
    Draw,
    NamedParameters,
    differentiable_attention,
    member_noise,
    perturbed,
    trainable_parameters,
)
from lmlab.training.learning_rules.base import accumulate_grad


@dataclass(frozen=True)
class NoiseGroup:
    """What gets noise in the same pass."""

    weights: NamedParameters
    """Weights of linear maps: their maps' nodes get noise."""
    outside: NamedParameters
    """Parameters outside linear maps (gains, decays), which get noise themselves."""


def noise_groups(model: nn.Module, maps_at_once: int) -> list[NoiseGroup]:
    """`maps_at_once` linear maps at a time, in the model's order, then everything outside maps.

    With 0, everything is in one group.
    """
    maps = [
        module
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding)
    ]
    weight_ids = {id(module.weight) for module in maps}
    inside_ids = {
        id(parameter) for module in maps for parameter in module.parameters(recurse=False)
    }
    parameters = trainable_parameters(model)
    weights = [(name, parameter) for name, parameter in parameters if id(parameter) in weight_ids]
    outside = [
        (name, parameter) for name, parameter in parameters if id(parameter) not in inside_ids
    ]
    if not maps_at_once:
        return [NoiseGroup(weights, outside)]
    starts = range(0, len(weights), maps_at_once)
    groups = [NoiseGroup(weights[start : start + maps_at_once], []) for start in starts]
    return [*groups, NoiseGroup([], outside)] if outside else groups


def node_noise(call: LinearMapCall, y: Tensor, draw: Draw, member: int) -> Tensor:
    """A member's noise for the output y of a map.

    A token's noise does not depend on which other tokens an expert is sent.
    """
    if call.token_rows_N is None:
        return member_noise(draw, y, member, call.name, call.repetition)
    y_of_all_tokens = y.new_empty(call.batch_shape.numel(), y.shape[-1])
    noise_of_all_tokens = member_noise(draw, y_of_all_tokens, member, call.name, call.repetition)
    return noise_of_all_tokens[call.token_rows_N]


def credit(change_BT: Tensor) -> Tensor:
    """The change of all losses that noise at a token can reach: there and later, by causality."""
    return change_BT.flip(1).cumsum(dim=1).flip(1)


def credit_by_row(call: LinearMapCall, y: Tensor, credit_BT: Tensor) -> Tensor:
    """Each token's credit, in a shape that broadcasts over the rows it has in a map's output y.

    Where rows do not stand for single tokens (a table of positions), every row gets the change of
    the whole loss: that is unbiased too, but noisier.
    """
    batch, time = call.batch_shape
    shape = y.shape
    if call.token_rows_N is not None:
        return credit_BT.flatten()[call.token_rows_N, None]
    if call.is_convolution and shape[::2] == (batch, time):
        return credit_BT[:, None, :]
    if len(shape) == 3 and shape[:2] == (batch, time):
        return credit_BT[:, :, None]
    has_plain_rows = len(shape) == 2 and not call.is_lookup and not call.is_convolution
    if has_plain_rows and shape[0] == batch * time:
        return credit_BT.flatten()[:, None]
    if has_plain_rows and shape[0] == batch and call.repetition < time:
        return credit_BT[:, call.repetition, None]
    return credit_BT[:, 0].sum()


def shares_of_mean_loss(
    model: LanguageModel, weights: Mapping[str, Tensor], tokens_BT: Tensor, targets_BT: Tensor
) -> Tensor:
    """losses_BT, whose sum is the mean loss, with some of the model's weights replaced."""
    if weights:
        logits_BTV = functional_call(model, dict(weights), (tokens_BT,))
    else:
        logits_BTV = model(tokens_BT)
    return token_losses(logits_BTV, targets_BT) / targets_BT.numel()


def losses_with_node_noise(
    model: LanguageModel,
    group: NoiseGroup,
    member: int,
    draw: Draw,
    sigma: float,
    tokens_BT: Tensor,
    targets_BT: Tensor,
) -> Tensor:
    """losses_BT with sigma * noise at the group's nodes and in its parameters outside maps."""
    weights = perturbed(group.outside, draw, member, sigma)

    def add_noise(call: LinearMapCall, x: Tensor) -> Tensor:
        y = call.output(x)
        return y + sigma * node_noise(call, y, draw, member)

    with LinearMapMode(dict(group.weights), tokens_BT, add_noise):
        return shares_of_mean_loss(model, weights, tokens_BT, targets_BT)


def derivatives_along_node_noise(
    model: LanguageModel,
    group: NoiseGroup,
    member: int,
    draw: Draw,
    tokens_BT: Tensor,
    targets_BT: Tensor,
) -> tuple[Tensor, Tensor]:
    """losses_BT, and their derivatives with respect to sigma in `losses_with_node_noise` at 0."""

    def add_tangent(call: LinearMapCall, x: Tensor) -> Tensor:
        y = call.output(x)
        return y + _dual(torch.zeros_like(y), node_noise(call, y, draw, member))

    with forward_mode.dual_level(), differentiable_attention():
        weights = {
            name: _dual(parameter.detach(), member_noise(draw, parameter, member, name))
            for name, parameter in group.outside
        }
        with LinearMapMode(dict(group.weights), tokens_BT, add_tangent):
            dual_BT = shares_of_mean_loss(model, weights, tokens_BT, targets_BT)
        losses_BT, slopes_BT = forward_mode.unpack_dual(dual_BT)  # type: ignore[no-untyped-call]
    if slopes_BT is None:  # no noise reached the loss
        slopes_BT = torch.zeros_like(losses_BT)
    return losses_BT, slopes_BT


def _dual(value: Tensor, tangent: Tensor) -> Tensor:
    """The value, with the direction along which forward mode differentiates what follows."""
    dual: Tensor = forward_mode.make_dual(value, tangent)  # type: ignore[no-untyped-call]
    return dual


@dataclass
class NodeSample:
    """One draw of noise for a group, identified by its member, and the credit it earned."""

    group: NoiseGroup
    member: int
    credit_BT: Tensor  # noqa: N815


def accumulate_node_gradients(
    model: LanguageModel, samples: list[NodeSample], draw: Draw, tokens_BT: Tensor
) -> None:
    """Add to the gradients what the samples estimate: grad_y = sum of credit * noise at each node.

    A further forward pass draws the noise again and multiplies grad_y with each map's input, so
    that no input has to be kept for later.
    """
    samples_of: dict[str, list[NodeSample]] = {}
    weights: dict[str, Tensor] = {}
    for sample in samples:
        change_of_loss = sample.credit_BT[:, 0].sum()
        for name, parameter in sample.group.outside:
            along = member_noise(draw, parameter, sample.member, name)
            accumulate_grad(parameter, change_of_loss * along)
        for name, weight in sample.group.weights:
            samples_of.setdefault(name, []).append(sample)
            weights[name] = weight

    def accumulate(call: LinearMapCall, x: Tensor) -> Tensor:
        y = call.output(x)
        grad_y = torch.zeros_like(y)
        for sample in samples_of[call.name]:
            weight_of_noise = credit_by_row(call, y, sample.credit_BT)
            grad_y += weight_of_noise * node_noise(call, y, draw, sample.member)
        call.accumulate_grads(x, grad_y)
        return y

    with LinearMapMode(weights, tokens_BT, accumulate):
        model(tokens_BT)
