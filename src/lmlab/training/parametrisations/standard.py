"""The standard parametrisation: initialisation ignores the width, all rates follow it alike."""

from pydantic import Field

from lmlab.core.params import Params
from lmlab.model.models.base import LanguageModel
from lmlab.training.parametrisations.base import Parametrisation


class Options(Params):
    """Options of the parametrisation."""

    base_width: int = Field(ge=1)
    power: float = Field(ge=0, le=2)


class Standard(Parametrisation):
    """Every rate times (base_width / width)^power: a rule of thumb; power 0 scales nothing."""

    def __init__(self, options: Options) -> None:
        self.options = options

    def check(self, model: LanguageModel) -> None:
        pass

    def scale_initialisation(self, model: LanguageModel) -> None:
        pass

    def rate_factor(self, width: int, power: float) -> float:
        return float((self.options.base_width / width) ** self.options.power)
