"""Multi-head attention to the last few tokens only (Beltagy et al. 2020; Jiang et al. 2023).

The receptive field grows with each block. The KV cache keeps no more than the window, and the cost
of generation grows with the window, not with the context.
"""

from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.attention.base import (
    SoftmaxAttention,
    ValueMap,
    extend_cache,
    head_count,
)
from lmlab.model.layers.cache import Cache
from lmlab.model.layers.position.base import Position
from lmlab.model.layers.root_mean_square import rms_norm


class Options(Params):
    """Options of the attention."""

    heads: int = Field(ge=0)
    window: int = Field(ge=1)
    qk_norm: bool
    epsilon: float = Field(gt=0)


class SlidingWindow(SoftmaxAttention):
    """Multi-head attention in which a position reads itself and the `window` - 1 before it."""

    def __init__(self, options: Options, width: int, context: int, position: Position) -> None:
        super().__init__(position)
        self.heads = head_count(options.heads, width, "layers.attention.sliding_window.heads")
        self.receptive_field: int = min(options.window, context)
        self.lookback = self.receptive_field - 1
        self.qk_norm, self.epsilon = options.qk_norm, options.epsilon
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.sections = {"queries_keys_values": (width, width, width)}
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x_BTD: Tensor, cache: Cache | None = None, map_values: ValueMap | None = None
    ) -> Tensor:
        batch, time, width = x_BTD.shape
        projected_BTD = self.queries_keys_values(x_BTD)
        projected_BTHK = projected_BTD.view(batch, time, 3 * self.heads, width // self.heads)
        qk_BHTK, v_BHTK = projected_BTHK.transpose(1, 2).split((2 * self.heads, self.heads), dim=1)
        if self.qk_norm:
            qk_BHTK = rms_norm(qk_BHTK, epsilon=self.epsilon)
        qk_BHTK = self.position.rotate(qk_BHTK, cache.seen if cache else 0)
        q_BHTK, k_BHTK = qk_BHTK.chunk(2, dim=1)
        if map_values is not None:
            v_BHTK = map_values(v_BHTK)
        k_BHSK, v_BHSK = extend_cache(cache, self.receptive_field, keys=k_BHTK, values=v_BHTK)
        bias_HTS = self.position.bias(self.heads, time, k_BHSK.shape[-2])
        y_BHTK = self.attend(q_BHTK, k_BHSK, v_BHSK, bias_HTS, window=self.receptive_field)
        return self.join_heads(y_BHTK)
