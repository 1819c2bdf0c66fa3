"""The logit lens: the model's loss if it stopped after each block (nostalgebraist 2020)."""

from collections.abc import Iterator

import torch

from lmlab.core.params import Params
from lmlab.evaluation.probes.base import Batch, Probe, Reading, Snapshot, block_outputs
from lmlab.model.models.base import next_token_loss


class Options(Params):
    """This probe has none."""


class LogitLens(Probe):
    """`nats` per token on the probe batch, with each block's output passed to the output head.

    After the last block it is the model's own loss.
    """

    reading = (
        "Loss in nats per token if the model stopped after each block. It usually falls from block"
        " to block down to the model's own loss after the last; the logarithm of the vocabulary"
        " size is that of a uniform guess, and early blocks may lie above it."
    )

    def __init__(self, options: Options) -> None:
        super().__init__()

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        model = snapshot.model
        with torch.no_grad():
            logits = {
                block: model.head(s_BTS)
                for block, s_BTS in block_outputs(model, batch.tokens).items()
            }
        for block, logits_BTV in logits.items():
            yield Reading("nats", block, float(next_token_loss(logits_BTV, batch.targets)))
