"""What an intervention is: a learning rule with something done to it, or to its gradients, on the way."""

from abc import abstractmethod

from torch import Tensor

from lmlab.learning_rules.base import LearningRule
from lmlab.models.base import LanguageModel
from lmlab.optimizers.base import Groups
from lmlab.parts import Choice

KEYS = ["intervention", "second_intervention", "third_intervention"]
"""The params that choose them, in the order in which they stand around the rule."""


class Intervention(LearningRule):
    """Final classes take `(options, model, rule)` and are rules themselves, so that one can stand around another.

    At the options' neutral values the gradients are those of the rule, bit for bit.
    """

    def __init__(self, rule: LearningRule) -> None:
        super().__init__()
        self.rule = rule
        self.backward = rule.backward
        self.short_of_one_batch = rule.short_of_one_batch

    def own_groups(self, model: LanguageModel) -> Groups:
        return self.rule.own_groups(model)

    @abstractmethod
    def assign_gradients(self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """As the rule does, with the intervention. Only what this call adds to the gradients is changed."""


def build_rule(parts: dict[str, Choice], model: LanguageModel) -> LearningRule:
    """The learning rule, in the interventions that stand around it: the first is the one next to it."""
    rule: LearningRule = parts["learning_rule"].build(model)
    for key in KEYS:
        rule = parts[key].build(model, rule)
    return rule
