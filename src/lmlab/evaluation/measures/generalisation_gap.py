"""How much lower the loss is on text the model was trained on than on validation.

gap = loss on validation - loss on the train split.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lmlab.core.params import Params
from lmlab.evaluation.measures.base import FROM_SCORES, Measure, Numbers, Trained, evenly
from lmlab.model.scoring import score

STRIDES = 16
"""Strides that are scored in each stretch of text."""


class Options(Params):
    """Options of the measure."""

    tokens: int = Field(ge=1)


class GeneralisationGap(Measure):
    """The loss on about `tokens` tokens of the train split, and its distance from validation.

    The train split is scored in evenly spaced stretches, with the windows and the stride of the
    splits' scores. A window of text before each stretch is read but not scored, so every token has
    as much context as on validation. `train` is the loss on the stretches. `gap` is validation
    minus that, in nats per token and bits per byte: 0 for a model that has memorised nothing, if
    both splits are equally hard, which different texts need not be.

    Neither is better by being small: a model that has learned nothing has no gap, and one that has
    memorised everything has no loss on this text. With another tokenizer the stretches are other
    text.
    """

    facts = ("train.tokens",)
    decided_by = FROM_SCORES

    def __init__(self, options: Options) -> None:
        self.tokens = options.tokens

    def measure(self, trained: Trained) -> Numbers:
        train_nats = self._train_nats(trained)
        train = float(train_nats.mean())
        validation = trained.scores["validation"].nats_per_token
        train_bits = trained.bits_per_byte("train", train)
        validation_bits = trained.bits_per_byte("validation", validation)
        return {
            "train": {
                "nats_per_token": train,
                "bits_per_byte": train_bits,
                "tokens": len(train_nats),
            },
            "gap": {
                "nats_per_token": validation - train,
                "bits_per_byte": validation_bits - train_bits,
            },
        }

    def _train_nats(self, trained: Trained) -> NDArray[np.float64]:
        """Nats of each scored token of the stretches."""
        model, stream, bos = trained.model, trained.train, trained.shards.bos
        scored_length = STRIDES * trained.stride
        length = min(len(stream), model.context + 1 + scored_length)
        unscored = model.context if length > model.context + 1 else 0
        most = (len(stream) - 1) // scored_length
        stretches = max(1, min(-(-self.tokens // scored_length), most))
        nats = []
        for start in evenly(0, len(stream) - length, stretches):
            stretch = stream[start : start + length]
            scored = score(model, stretch, bos, model.context, trained.stride)
            nats.append(scored.nats_by_target[unscored:])
        all_nats = np.concatenate(nats)
        return all_nats[~np.isnan(all_nats)]
