"""Two linear maps with a GELU between (Hendrycks & Gimpel 2016), as in GPT."""

from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.feed_forward.base import FeedForward
from lmlab.model.places import Place


class Options(Params):
    """Options of the layer."""

    expansion: float = Field(gt=0, le=1e6)


class GELU(FeedForward):
    """out(GELU(up(x)))."""

    def __init__(self, options: Options, width: int) -> None:
        super().__init__()
        hidden = max(1, round(options.expansion * width))
        self.up = nn.Linear(width, hidden, bias=False)
        self.units = Place()
        self.out: nn.Linear = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.out(self.units(nn.functional.gelu(self.up(x_BTD))))
