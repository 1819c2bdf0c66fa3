"""The logit lens (nostalgebraist 2020): what the model would say if it stopped after each block, by
its loss.
"""

from collections.abc import Iterator

import torch

from lmlab.core.params import Params
from lmlab.evaluation.probes.base import Batch, Probe, Reading, Snapshot, module_name, streams
from lmlab.model.models.base import next_token_loss


class Options(Params):
    """This probe has none."""


class LogitLens(Probe):
    """`nats` per token on the probe batch with each block's output read out; behind the last it is
    the model's own loss.
    """

    def __init__(self, options: Options) -> None:
        super().__init__()

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        with torch.no_grad():
            outputs = [
                snapshot.model.head(x_BTD) for x_BTD in streams(snapshot.model, batch.tokens)
            ]
        for number, logits_BTV in enumerate(outputs):
            yield Reading(
                "nats", module_name(number), float(next_token_loss(logits_BTV, batch.targets))
            )
