"""Prequential code length: loss on the training text, each batch scored before it is learned.

The sum of a learner's losses on data it has not seen yet is the length of a code for that data, for
a receiver who trains the same model along (Dawid 1984; for networks Blier & Ollivier 2018). The
sooner a run learns, the shorter the code: it is sample efficiency in bits, with no split held out.
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
    """The code length of the first pass over the train split, in the order it was trained on.

    `bits_per_byte` is of the whole pass and of the raw text, so it compares across tokenizers. If
    training ended earlier, the windows it never saw are scored at the final model's mean loss on
    `windows` of them, evenly spaced. `learning` is the part coded while learning and `rest` the
    other, each with its `bytes` and `bits`; after a whole pass there is no `rest`.

    The losses are those of the training log: in training mode (with dropout), BOS tokens included,
    means over the steps between two lines. If the pass ends between two lines, the later one counts
    by its share. A window has no context before it, so its first tokens have a high loss, and a
    longer context saves bits. Leftover text that fills no window is not counted.
    """

    less_is_better = ("bits_per_byte",)
    across_tokenizers = ("bits_per_byte",)
    facts = ("bits", "bytes", "learning.*", "rest.*")
    decided_by: ClassVar = {"*": ("train.log_every", WINDOW)}

    def __init__(self, options: Options) -> None:
        self.windows = options.windows

    def measure(self, trained: Trained) -> Numbers:
        saved, shards, context = trained.saved, trained.shards, trained.model.context
        if saved.earlier:
            raise DoesNotApply("the model had been trained on text before this run")
        losses = [
            (int(row["step"]), float(row["train_nats"]))
            for row in trained.log
            if "train_nats" in row
        ]
        if not losses:
            raise DoesNotApply("the training log has no losses")
        order = Batches(shards, 1, context, saved.data_seed, saved.pool_tokens)
        batch = saved.size.batch
        window_bytes = context * shards.count("train", "bytes") / order.tokens
        steps, nats = first_pass(losses, order.first_pass / batch)
        learned = round(steps * batch)
        rest = order.first_pass - learned
        parts = {
            "learning": {
                "bits": nats * batch * context / math.log(2),
                "bytes": learned * window_bytes,
            }
        }
        if rest > 0:
            mean = self._mean_loss(trained, order, learned)
            parts["rest"] = {
                "bits": rest * context * mean / math.log(2),
                "bytes": rest * window_bytes,
            }
        bits = sum(part["bits"] for part in parts.values())
        size = sum(part["bytes"] for part in parts.values())
        return {"bits_per_byte": bits / size, "bits": bits, "bytes": size, **parts}

    @torch.no_grad()
    def _mean_loss(self, trained: Trained, order: Batches, first: int) -> float:
        """Nats per token of the final model on windows of the first pass from `first` on."""
        device = next(trained.model.parameters()).device
        losses = []
        for window in evenly(first, order.first_pass - 1, self.windows):
            tokens, targets = order.at(window)
            loss = next_token_loss(trained.model(tokens.to(device)), targets.to(device))
            losses.append(float(loss))
        return sum(losses) / len(losses)


def first_pass(losses: list[tuple[int, float]], steps: float) -> tuple[float, float]:
    """How many of the first `steps` a log covers, and the sum of their losses.

    The log has pairs of a step and the mean loss since the pair before. If `steps` ends between two
    of them, each step there counts with their mean.
    """
    seen = total = 0.0
    for step, mean in losses:
        new = min(step, steps) - seen
        if new <= 0:
            break
        total += new * mean
        seen += new
    return seen, total
