"""Two linear maps with a squared ReLU between (So et al. 2021, "Primer")."""

from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.feed_forward.base import FeedForward
from lmlab.model.places import Place


class Options(Params):
    """Options of the layer."""

    expansion: float = Field(gt=0, le=1e6)


class ReLUSquared(FeedForward):
    """out(max(up(x), 0)²)."""

    def __init__(self, options: Options, width: int) -> None:
        super().__init__()
        hidden = max(1, round(options.expansion * width))
        self.up = nn.Linear(width, hidden, bias=False)
        self.units = Place()
        self.out: nn.Linear = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        hidden = self.up(x_BTD)
        # a product instead of relu(hidden)²: the square's slope is 0 where relu is 0, which would
        # block the surrogate slope that an intervention may give relu there
        return self.out(self.units(hidden * nn.functional.relu(hidden)))
