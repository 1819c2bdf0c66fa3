"""Maximal-update parametrisation (Yang et al. 2022, "Tensor Programs V"): the best learning rate
stays put as width grows.

At the base width it is the standard parametrisation. At r times that width, fan-in and fan-out
decide for each parameter (table 3, with every multiplier moved into initialisation and learning
rates):

| | fan-in | fan-out | standard deviation | Adam's rate | SGD's rate |
|---|---|---|---|---|---|
| between hidden layers | grows | grows | r^-1/2 | r^-1 | 1 |
| readout, router, map to a latent | grows | fixed | r^-1 | r^-1 | r^-1 |
| embedding, map from a latent, depthwise convolution, gain, bias | fixed | grows | 1 | 1 | r |
| table of narrow rows, slope, share | fixed | fixed | 1 | 1 | 1 |

Then what a step changes in each activation neither vanishes nor explodes with the width. What grows
is found by building the model wider (`widths`); what the rates are for other optimizers stands with
those (`width_powers`). Decoupled weight decay takes the same share of a weight in each step at any
width: of lr * decay only the lr at the base width counts. That is what independent decay does
anyway; coupled decay is a term of the loss, and is left as it is. Adam's epsilon follows the
gradients (`epsilon_of`).

Attention divides scores by the root of a head's width, which is right as long as that width stays
the same. So a number of heads that is given is taken to be in proportion to the width, and refused
where that cannot be. (With one number at all widths heads get wider, and scores would have to be
divided by their width itself, which nothing here does.) Left to the width (0), heads are 43 to 128
wide from width 64 on.

Not scaled apart are rows of one matrix that differ in kind: the few for the keys and values of
grouped queries, or for the keys, queries and steps of a state space, are scaled as the others. And
the theory is of gradients: where a rule's estimates are mostly noise (perturbations of weights),
the best rate may go otherwise with the width.
"""

from collections.abc import Iterator
from math import gcd

from pydantic import Field

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.core.registry import Choice
from lmlab.model.models.base import LanguageModel
from lmlab.training.optimizers.base import parameter_groups
from lmlab.training.parametrisations.base import Parametrisation
from lmlab.training.widths import scale_initialisation


class Options(Params):
    """Options of the parametrisation."""

    base_width: int = Field(ge=1)


class MaximalUpdate(Parametrisation):
    """Everything by the ratio r = width / base_width."""

    def __init__(self, options: Options) -> None:
        self.base_width = options.base_width

    def check(self, model: LanguageModel) -> None:
        for choice in _parts(model.choice):
            heads = choice.options.model_dump().get("heads", 0)
            if heads * self.base_width % model.width:
                at_base, step = (
                    heads * self.base_width / model.width,
                    model.width // gcd(model.width, self.base_width),
                )
                raise UserError(
                    f"params.yaml: {choice.kind}.{choice.name}.heads: maximal_update needs heads"
                    " as wide as at the base"
                    f" width, and {heads} at width {model.width} would be {at_base:.3g} at"
                    f" base_width {self.base_width};"
                    f" give a multiple of {step}, or 0 where the width may decide"
                )

    def start(self, model: LanguageModel) -> None:
        groups = parameter_groups(model)
        if model.readout is None or "readout" not in groups:
            raise UserError(
                "params.yaml: train.parametrisation: maximal_update needs a readout with weights"
                " of its own (tied: false);"
                " choose standard"
            )
        if model.width == self.base_width:
            return
        model.width_ratio = model.width / self.base_width
        scale_initialisation(model, groups, model)

    def rate_factor(self, width: int, power: float) -> float:
        return float((width / self.base_width) ** power)


def _parts(choice: Choice) -> Iterator[Choice]:
    """A part and all that it is built from."""
    yield choice
    for inner in choice.inner.values():
        yield from _parts(inner)
