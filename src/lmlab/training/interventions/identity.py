"""No intervention: the learning rule as it is."""

from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import Intervention
from lmlab.training.learning_rules.base import LearningRule, MicroBatches


class Options(Params):
    """There are none."""


class Identity(Intervention):
    """It does nothing, costs nothing and has no state."""

    neutral = {}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)

    def accumulate_gradients(self, model: LanguageModel, micro_batches: MicroBatches) -> Tensor:
        return self.rule.accumulate_gradients(model, micro_batches)
