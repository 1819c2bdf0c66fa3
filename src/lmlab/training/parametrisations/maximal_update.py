"""Maximal-update parametrisation (Yang et al. 2022, "Tensor Programs V"): the best learning rate
stays the same as the width grows.

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
is found by building the model wider (`widths`); the rates for other optimizers are in their
`width_powers`. Decoupled weight decay takes the same share of a weight in each step at any width:
of lr * decay only the lr at the base width counts. Independent decay does that anyway; coupled
decay is a term of the loss, and is left as it is. Adam's epsilon follows the gradients
(`epsilon_of`).

Attention divides scores by the root of a head's width, which is right as long as that width stays
the same. So a number of heads in the params is taken to be in proportion to the width, and refused
where that is impossible. (With one number at all widths heads would get wider, and scores would
have to be divided by the head's width itself, which nothing here does.) Left to the width (0),
heads are 43 to 128 wide from width 64 on.

Rows of one matrix that differ in kind are not scaled apart: the few for keys and values in
grouped-query attention, or for keys, queries and steps of a state space, are scaled like the
others. And the theory is about gradients: where a rule's estimates are mostly noise (perturbed
weights), the best rate may go with the width in another way.
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
    """Scales everything by powers of the ratio r = width / base_width."""

    def __init__(self, options: Options) -> None:
        self.base_width = options.base_width

    def check(self, model: LanguageModel) -> None:
        for choice in _with_inner_parts(model.choice):
            heads = choice.options.model_dump().get("heads", 0)
            if heads * self.base_width % model.width == 0:
                continue
            heads_at_base = heads * self.base_width / model.width
            step = model.width // gcd(model.width, self.base_width)
            raise UserError(
                f"params.yaml: {choice.kind}.{choice.name}.heads: maximal_update needs heads as"
                f" wide as at the base width, and {heads} at width {model.width} would be"
                f" {heads_at_base:.3g} at base_width {self.base_width}; give a multiple of {step},"
                " or 0 where the width may decide"
            )

    def scale_initialisation(self, model: LanguageModel) -> None:
        groups = parameter_groups(model)
        if model.readout is None or "readout" not in groups:
            raise UserError(
                "params.yaml: train.parametrisation: maximal_update needs a readout with weights"
                " of its own (tied: false); choose standard"
            )
        if model.width == self.base_width:
            return
        model.width_ratio = model.width / self.base_width
        scale_initialisation(model, groups, model)

    def rate_factor(self, width: int, power: float) -> float:
        return float((width / self.base_width) ** power)


def _with_inner_parts(choice: Choice) -> Iterator[Choice]:
    """A part and all parts that it is built from."""
    yield choice
    for inner in choice.inner.values():
        yield from _with_inner_parts(inner)
