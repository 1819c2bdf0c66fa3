"""Causal multi-head attention (Vaswani et al. 2017), with queries and keys normalised if wished (Henry et al. 2020)."""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.errors import UserError
from lmlab.layers.attention.base import Attention
from lmlab.layers.memory import Memory
from lmlab.layers.position.base import Position
from lmlab.params import Params


class Options(Params):
    """Options of the attention."""

    heads: int = Field(ge=1)
    normalise_queries_and_keys: bool


class MultiHead(Attention):
    """H heads of width K = D / H, each a weighted mean of the values at positions up to its own."""

    def __init__(self, options: Options, width: int, context: int, position: Position) -> None:
        super().__init__()
        if width % (2 * options.heads):
            fitting = [heads for heads in range(1, width + 1) if width % (2 * heads) == 0]
            near = min(fitting, key=lambda heads: abs(heads - options.heads), default=0)
            raise UserError(
                f"params.yaml: layers.attention.multi_head.heads: {options.heads} heads do not divide the model's width"
                f" {width} into heads of an even width; "
                + (f"{near} would" if near else f"no number does, so make the width a multiple of {2 * options.heads}")
            )
        self.heads, self.context = options.heads, context
        self.normalise = options.normalise_queries_and_keys
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        # bound methods, not a submodule: the position belongs to the model, which has it once
        self.rotate, self.bias = position.rotate, position.bias

    def forward(self, x_BTD: Tensor, memory: Memory | None) -> Tensor:
        batch, time, width = x_BTD.shape
        projected = self.queries_keys_values(x_BTD).view(batch, time, 3 * self.heads, width // self.heads)
        # queries and keys go through normalisation and rotation together: half as many small operations
        qk_BHTK, v_BHTK = projected.transpose(1, 2).split((2 * self.heads, self.heads), dim=1)
        if self.normalise:
            qk_BHTK = nn.functional.rms_norm(qk_BHTK, qk_BHTK.shape[-1:])
        q_BHTK, k_BHTK = self.rotate(qk_BHTK, memory.seen if memory else 0).chunk(2, dim=1)
        if memory is not None:
            k_BHTK, v_BHTK = self._remember(memory, k_BHTK, v_BHTK)
        y_BHTK = self._attend(q_BHTK, k_BHTK, v_BHTK)
        return self.out(y_BHTK.transpose(1, 2).reshape(batch, time, width))

    def _attend(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor) -> Tensor:
        time, keys = q_BHTK.shape[-2], k_BHSK.shape[-2]
        bias = self.bias(time, keys)
        if bias is None and time == keys:
            return nn.functional.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, is_causal=True)
        visible = torch.ones(time, keys, dtype=torch.bool, device=q_BHTK.device).tril(keys - time)
        mask = visible if bias is None else bias.to(q_BHTK.dtype).masked_fill(~visible, float("-inf"))
        return nn.functional.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=mask)

    def _remember(self, memory: Memory, k_BHTK: Tensor, v_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """Append to what is remembered; beyond the context the oldest are forgotten."""
        if memory.seen:
            kept = max(self.context, k_BHTK.shape[-2])  # each of the new tokens sees itself at least
            k_BHTK = torch.cat((memory.tensors["keys"], k_BHTK), dim=-2)[..., -kept:, :]
            v_BHTK = torch.cat((memory.tensors["values"], v_BHTK), dim=-2)[..., -kept:, :]
        memory.tensors["keys"], memory.tensors["values"] = k_BHTK, v_BHTK
        return k_BHTK, v_BHTK
