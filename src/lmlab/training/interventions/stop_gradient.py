"""Stop-gradient: the backward pass ends above the lowest blocks, which keep their initial weights.

    grad_W = dL/dW above block `blocks`, none in the lowest `blocks` blocks and the embedding

Everything above gets its gradient bit for bit. A tied embedding still gets the gradient of its use
as the readout. With all blocks stopped, only the head is left to train. 0 turns it off. It costs
nothing, and saves the backward pass of what is stopped.
"""

from typing import Any

from pydantic import Field
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import Intervention
from lmlab.training.learning_rules.base import LearningRule, MicroBatches


class Options(Params):
    """Options of the intervention."""

    blocks: int = Field(ge=0)


class StopGradient(Intervention):
    """It has no state."""

    acts_in_backward = True
    neutral = {"blocks": 0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.blocks = options.blocks
        if self.blocks:
            self.require_backward()
        most = len(model.blocks)
        if model.readout is None:
            most -= 1  # something has to be left to train
        if self.blocks > most:
            raise UserError(
                f"params.yaml: interventions.stop_gradient.blocks is {self.blocks}, which leaves"
                f" nothing of this model to train; set it to {most} or less"
            )

    def accumulate_gradients(self, model: LanguageModel, micro_batches: MicroBatches) -> Tensor:
        if not self.blocks:
            return self.rule.accumulate_gradients(model, micro_batches)

        def detach(block: nn.Module, inputs: Any, s_BTS: Tensor) -> Tensor:
            return s_BTS.detach()

        handle = model.blocks[self.blocks - 1].register_forward_hook(detach)
        try:
            return self.rule.accumulate_gradients(model, micro_batches)
        finally:
            handle.remove()
