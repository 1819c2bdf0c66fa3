"""Linear attention (Katharopoulos et al. 2020): without the softmax, all that was read fits into
one matrix a head.

The weight of a value is phi(q) . phi(k) with phi(x) = elu(x) + 1, divided by the sum of the
weights. So cost grows with the length, not with its square: positions are worked through in chunks,
each seeing the chunks before it through the summed matrix of keys and values, which is also all the
memory keeps. With a rotary position the weights are rotated and their sum is not (Su et al. 2021,
equation 19).
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.layers.attention.base import Attention, Values, head_count
from lmlab.model.layers.cache import Cache
from lmlab.model.layers.position.base import Position

CHUNK = 64


class Options(Params):
    """Options of the attention."""

    heads: int = Field(ge=0)


class Linear(Attention):
    """H heads of width K = D / H, each with a matrix of K x K that sums up what it has read. It
    forgets nothing.
    """

    def __init__(self, options: Options, width: int, context: int, position: Position) -> None:
        super().__init__()
        self.heads = head_count(options.heads, width, "layers.attention.linear.heads")
        self.receptive_field = None
        if position.bias(self.heads, 1, 1) is not None:
            raise UserError(
                "params.yaml: models.transformer.position: this position adds to the scores of"
                " attention, and"
                " layers.attention.linear keeps no scores; choose rotary, learned or no_position"
            )
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.rotate = position.rotate

    def forward(
        self, x_BTD: Tensor, cache: Cache | None = None, values: Values | None = None
    ) -> Tensor:
        batch, time, width = x_BTD.shape
        start = cache.seen if cache else 0
        projected = self.queries_keys_values(x_BTD).view(
            batch, time, 3 * self.heads, width // self.heads
        )
        qk_BHTK, v_BHTK = projected.transpose(1, 2).split((2 * self.heads, self.heads), dim=1)
        if values is not None:
            v_BHTK = values(v_BHTK)
        qk_BHTK = nn.functional.elu(qk_BHTK) + 1
        turned_BHTK = self.rotate(qk_BHTK, start)

        kept = cache.tensors if cache else {}
        read_BHKK = kept.get(
            "read", x_BTD.new_zeros(batch, self.heads, width // self.heads, width // self.heads)
        )
        keys_BHK = kept.get("keys", x_BTD.new_zeros(batch, self.heads, width // self.heads))
        outputs = []
        for first in range(0, time, CHUNK):
            here = slice(first, first + CHUNK)
            (q, k), (q_turned, k_turned) = (
                both[..., here, :].chunk(2, dim=1) for both in (qk_BHTK, turned_BHTK)
            )
            v = v_BHTK[..., here, :]
            weighted = (q_turned @ k_turned.mT).tril() @ v + q_turned @ read_BHKK
            weights = (q * (k.cumsum(dim=-2) + keys_BHK[..., None, :])).sum(dim=-1, keepdim=True)
            outputs.append(weighted / weights)
            read_BHKK = read_BHKK + k_turned.mT @ v
            keys_BHK = keys_BHK + k.sum(dim=-2)
        if cache is not None:
            cache.tensors["read"], cache.tensors["keys"] = read_BHKK, keys_BHK
        return self.out(torch.cat(outputs, dim=-2).transpose(1, 2).reshape(batch, time, width))
