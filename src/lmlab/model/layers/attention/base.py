"""What an attention layer is, and what those with heads and remembered keys share."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from math import isqrt, sqrt

import torch
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.model.layers.cache import Cache

HEAD_WIDTH = 64
"""Of a head whose number is left to be derived."""
IN_STEPS = 512
"""Up to how many keys attention in bfloat16 is faster in steps, all weights in memory at once."""
Values = Callable[[Tensor], Tensor]
"""What a residual connection may do to the values v_BHTK before they are mixed; keeps their
shape.
"""


class Attention(nn.Module, ABC):
    """Final classes take `(options, width, context, position)`. Its last linear map is `out`, as in
    a feed-forward layer.

    Position t of the output may depend on positions up to t only, bit for bit.
    """

    out: nn.Linear
    receptive_field: int | None
    """How many tokens a position sees at most when it reads with a memory, its own included; None:
    all there were.
    """

    @abstractmethod
    def forward(
        self, x_BTD: Tensor, cache: Cache | None = None, values: Values | None = None
    ) -> Tensor:
        """Mix each position with those before it; with a memory, also with the tokens seen in
        earlier calls.
        """


@lru_cache
def _divisors(number: int) -> list[int]:
    """All that divide it, from the least; found in as many steps as its root."""
    low = [small for small in range(1, isqrt(number) + 1) if number % small == 0]
    return sorted({*low, *(number // small for small in low)})


def head_count(wanted: int, width: int, key: str) -> int:
    """`wanted` heads, or for 0 about one for every HEAD_WIDTH of the width.

    Raises UserError, naming the option `key`, when the heads would not be of one even width
    (rotation turns pairs).
    """
    fitting = _divisors(width // 2) if width % 2 == 0 else []
    if wanted in fitting:
        return wanted
    near = min(fitting, key=lambda heads: abs(heads - (wanted or width / HEAD_WIDTH)), default=0)
    if near and not wanted:
        return near
    raise UserError(
        f"params.yaml: {key}: {wanted or 1} heads do not divide the model's width {width} into"
        " heads of an even width; "
        + (
            f"{near} would"
            if near
            else f"no number does, so make the width a multiple of {2 * (wanted or 1)}"
        )
    )


def remember(cache: Cache | None, receptive_field: int, **new: Tensor) -> list[Tensor]:
    """Each of the tensors of shape (..., T, K), with what was remembered of it before; the last
    `receptive_field` - 1 are kept.
    """
    if cache is None:
        return list(new.values())
    together = {}
    for name, tensor in new.items():
        before = cache.tensors.get(name)
        together[name] = tensor if before is None else torch.cat((before, tensor), dim=-2)
        cache.tensors[name] = together[name][
            ..., max(0, together[name].shape[-2] - receptive_field + 1) :, :
        ]
    return list(together.values())


def attend(
    q_BHTK: Tensor,
    k_BHSK: Tensor,
    v_BHSK: Tensor,
    bias_HTS: Tensor | None,
    window: int | None = None,
) -> Tensor:
    """Causal attention of the last T of S positions, shape (B, H, T, K); with a window each sees
    the nearest so many.
    """
    time, keys = q_BHTK.shape[-2], k_BHSK.shape[-2]
    near = window is not None and window < keys
    # of torch's own attention the backward pass is slow in bfloat16 on a processor
    in_steps = (
        q_BHTK.dtype == torch.bfloat16
        and q_BHTK.device.type == "cpu"
        and q_BHTK.requires_grad
        and keys <= IN_STEPS
    )
    if bias_HTS is None and not near and time == keys and not in_steps:
        return nn.functional.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, is_causal=True)
    visible = torch.ones(time, keys, dtype=torch.bool, device=q_BHTK.device).tril(keys - time)
    if window is not None and near:
        visible = visible.triu(keys - time - window + 1)
    bias = torch.zeros(time, keys).to(q_BHTK) if bias_HTS is None else bias_HTS.to(q_BHTK)
    mask = bias.masked_fill(~visible, float("-inf"))
    if in_steps:
        q, k, v, of_each = (
            x.flatten(0, 1)
            for x in (
                q_BHTK / sqrt(q_BHTK.shape[-1]),
                k_BHSK,
                v_BHSK,
                mask.expand(*q_BHTK.shape[:2], time, keys),
            )
        )
        return torch.bmm(torch.baddbmm(of_each, q, k.mT).softmax(-1), v).view(*q_BHTK.shape[:3], -1)
    return nn.functional.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=mask)
