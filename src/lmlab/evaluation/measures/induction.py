"""Whether a model goes on with what it has just read: random tokens twice over (Elhage et al. 2021;
Olsson et al. 2022).
"""

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.evaluation.about import WINDOW
from lmlab.evaluation.measures.base import DoesNotApply, Measure, Numbers, Trained


class Options(Params):
    """Options of the measure."""

    sequences: int = Field(ge=1, le=100_000)
    seed: int = Field(ge=0)


class Induction(Measure):
    """`score` is 1 - (loss in the second round) / (loss in the first), both without each round's
    first token.

    1: the second round is copied without fail; 0: no better than the first, as for a uniform model;
    negative: worse. Tokens are those of validation's text, all different within a round, so that
    each says what came after it. A round fills half the context, or less if there are not so many
    tokens. How many there are and what they cost is the tokenizer's doing, so scores compare within
    one. None of the numbers is better by itself: random tokens cost a model that knows nothing the
    least, and a dear first round raises the score.
    """

    facts = ("period",)
    decided_by: ClassVar = {"*": (WINDOW,)}

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, trained: Trained) -> Numbers:
        ids = np.unique(trained.shards.stream("validation"))
        ids = ids[ids != trained.shards.bos].astype(np.int64)
        period = min((trained.model.context + 1) // 2, len(ids))
        if period < 2:
            raise DoesNotApply("validation holds a single token only, or the context is too short")
        rng = np.random.default_rng(self.options.seed)
        once = np.stack([rng.permutation(ids)[:period] for _ in range(self.options.sequences)])
        twice_BT = torch.from_numpy(np.concatenate((once, once), axis=1))
        nats_BT = _costs(trained.model, twice_BT.to(next(trained.model.parameters()).device))
        first, second = (
            float(nats_BT[:, start : start + period - 1].mean()) for start in (0, period)
        )
        if first == 0:
            raise DoesNotApply("random tokens cost this model nothing")
        return {
            "score": 1 - second / first,
            "first_nats": first,
            "second_nats": second,
            "period": period,
        }


@torch.no_grad()
def _costs(model: nn.Module, tokens_BT: Tensor) -> Tensor:
    """Nats of every token but the first, shape (B, T - 1)."""
    logs_BTV = model(tokens_BT[:, :-1]).float().log_softmax(-1)
    return -logs_BTV.gather(-1, tokens_BT[:, 1:, None])[..., 0].cpu().double()
