"""Prequential code length: what the training text costs if each batch is paid for before it is
learned from.

The sum of a learner's losses on data it has not seen yet is a length in which that data can be
sent, to someone who trains the same model along (Dawid 1984; for networks Blier & Ollivier 2018):
the sooner a run learns, the shorter. It is sample efficiency in bits, with no split held out.
"""

import math
from typing import ClassVar

import torch
from pydantic import Field

from lmlab.core.params import Params
from lmlab.data.batches import Batches
from lmlab.evaluation.about import WINDOW
from lmlab.evaluation.measures.base import DoesNotApply, Measure, Numbers, Trained, evenly
from lmlab.model.models.base import next_token_loss


class Options(Params):
    """Options of the measure."""

    windows: int = Field(ge=1)


class Prequential(Measure):
    """The first pass over the train split, the windows in the order they were trained on.

    `bits_per_byte` is the whole pass. Where training ended before, the windows it never saw are
    paid at the final model's mean loss on `windows` of them, spread evenly: `learning` is the part
    coded while learning, `rest` the other, each with its `bytes` and `bits`; `rest` is not there
    after a whole pass. What the training log says counts: the loss in training mode (dropout
    included), BOS tokens included, means over the steps between two lines; where the pass ends
    between two, the line counts by its share. A window sees nothing of the text before it, so the
    first tokens of each are dear and a longer context saves bits. The odd ends of the text that
    fill no window are no part of the sum. `bits_per_byte` is of the raw text, and compares across
    tokenizers.
    """

    less_is_better = ("bits_per_byte",)
    across_tokenizers = ("bits_per_byte",)
    facts = ("bits", "bytes", "learning.*", "rest.*")
    decided_by: ClassVar = {"*": ("train.log_every", WINDOW)}

    def __init__(self, options: Options) -> None:
        self.windows = options.windows

    def measure(self, trained: Trained) -> Numbers:
        saved, shards, context = trained.saved, trained.shards, trained.model.context
        rows = [
            (int(row["step"]), float(row["train_nats"]))
            for row in trained.log
            if "train_nats" in row
        ]
        if not rows:
            raise DoesNotApply("the training log has no losses")
        order = Batches(shards, 1, context, saved.data_seed, saved.pool_tokens)
        batch = saved.size.batch
        seen, nats = first_pass(rows, order.first_pass / batch)
        coded, whole = round(seen * batch), order.first_pass
        bytes_of = context * shards.count("train", "bytes") / order.tokens
        parts = {
            "learning": {"bits": nats * batch * context / math.log(2), "bytes": coded * bytes_of}
        }
        if coded < whole:
            mean = self._mean(trained, order, coded, whole)
            rest = whole - coded
            parts["rest"] = {"bits": rest * context * mean / math.log(2), "bytes": rest * bytes_of}
        bits, size = (sum(part[key] for part in parts.values()) for key in ("bits", "bytes"))
        return {"bits_per_byte": bits / size, "bits": bits, "bytes": size, **parts}

    @torch.no_grad()
    def _mean(self, trained: Trained, order: Batches, first: int, end: int) -> float:
        """Nats per token of the final model on some of the windows from `first` on."""
        device = next(trained.model.parameters()).device
        some = [order.at(window) for window in evenly(first, end - 1, self.windows)]
        losses = [
            float(next_token_loss(trained.model(tokens.to(device)), targets.to(device)))
            for tokens, targets in some
        ]
        return sum(losses) / len(losses)


def first_pass(rows: list[tuple[int, float]], steps: float) -> tuple[float, float]:
    """From a log's (step, mean loss since the row before), how many of the first `steps` it has,
    and the sum of their losses.

    `steps` may end within a step; of the row it ends in, the mean is taken for each step.
    """
    seen = total = 0.0
    for step, mean in rows:
        share = min(step, steps) - seen
        if share <= 0:
            break
        total += share * mean
        seen += share
    return seen, total
