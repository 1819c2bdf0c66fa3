"""Three-factor Hebbian learning (Gerstner et al. 2018; as a covariance with the reward: Williams
1992).

A weight's gradient is the sum over tokens of pre * post * modulator: its input; its output's
deviation from what was expected; and one number for all weights, how much worse than expected the
loss became. Without `noise`, what is expected is the mean over the batch. With it, every map's
output is tried with noise of that share of its size, post is the noise (over its variance), and
what is expected of the loss is what it is without: the mean over many tries is then the slope of
each token's loss (in the limit of noise 0). A `trace` keeps pre * post for the losses of later
tokens, a share from each to the next; at 1 that is all a causal model's loss depends on, at the
price of more chance.

Replaced: every backward pass. Exact: the readout, whose modulator is the vector of errors (the
delta rule). Taught are linear maps, convolutions and tables of vectors that see whole windows (B,
T). Everything else is not taught: gains, maps in a loop over time that see one token at once, a
mixture's router and experts. Costs a forward pass, and with noise another.
"""

from collections.abc import Callable
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules.base import LearningRule

TINY = 1e-30
"""Least variance of noise that is divided by: a map whose outputs are all 0 is not tried."""


class Options(Params):
    """Options of the rule."""

    trace: float = Field(ge=0, le=1)
    noise: float = Field(ge=0)


class ThreeFactorHebbian(LearningRule):
    """The readout learns by its errors, every other map by the modulator."""

    backward = False
    short_of_one_batch = (
        "one number tells all weights how a try went, too little to find each"
        " one's share in 120 tries"
    )

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        if model.readout is None:
            raise UserError(
                "params.yaml: train.learning_rule: three_factor_hebbian teaches the readout by"
                " its errors, and this model"
                " has none; set train.model to one that has a readout, such as transformer"
            )
        self.trace, self.noise = options.trace, options.noise

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        assert model.readout is not None
        maps = Maps(model, tokens_BT, self.noise)
        with noise.repeatable():  # both passes drop the same
            with maps:
                tried_BTS = through_blocks(model, tokens_BT)
            plain_BTS = through_blocks(model, tokens_BT) if self.noise else tried_BTS
        logits_BTV = model.head(plain_BTS)
        loss = next_token_loss(logits_BTV, targets_BT)
        torch.autograd.backward(loss, inputs=list(model.readout.parameters()))
        with torch.no_grad():
            tried_BT = token_losses(model.head(tried_BTS), targets_BT)
            expected = token_losses(logits_BTV, targets_BT) if self.noise else tried_BT.mean()
            modulator_BT = over_later(tried_BT - expected, self.trace) / targets_BT.numel()
        maps.teach(modulator_BT)
        return loss.detach()


class Maps(TorchFunctionMode):
    """Inside, every map that is to be taught is remembered with its graph, which goes no further,
    and with its post.
    """

    FEATURES = {nn.functional.linear: -1, nn.functional.conv1d: 1, nn.functional.embedding: -1}
    """The functions whose weights are taught, each with the dimension of its output that is neither
    batch nor time.
    """

    def __init__(self, model: LanguageModel, tokens_BT: Tensor, share: float) -> None:
        super().__init__()
        self.rows, self.share = tokens_BT.shape, share
        self.names = {id(parameter): name for name, parameter in model.named_parameters()}
        self.remembered: list[tuple[Tensor, Tensor, int]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func not in self.FEATURES or id(args[1]) not in self.names:
            return func(*args, **kwargs)
        features = self.FEATURES[func]
        with torch.enable_grad():
            output = func(args[0].detach(), *args[1:], **kwargs)
        y_BTE = output.detach().movedim(features, -1)
        if y_BTE.shape[:-1] != self.rows:  # single steps of a loop, a mixture's tokens
            return output.detach()
        if not self.share:
            self.remembered.append((output, y_BTE - y_BTE.mean(dim=(0, 1)), features))
            return output.detach()
        sigma = self.share * y_BTE.square().mean().sqrt()
        noise_BTE = sigma * noise.normal(
            y_BTE, "tries", self.names[id(args[1])], len(self.remembered)
        )
        self.remembered.append((output, noise_BTE / sigma.square().clamp(min=TINY), features))
        return (y_BTE + noise_BTE).movedim(-1, features)

    def teach(self, modulator_BT: Tensor) -> None:
        """Add modulator * post * pre, summed over tokens, to the gradient of every map's weight;
        for its bias, pre is 1.
        """
        if not self.remembered:
            return
        outputs, posts, features = zip(*self.remembered, strict=True)
        signals = [
            (modulator_BT[..., None] * post).movedim(-1, at)
            for post, at in zip(posts, features, strict=True)
        ]
        torch.autograd.backward(outputs, signals)


def through_blocks(model: LanguageModel, tokens_BT: Tensor) -> Tensor:
    """The last block's output, without a graph."""
    with torch.no_grad():
        s_BTS = model.embed(tokens_BT)
        for block in model.blocks:
            s_BTS = block(s_BTS)
    return s_BTS


def token_losses(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """The loss of each token in nats."""
    precise = torch.promote_types(logits_BTV.dtype, torch.float32)
    losses = nn.functional.cross_entropy(
        logits_BTV.flatten(0, 1).to(precise), targets_BT.flatten(), reduction="none"
    )
    return losses.view_as(targets_BT)


def over_later(modulator_BT: Tensor, trace: float) -> Tensor:
    """m[t] + trace m[t + 1] + trace^2 m[t + 2] + ...: times pre * post at t, the same sum as traces
    of those times m.
    """
    time = torch.arange(modulator_BT.shape[1], device=modulator_BT.device)
    later_TT = (time[:, None] - time).to(modulator_BT.dtype)
    return modulator_BT @ torch.where(later_TT >= 0, trace ** later_TT.clamp(min=0), 0)
