"""Grouped-query attention (Ainslie et al. 2023; with one group, Shazeer 2019): several heads share
one key and one value.

Memory shrinks by the number of heads to a group; with as many groups as heads it is multi-head
attention.
"""

from pydantic import Field
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.model.layers.attention.base import Attention, Values, attend, head_count, remember
from lmlab.model.layers.cache import Cache
from lmlab.model.layers.position.base import Position
from lmlab.model.layers.root_mean_square import rms_norm


class Options(Params):
    """Options of the attention."""

    heads: int = Field(ge=0)
    groups: int = Field(ge=1)
    qk_norm: bool
    epsilon: float = Field(gt=0)


class GroupedQuery(Attention):
    """H heads of width K = D / H; heads h, h + 1, ... of one of the G groups read the same keys and
    values.
    """

    def __init__(self, options: Options, width: int, context: int, position: Position) -> None:
        super().__init__()
        self.heads = head_count(options.heads, width, "layers.attention.grouped_query.heads")
        self.groups = options.groups
        if self.heads % self.groups:
            raise UserError(
                f"params.yaml: layers.attention.grouped_query.groups: {self.groups} groups do not"
                f" divide {self.heads} heads;"
                " give a divisor of the number of heads"
            )
        self.receptive_field: int = context
        self.normalise, self.epsilon = options.qk_norm, options.epsilon
        self.head_width = width // self.heads
        self.queries_keys_values = nn.Linear(
            width, (self.heads + 2 * self.groups) * self.head_width, bias=False
        )
        self.out = nn.Linear(width, width, bias=False)
        self.rotate, self.bias = position.rotate, position.bias

    def forward(
        self, x_BTD: Tensor, cache: Cache | None = None, values: Values | None = None
    ) -> Tensor:
        batch, time, width = x_BTD.shape
        projected = self.queries_keys_values(x_BTD).view(batch, time, -1, self.head_width)
        qk_BHTK, v_BGTK = projected.transpose(1, 2).split(
            (self.heads + self.groups, self.groups), dim=1
        )
        if self.normalise:
            qk_BHTK = rms_norm(qk_BHTK, epsilon=self.epsilon)
        qk_BHTK = self.rotate(qk_BHTK, cache.seen if cache else 0)
        q_BHTK, k_BGTK = qk_BHTK[:, : self.heads], qk_BHTK[:, self.heads :]
        if values is not None:
            v_BGTK = values(v_BGTK)
        k_BGSK, v_BGSK = remember(cache, self.receptive_field, keys=k_BGTK, values=v_BGTK)
        each = self.heads // self.groups
        k_BHSK, v_BHSK = (
            k_BGSK.repeat_interleave(each, dim=1),
            v_BGSK.repeat_interleave(each, dim=1),
        )
        y_BHTK = attend(q_BHTK, k_BHSK, v_BHSK, self.bias(self.heads, time, k_BHSK.shape[-2]))
        return self.out(y_BHTK.transpose(1, 2).reshape(batch, time, width))
