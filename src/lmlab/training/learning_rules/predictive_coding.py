"""Predictive coding with fixed predictions (Whittington & Bogacz 2017; Millidge et al. 2020).

    E = 1/2 sum over k of (p_k - x_k)^2 + L(x_K);    e_k <- e_k + step * (J_(k+1)^T e_(k+1) - e_k)

The output of every block, and of the embedding, is a node with a value x_k of its own, which the
unit below predicts as p_k. Values descend the energy E for some `sweeps`; in each of them an error
e_k = p_k - x_k moves towards the error above it, sent back through the Jacobian J of the block
between them (the top one moves towards dL/dx_K). Then the weights descend E. Predictions and
Jacobians stay as the forward pass left them (fixed prediction: Millidge et al. 2020, Song et al.
2020); in strict_predictive_coding they follow the values.

The sweeps replace the one backward pass through all blocks; autograd is exact within a block and at
the head. With step 1, k sweeps are backprop in the upper k units and leave those below untrained;
as many sweeps as units (`sweeps` 0) are backprop. Cost: a forward pass and as many backward passes
as sweeps, and one more; no unit waits for another.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.learning_rules._detached_blocks import DetachedBlocks
from lmlab.training.learning_rules.base import LearningRule


class Options(Params):
    """Options of the rule."""

    sweeps: int = Field(ge=0)
    step: float = Field(gt=0, le=1)


class PredictiveCoding(LearningRule):
    """It has no state. Errors have the mean loss's scale: settled ones are gradients at outputs."""

    backward = False

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        self.sweeps = options.sweeps or len(model.blocks) + 1
        self.step = options.step

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        blocks = DetachedBlocks(model, tokens_BT, full_precision=True)
        values = blocks.leaves
        loss = next_token_loss(blocks.logits_BTV, targets_BT)
        torch.autograd.backward(loss)
        loss_slope = values[-1].grad
        assert loss_slope is not None
        errors = [torch.zeros_like(value) for value in values]
        for _ in range(self.sweeps):
            from_above = [
                _through_block(output, value, error)
                for output, value, error in zip(blocks.outputs[1:], values, errors[1:])
            ]
            targets = [*from_above, loss_slope]
            errors = [
                error + self.step * (target - error)
                for error, target in zip(errors, targets, strict=True)
            ]
        blocks.backward_all(errors)
        return loss.detach()


def _through_block(output: Tensor, block_input: Tensor, error: Tensor) -> Tensor:
    """J^T error: the error at a block's output carried to its input; keeps the graph for reuse."""
    (carried,) = torch.autograd.grad(
        output, block_input, error, retain_graph=True, materialize_grads=True
    )
    return carried
