"""Dropping tokens in the backward pass: the loss is that of all tokens, its gradient comes from a
random choice of them.
"""

from collections.abc import Callable
from typing import Any

from pydantic import Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lmlab.core.params import Params
from lmlab.model import noise
from lmlab.model.models.base import LanguageModel
from lmlab.training.interventions.base import Intervention
from lmlab.training.learning_rules.base import LearningRule, Pieces


class Options(Params):
    """Options of the intervention."""

    kept: float = Field(gt=0, le=1)


class TokenDropping(Intervention):
    """Each token's error goes into the backward pass with probability `kept`, divided by it; so the
    mean is the gradient.

    It acts where logits become a loss, in every rule whose backward pass starts there. Dropped
    tokens still cost their time: their errors are zeros.
    """

    on_the_way = True
    neutral = {"kept": 1.0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.kept = options.kept
        if self.kept < 1:
            self.needs_backward()

    def accumulate_gradients(self, model: LanguageModel, pieces: Pieces) -> Tensor:
        if self.kept == 1:
            return self.rule.accumulate_gradients(model, pieces)
        with _ThinnedErrors(self.kept, self.site):
            return self.rule.accumulate_gradients(model, pieces)


class _ThinnedErrors(TorchFunctionMode):
    """Cross-entropy whose gradient is that of a random choice of its rows."""

    def __init__(self, kept: float, site: str) -> None:
        super().__init__()
        self.kept, self.site = kept, site

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function is nn.functional.cross_entropy and args[0].requires_grad:
            logits_NV = args[0].view_as(args[0])
            weight_N1 = noise.dropout_mask(logits_NV[:, :1], self.kept, self.site)
            logits_NV.register_hook(lambda error_NV: error_NV * weight_N1)
            args = (logits_NV, *args[1:])
        return function(*args, **(kwargs or {}))
