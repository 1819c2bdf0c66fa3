"""Stop-gradient: the backward pass ends at a chosen height, and what is below stays as it was
drawn.
"""

from typing import Any

from pydantic import Field
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import Intervention
from lmlab.training.learning_rules.base import LearningRule, Pieces


class Options(Params):
    """Options of the intervention."""

    blocks: int = Field(ge=0)


class StopGradient(Intervention):
    """The lowest blocks, so many of them, and the embedding get no gradient; all above get theirs,
    bit for bit.

    A tied embedding still learns as the readout that it is. The readout alone is left with blocks =
    all there are.
    """

    on_the_way = True
    neutral = {"blocks": 0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.blocks = options.blocks
        if self.blocks:
            self.needs_backward()
        most = len(model.blocks) - (
            model.readout is None
        )  # something above has to be left to learn
        if self.blocks > most:
            raise UserError(
                f"params.yaml: interventions.stop_gradient.blocks is {self.blocks}, which leaves"
                " nothing of this model to"
                f" learn; set it to {most} or less"
            )

    def accumulate_gradients(self, model: LanguageModel, pieces: Pieces) -> Tensor:
        if not self.blocks:
            return self.rule.accumulate_gradients(model, pieces)

        def cut(block: nn.Module, inputs: Any, s_BTS: Tensor) -> Tensor:
            return s_BTS.detach()

        handle = model.blocks[self.blocks - 1].register_forward_hook(cut)
        try:
            return self.rule.accumulate_gradients(model, pieces)
        finally:
            handle.remove()
