"""Grouped-query attention (Ainslie et al. 2023; with one group, Shazeer 2019).

The heads of a group share one key and one value, so the KV cache shrinks by the number of heads to
a group. With as many groups as heads it is multi-head attention.
"""

from pydantic import Field
from torch import Tensor, nn

from lmlab.core.errors import UserError
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
    groups: int = Field(ge=1)
    qk_norm: bool
    epsilon: float = Field(gt=0)


class GroupedQuery(SoftmaxAttention):
    """H heads of width K = D / H in G groups: H / G neighbouring heads read the same k and v."""

    def __init__(self, options: Options, width: int, context: int, position: Position) -> None:
        super().__init__(position)
        self.heads = head_count(options.heads, width, "layers.attention.grouped_query.heads")
        self.groups = options.groups
        if self.heads % self.groups:
            raise UserError(
                f"params.yaml: layers.attention.grouped_query.groups: {self.groups} groups do not"
                f" divide {self.heads} heads; give a divisor of the number of heads"
            )
        self.receptive_field: int = context
        self.qk_norm, self.epsilon = options.qk_norm, options.epsilon
        self.head_width = width // self.heads
        projected_heads = self.heads + 2 * self.groups
        self.queries_keys_values = nn.Linear(width, projected_heads * self.head_width, bias=False)
        of_group = self.groups * self.head_width
        self.sections = {"queries_keys_values": (width, of_group, of_group)}
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x_BTD: Tensor, cache: Cache | None = None, map_values: ValueMap | None = None
    ) -> Tensor:
        batch, time, _ = x_BTD.shape
        projected_BTHK = self.queries_keys_values(x_BTD).view(batch, time, -1, self.head_width)
        head_counts = (self.heads + self.groups, self.groups)
        qk_BHTK, v_BGTK = projected_BTHK.transpose(1, 2).split(head_counts, dim=1)
        if self.qk_norm:
            qk_BHTK = rms_norm(qk_BHTK, epsilon=self.epsilon)
        qk_BHTK = self.position.rotate(qk_BHTK, cache.seen if cache else 0)
        q_BHTK, k_BGTK = qk_BHTK[:, : self.heads], qk_BHTK[:, self.heads :]
        if map_values is not None:
            v_BGTK = map_values(v_BGTK)
        k_BGSK, v_BGSK = extend_cache(cache, self.receptive_field, keys=k_BGTK, values=v_BGTK)
        heads_per_group = self.heads // self.groups
        k_BHSK = k_BGSK.repeat_interleave(heads_per_group, dim=1)
        v_BHSK = v_BGSK.repeat_interleave(heads_per_group, dim=1)
        bias_HTS = self.position.bias(self.heads, time, k_BHSK.shape[-2])
        y_BHTK = self.attend(q_BHTK, k_BHSK, v_BHSK, bias_HTS)
        return self.join_heads(y_BHTK)
