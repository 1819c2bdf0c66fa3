"""Layer-wise learning rates (Howard & Ruder 2018): a block's is `factor` times the next one's.

    rate of a parameter = the optimizer's * factor^(number of blocks above it)

The last block, and all above it, have the optimizer's rate. The embedding counts as one block below
the first; a tied embedding counts as the readout, which is above all blocks. A rule's own
parameters have the full rate, or their leader's. The rate changes and not the gradient, whose size
would mean nothing to Adam. Factor 1 turns it off. It costs nothing.
"""

from pydantic import Field
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import Intervention, blocks_above
from lmlab.training.learning_rules.base import LearningRule, MicroBatches


class Options(Params):
    """Options of the intervention."""

    factor: float = Field(gt=0)


class LayerRates(Intervention):
    """It has no state."""

    neutral = {"factor": 1.0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        counts = blocks_above(model)
        try:
            self.factors = {name: options.factor**count for name, count in counts.items()}
        except OverflowError:
            raise UserError(
                f"params.yaml: interventions.layer_rates.factor: {options.factor:g} to the power"
                f" of {max(counts.values())}, the number of blocks, is more than a number can"
                " hold; set it nearer to 1"
            ) from None

    def rate_factor(self, name: str) -> float:
        return super().rate_factor(name) * self.factors[name]

    def accumulate_gradients(self, model: LanguageModel, micro_batches: MicroBatches) -> Tensor:
        return self.rule.accumulate_gradients(model, micro_batches)
