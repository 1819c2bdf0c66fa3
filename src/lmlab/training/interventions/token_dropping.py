"""Token dropping in the backward pass: the gradient comes from a random subset of the tokens.

    dL/dlogits of a token * m / kept,    m = 1 with probability kept, otherwise 0

The mean of the gradient is the true one, and the loss stays that of all tokens. It acts where
logits become a loss, in every rule whose backward pass starts there. Kept 1 turns it off. Dropped
tokens still cost their time: their errors are zeros. Noise is drawn for the tokens of each
micro-batch.
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
from lmlab.training.learning_rules.base import LearningRule, MicroBatches


class Options(Params):
    """Options of the intervention."""

    kept: float = Field(gt=0, le=1)


class TokenDropping(Intervention):
    """It has no state."""

    acts_in_backward = True
    neutral = {"kept": 1.0}

    def __init__(self, options: Options, model: LanguageModel, rule: LearningRule) -> None:
        super().__init__(rule)
        self.kept = options.kept
        if self.kept < 1:
            self.require_backward()

    def accumulate_gradients(self, model: LanguageModel, micro_batches: MicroBatches) -> Tensor:
        if self.kept == 1:
            return self.rule.accumulate_gradients(model, micro_batches)
        with _DroppedErrors(self.kept, self.site):
            return self.rule.accumulate_gradients(model, micro_batches)


class _DroppedErrors(TorchFunctionMode):
    """Inside, cross-entropy sends back the errors of a random subset of its rows, scaled up."""

    def __init__(self, kept: float, site: str) -> None:
        super().__init__()
        self.kept = kept
        self.site = site

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function is nn.functional.cross_entropy and args[0].requires_grad:
            logits_NV = args[0].view_as(args[0])  # a tensor of its own for the hook
            mask_N1 = noise.dropout_mask(logits_NV[:, :1], self.kept, self.site)
            logits_NV.register_hook(lambda error_NV: error_NV * mask_N1)
            args = (logits_NV, *args[1:])
        return function(*args, **(kwargs or {}))
