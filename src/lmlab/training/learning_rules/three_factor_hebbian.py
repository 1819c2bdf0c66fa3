"""Three-factor Hebbian learning (Gerstner et al. 2018; as a covariance with reward, Williams 1992).

    grad_W = sum over tokens of modulator * post * pre

pre is the map's input, post its output's deviation from what was expected, and the modulator one
number for all weights: how much worse the loss became than expected. Without `noise`, expectations
are means over the batch. With it, every map's output gets noise of that share of its root mean
square, post is that noise over its variance, and the expected loss is the loss without noise:
averaged over many tries that is the slope of each token's loss (in the limit of noise 0). A `trace`
keeps pre * post for the losses of later tokens, passing on that share from each token to the next;
with 1 a token gets all the losses of a causal model that it can influence, at the price of a
noisier estimate.

No backward pass through hidden layers. The readout is trained exactly (the delta rule: its
modulator is the vector of errors). Trained by the three factors are linear layers, convolutions and
embeddings that see whole windows (B, T). Everything else is not trained: gains, maps in a loop over
time that see one token at once, a mixture's router and experts. Cost: a forward pass, and with
noise another.
"""

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._detached_blocks import last_block_output
from lmlab.training.learning_rules._linear_maps import LinearMapCall, LinearMapMode
from lmlab.training.learning_rules._token_losses import token_losses
from lmlab.training.learning_rules.base import LearningRule

SMALLEST_VARIANCE = 1e-30
"""Least variance of noise that is divided by: a map whose outputs are all 0 gets no noise."""


class Options(Params):
    """Options of the rule."""

    trace: float = Field(ge=0, le=1)
    noise: float = Field(ge=0)


class ThreeFactorHebbian(LearningRule):
    """It has no state."""

    backward = False
    cannot_overfit = (
        "one number tells all weights how a try went, too little to find each one's share in 120"
        " tries"
    )

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        if model.readout is None:
            raise UserError(
                "params.yaml: train.learning_rule: three_factor_hebbian trains the readout by its"
                " errors, and this model has none; set train.model to one that has a readout, such"
                " as transformer"
            )
        self.trace = options.trace
        self.noise = options.noise

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        assert model.readout is not None
        synapses = Synapses(tokens_BT.shape, self.noise)
        recording = LinearMapMode(dict(model.named_parameters()), tokens_BT, synapses.record)
        with noise.repeatable(), torch.no_grad():  # both passes drop the same units
            with recording:
                tried_BTS = last_block_output(model, tokens_BT)
            plain_BTS = last_block_output(model, tokens_BT) if self.noise else tried_BTS
        logits_BTV = model.head(plain_BTS)
        loss = next_token_loss(logits_BTV, targets_BT)
        torch.autograd.backward(loss, inputs=list(model.readout.parameters()))
        with torch.no_grad():
            tried_BT = token_losses(model.head(tried_BTS), targets_BT)
            expected = token_losses(logits_BTV, targets_BT) if self.noise else tried_BT.mean()
            modulator_BT = over_later(tried_BT - expected, self.trace) / targets_BT.numel()
        synapses.accumulate_grads(modulator_BT)
        return loss.detach()


@dataclass
class Synapse:
    """What one call of a map leaves for the weight update."""

    output: Tensor
    """With autograd's graph down to the map's weight and bias, and no further; it holds pre."""
    post_BTE: Tensor  # noqa: N815
    feature_dimension: int
    """Of the output: 1 for a convolution, otherwise the last."""


class Synapses:
    """Records pre and post of every map of a forward pass that sees a whole window (B, T)."""

    def __init__(self, batch_shape: torch.Size, noise_share: float) -> None:
        self.batch_shape = batch_shape
        self.noise_share = noise_share
        self.recorded: list[Synapse] = []

    def record(self, call: LinearMapCall, x: Tensor) -> Tensor:
        """The map's output, with noise where `noise_share` is not 0."""
        with torch.enable_grad():
            output = call.output(x.detach())
        features = call.feature_dimension
        y_BTE = output.detach().movedim(features, -1)
        if y_BTE.shape[:-1] != self.batch_shape:  # a single step of a loop, or a mixture's tokens
            return output.detach()
        if not self.noise_share:
            post_BTE = y_BTE - y_BTE.mean(dim=(0, 1))
            self.recorded.append(Synapse(output, post_BTE, features))
            return output.detach()
        sigma = self.noise_share * y_BTE.square().mean().sqrt()
        noise_BTE = sigma * noise.normal(y_BTE, "tries", call.name, len(self.recorded))
        post_BTE = noise_BTE / sigma.square().clamp(min=SMALLEST_VARIANCE)
        self.recorded.append(Synapse(output, post_BTE, features))
        return (y_BTE + noise_BTE).movedim(-1, features)

    def accumulate_grads(self, modulator_BT: Tensor) -> None:
        """Add modulator * post * pre, summed over tokens, to the gradients; for a bias pre is 1."""
        if not self.recorded:
            return
        outputs = []
        signals = []
        for synapse in self.recorded:
            signal_BTE = modulator_BT[..., None] * synapse.post_BTE
            outputs.append(synapse.output)
            signals.append(signal_BTE.movedim(-1, synapse.feature_dimension))
        torch.autograd.backward(outputs, signals)


def over_later(modulator_BT: Tensor, trace: float) -> Tensor:
    """m[t] + trace m[t + 1] + trace^2 m[t + 2] + ...

    Times pre * post at t, it sums up to the same as traces of pre * post times m.
    """
    time = torch.arange(modulator_BT.shape[1], device=modulator_BT.device)
    distance_TT = (time[:, None] - time).to(modulator_BT.dtype)
    weights_TT = torch.where(distance_TT >= 0, trace ** distance_TT.clamp(min=0), 0)
    return modulator_BT @ weights_TT
