"""Linear attention (Katharopoulos et al. 2020): y_t = sum_s w_ts v_s / sum_s w_ts for s <= t.

The weight is w_ts = phi(q_t) . phi(k_s) with phi(x) = elu(x) + 1. Without a softmax all that was
read fits into one matrix a head, the sum of k vᵀ, and the cost grows with the length instead of its
square: positions are processed in chunks, and each chunk reads the earlier ones through that
matrix. The recurrent state for generation is the matrix and the sum of the keys. A rotary position
rotates the keys and queries of the numerator but not of the denominator (Su et al. 2021, equation
19).
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.layers.attention.base import Attention, ValueMap, head_count
from lmlab.model.layers.cache import Cache
from lmlab.model.layers.position.base import Position

CHUNK = 64
"""Positions whose weights on each other are computed as one matrix."""


class Options(Params):
    """Options of the attention."""

    heads: int = Field(ge=0)


class Linear(Attention):
    """H heads of width K = D / H, each with a K x K matrix that sums up what it has read.

    It forgets nothing.
    """

    def __init__(self, options: Options, width: int, context: int, position: Position) -> None:
        super().__init__(position)
        self.heads = head_count(options.heads, width, "layers.attention.linear.heads")
        self.receptive_field = None
        if position.bias(self.heads, 1, 1) is not None:
            raise UserError(
                "params.yaml: models.transformer.position: this position adds to the scores of"
                " attention, and layers.attention.linear keeps no scores; choose rotary, learned"
                " or no_position"
            )
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
        if map_values is not None:
            v_BHTK = map_values(v_BHTK)
        qk_BHTK = nn.functional.elu(qk_BHTK) + 1
        rotated_BHTK = self.position.rotate(qk_BHTK, cache.seen if cache else 0)
        sum_kv_BHKK, sum_k_BHK = self._state(x_BTD, cache)
        outputs = []
        for first in range(0, time, CHUNK):
            chunk = slice(first, first + CHUNK)
            q, k = qk_BHTK[..., chunk, :].chunk(2, dim=1)
            q_rotated, k_rotated = rotated_BHTK[..., chunk, :].chunk(2, dim=1)
            v = v_BHTK[..., chunk, :]
            within_chunk = (q_rotated @ k_rotated.mT).tril() @ v
            numerator = within_chunk + q_rotated @ sum_kv_BHKK
            k_so_far = k.cumsum(dim=-2) + sum_k_BHK[..., None, :]
            denominator = (q * k_so_far).sum(dim=-1, keepdim=True)
            outputs.append(numerator / denominator)
            sum_kv_BHKK = sum_kv_BHKK + k_rotated.mT @ v
            sum_k_BHK = sum_k_BHK + k.sum(dim=-2)
        if cache is not None:
            cache.tensors["read"], cache.tensors["keys"] = sum_kv_BHKK, sum_k_BHK
        y_BHTK = torch.cat(outputs, dim=-2)
        return self.join_heads(y_BHTK)

    def _state(self, x_BTD: Tensor, cache: Cache | None) -> tuple[Tensor, Tensor]:
        """The sums of k vᵀ and of k over the positions before x_BTD."""
        if cache is not None and "read" in cache.tensors:
            return cache.tensors["read"], cache.tensors["keys"]
        batch, _, width = x_BTD.shape
        head_width = width // self.heads
        sum_kv_BHKK = x_BTD.new_zeros(batch, self.heads, head_width, head_width)
        return sum_kv_BHKK, x_BTD.new_zeros(batch, self.heads, head_width)
