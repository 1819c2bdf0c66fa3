"""How much better a model is on text it was trained on: its loss there, and the distance from
validation.
"""

import numpy as np
from pydantic import Field

from lmlab.core.params import Params
from lmlab.evaluation.measures.base import SCORED, Measure, Numbers, Trained, evenly
from lmlab.model.scoring import score

STRIDES = 16
"""In each stretch of text."""


class Options(Params):
    """Options of the measure."""

    tokens: int = Field(ge=1)


class GeneralisationGap(Measure):
    """About `tokens` of the train split in stretches spread evenly, by the windows and the stride
    of the splits' scores.

    A window's length of text stands before each stretch and is not charged, so every token sees as
    much as it would on validation. `train` is the loss on it; `gap` is validation minus that, in
    nats per token and bits per byte: 0 for a model that has learned nothing by heart, if train and
    validation are equally hard. They need not be, since they are other texts. Neither is better by
    being small: a model that has learned nothing has no gap, and one that has learned everything by
    heart no loss on this text. Over another tokenizer the stretches are other text.
    """

    facts = ("train.tokens",)
    decided_by = SCORED

    def __init__(self, options: Options) -> None:
        self.tokens = options.tokens

    def measure(self, trained: Trained) -> Numbers:
        model, stream, bos = trained.model, trained.train, trained.shards.bos
        charged = STRIDES * trained.stride
        length = min(len(stream), model.context + 1 + charged)
        before = model.context if length > model.context + 1 else 0
        nats = []
        stretches = max(1, min(-(-self.tokens // charged), (len(stream) - 1) // charged))
        for start in evenly(0, len(stream) - length, stretches):
            stretch = stream[start : start + length]
            scored = score(model, stretch, bos, model.context, trained.stride)
            nats.append(scored.nats_by_target[before:])
        all_nats = np.concatenate(nats)
        text = all_nats[~np.isnan(all_nats)]
        train = float(text.mean())
        validation = trained.scores["validation"].nats_per_token
        bits = {
            split: trained.bits_per_byte(split, cost)
            for split, cost in (("train", train), ("validation", validation))
        }
        return {
            "train": {"nats_per_token": train, "bits_per_byte": bits["train"], "tokens": len(text)},
            "gap": {
                "nats_per_token": validation - train,
                "bits_per_byte": bits["validation"] - bits["train"],
            },
        }
