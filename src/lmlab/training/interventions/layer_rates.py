"""A learning rate for every block (Howard & Ruder 2018): each moves faster, or slower, than the one
above it.
"""

from pydantic import Field
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import Intervention, blocks_above
from lmlab.training.learning_rules.base import LearningRule, Pieces


class Options(Params):
    """Options of the intervention."""

    factor: float = Field(gt=0)


class LayerRates(Intervention):
    """The highest block, and all above, have the optimizer's learning rate; each block below, the
    next one's times factor.

    What is below the blocks (the embedding) counts as one more; a tied embedding is the readout,
    which is above. Parameters of a rule's own have the full rate, or their leader's. It is the rate
    that changes, not the gradient, whose size would mean nothing to Adam.
    """

    neutral = {"factor": 1.0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        heights = blocks_above(model)
        try:
            self.factors = {name: options.factor**blocks for name, blocks in heights.items()}
        except OverflowError:
            raise UserError(
                f"params.yaml: interventions.layer_rates.factor: {options.factor:g} to the power"
                f" of {max(heights.values())},"
                " the number of blocks, is more than a number can hold; set it nearer to 1"
            ) from None

    def rate_factor(self, name: str) -> float:
        return super().rate_factor(name) * self.factors[name]

    def accumulate_gradients(self, model: LanguageModel, pieces: Pieces) -> Tensor:
        return self.rule.accumulate_gradients(model, pieces)
