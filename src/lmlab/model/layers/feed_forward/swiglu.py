"""A gated feed-forward layer (Shazeer 2020, "GLU Variants Improve Transformer").

One linear map gates the other.
"""

from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.feed_forward.base import FeedForward
from lmlab.model.places import Place


class Options(Params):
    """Options of the layer."""

    expansion: float = Field(gt=0, le=1e6)


class SwiGLU(FeedForward):
    """out(silu(gate(x)) * up(x)); the two maps are one matrix, `gate_up`."""

    def __init__(self, options: Options, width: int) -> None:
        super().__init__()
        hidden = max(1, round(options.expansion * width))
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.sections = {"gate_up": (hidden, hidden)}
        self.units = Place()
        self.out: nn.Linear = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate, up = self.gate_up(x_BTD).chunk(2, dim=-1)
        return self.out(self.units(nn.functional.silu(gate) * up))
