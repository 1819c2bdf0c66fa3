"""Whether a model repeats a random sequence that it has just read (Olsson et al. 2022).

score = 1 - (loss in the second round) / (loss in the first); see also Elhage et al. 2021.
"""

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from lmlab.core.params import Params
from lmlab.evaluation.about import WINDOW
from lmlab.evaluation.measures.base import DoesNotApply, Measure, Numbers, Trained
from lmlab.evaluation.pairs import token_nats


class Options(Params):
    """Options of the measure."""

    sequences: int = Field(ge=1, le=100_000)
    seed: int = Field(ge=0)


class Induction(Measure):
    """`score` is 1 - (loss in the second round) / (loss in the first), first tokens left out.

    It is 1 if the second round is copied perfectly, 0 if it is predicted no better than the first
    (as by a uniform model), and negative if worse. The tokens are those of validation's text, all
    different within a round, so that each determines the next. A round fills half the context, or
    less if there are fewer distinct tokens (`period`).

    The tokenizer decides how many tokens there are and how hard they are, so scores compare within
    one. None of the numbers is better by itself: an untrained model has the lowest loss on random
    tokens, and a higher loss in the first round raises the score.
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
        device = next(trained.model.parameters()).device
        nats_BT = token_nats(trained.model, twice_BT.to(device))
        first = float(nats_BT[:, : period - 1].mean())
        second = float(nats_BT[:, period:].mean())
        if first == 0:
            raise DoesNotApply("this model's loss on random tokens is 0")
        return {
            "score": 1 - second / first,
            "first_nats": first,
            "second_nats": second,
            "period": period,
        }
