"""Distillation: learn also from the model that training goes on from (Hinton et al. 2015), across
tokenizers (Minixhofer et al. 2025, "Universal cross-tokenizer distillation via approximate
likelihood matching", without its debiasing of chunks).

For every chunk of text that both tokenizers cut out, with t and s its nats under the teacher and
under the model that learns, and τ the temperature:

    L = mean over targets of (1 - share) CE + share τ KL(e^(-t/τ) ‖ e^(-s/τ))

where KL is that of two coins. Its slope in s is 1 - t/s for a high τ: a chunk teaches as in plain
cross-entropy while the model is far behind, and nothing once it is as good as its teacher. Targets
that lie in no chunk count by their cross-entropy alone. Cost: a pass of the teacher beside
backprop's three; FLOPs in tables are backprop's, as for every rule.
"""

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel, next_token_loss
from lmlab.training.distilling import NONE, Chunks
from lmlab.training.learning_rules._token_losses import token_losses
from lmlab.training.learning_rules.base import LearningRule

LEAST, MOST = 1e-6, 1e6
"""Nats of a chunk: nothing is certain, and nothing impossible."""


class Options(Params):
    """Options of the rule."""

    share: float = Field(ge=0, le=1)
    temperature: float = Field(gt=0)


class Distillation(LearningRule):
    """Backprop of a mixed loss. Where it has been given no teacher, as under a probe, it is
    backprop.
    """

    backward = True
    final_in_backward = True
    needs_teacher = True

    def __init__(self, options: Options, model: LanguageModel) -> None:
        super().__init__()
        self.share, self.temperature = options.share, options.temperature

    def assign_gradients(
        self, model: LanguageModel, tokens_BT: Tensor, targets_BT: Tensor
    ) -> Tensor:
        logits_BTV = model(tokens_BT)
        loss = next_token_loss(logits_BTV, targets_BT)
        if self.teacher is None or not self.share:
            torch.autograd.backward(loss)
        else:
            chunks = self.teacher.chunks(tokens_BT, targets_BT)
            nats_BT = token_losses(logits_BTV, targets_BT)
            torch.autograd.backward(self.objective(nats_BT, chunks))
        return loss.detach()

    def objective(self, nats_BT: Tensor, chunks: Chunks) -> Tensor:
        """The mixed loss, from the cross-entropy of each target."""
        is_in_one_BT = chunks.of_targets != NONE
        weight_BT = torch.where(is_in_one_BT, 1 - self.share, 1.0)
        nats_C = torch.zeros_like(chunks.nats).index_add(
            0, chunks.of_targets[is_in_one_BT], nats_BT[is_in_one_BT].double()
        )
        taught = divergence(chunks.nats, nats_C, self.temperature).sum()
        return ((weight_BT * nats_BT).sum() + self.share * taught) / nats_BT.numel()


def divergence(teacher_C: Tensor, own_C: Tensor, temperature: float) -> Tensor:
    """τ KL(p ‖ q) of coins with p = e^(-t/τ) and q = e^(-s/τ), from the nats t and s."""
    t_C, s_C = (nats_C.clamp(LEAST, MOST) / temperature for nats_C in (teacher_C, own_C))
    p_C = (-t_C).exp()
    log_not_p_C, log_not_q_C = (torch.log(-torch.expm1(-nats_C)) for nats_C in (t_C, s_C))
    return temperature * (p_C * (s_C - t_C) - torch.expm1(-t_C) * (log_not_p_C - log_not_q_C))
