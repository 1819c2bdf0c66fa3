"""AdamW (Loshchilov & Hutter 2019): Adam with weight decay apart from the gradient. The update is torch's own."""

import torch
from pydantic import Field

from lmlab.optimizers.base import Groups
from lmlab.params import Params


class Options(Params):
    """Options of the optimizer."""

    learning_rate: float = Field(gt=0)
    beta1: float = Field(ge=0, lt=1)
    beta2: float = Field(ge=0, lt=1)
    epsilon: float = Field(gt=0)
    weight_decay: float = Field(ge=0)


class AdamW(torch.optim.AdamW):
    """Weight decay acts on matrices alone, not on embeddings, the readout, gains or biases."""

    width_powers = {"matrices": -1.0, "readout": -1.0}

    def __init__(self, options: Options, groups: Groups) -> None:
        super().__init__(
            [
                {
                    "name": name,
                    "params": parameters,
                    "weight_decay": options.weight_decay if name == "matrices" else 0.0,
                }
                for name, parameters in groups.items()
            ],
            lr=options.learning_rate,
            betas=(options.beta1, options.beta2),
            eps=options.epsilon,
            fused=True,
        )
