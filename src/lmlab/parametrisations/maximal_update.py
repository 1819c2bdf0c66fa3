"""Maximal-update parametrisation (Yang et al. 2022, "Tensor Programs V"): the best learning rate stays put as width grows.

At the base width it is the standard parametrisation. At r times that width, matrices between hidden layers start at r^-1/2
of their standard deviation and the readout at r^-1, and each group of parameters learns at r^p of its rate, p by the theory:
with Adam, -1 for matrices and the readout, 0 for embeddings and vectors (table 3, with every multiplier moved into first
weights and rates). Then what a step changes in each activation neither vanishes nor explodes with the width. It asks that
a head's width stay the same, so leave the number of heads to the width.
"""

import torch
from pydantic import Field

from lmlab.errors import UserError
from lmlab.models.base import LanguageModel
from lmlab.optimizers.base import parameter_groups
from lmlab.parametrisations.base import Parametrisation
from lmlab.params import Params


class Options(Params):
    """Options of the parametrisation."""

    base_width: int = Field(ge=1)


class MaximalUpdate(Parametrisation):
    """Everything by the ratio r = width / base_width."""

    def __init__(self, options: Options) -> None:
        self.base_width = options.base_width

    @torch.no_grad()
    def start(self, model: LanguageModel) -> None:
        groups = parameter_groups(model)
        if model.readout is None or "readout" not in groups:
            raise UserError(
                "params.yaml: train.parametrisation: maximal_update needs a readout with weights of its own (tied: false);"
                " choose standard"
            )
        ratio = model.width / self.base_width
        for name, power in (("matrices", -0.5), ("readout", -1.0)):
            for parameter in groups.get(name, []):
                parameter.mul_(ratio**power)

    def rate_factor(self, width: int, power: float) -> float:
        return float((width / self.base_width) ** power)
