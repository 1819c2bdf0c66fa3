"""Multi-head attention to the last few tokens alone (Beltagy et al. 2020; Jiang et al. 2023): sight
grows with each block.

Memory keeps no more than the window, and cost grows with the window, not with the context, while
generating.
"""

from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.attention.base import Attention, Values, attend, head_count, remember
from lmlab.model.layers.cache import Cache
from lmlab.model.layers.position.base import Position
from lmlab.model.layers.root_mean_square import rms_norm


class Options(Params):
    """Options of the attention."""

    heads: int = Field(ge=0)
    window: int = Field(ge=1)
    qk_norm: bool
    epsilon: float = Field(gt=0)


class SlidingWindow(Attention):
    """As multi-head attention, but each position sees itself and the `window` - 1 before it."""

    def __init__(self, options: Options, width: int, context: int, position: Position) -> None:
        super().__init__()
        self.heads = head_count(options.heads, width, "layers.attention.sliding_window.heads")
        self.receptive_field: int = min(options.window, context)
        self.normalise, self.epsilon = options.qk_norm, options.epsilon
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.rotate, self.bias = position.rotate, position.bias

    def forward(
        self, x_BTD: Tensor, cache: Cache | None = None, values: Values | None = None
    ) -> Tensor:
        batch, time, width = x_BTD.shape
        projected = self.queries_keys_values(x_BTD).view(
            batch, time, 3 * self.heads, width // self.heads
        )
        qk_BHTK, v_BHTK = projected.transpose(1, 2).split((2 * self.heads, self.heads), dim=1)
        if self.normalise:
            qk_BHTK = rms_norm(qk_BHTK, epsilon=self.epsilon)
        q_BHTK, k_BHTK = self.rotate(qk_BHTK, cache.seen if cache else 0).chunk(2, dim=1)
        if values is not None:
            v_BHTK = values(v_BHTK)
        k_BHSK, v_BHSK = remember(cache, self.receptive_field, keys=k_BHTK, values=v_BHTK)
        y_BHTK = attend(
            q_BHTK,
            k_BHSK,
            v_BHSK,
            self.bias(self.heads, time, k_BHSK.shape[-2]),
            window=self.receptive_field,
        )
        return self.out(y_BHTK.transpose(1, 2).reshape(batch, time, width))
