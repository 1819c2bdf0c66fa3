"""What an attention layer is, and what the layers with heads and a KV cache share."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import lru_cache
from math import isqrt, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.model.layers.cache import Cache
from lmlab.model.layers.position.base import Position
from lmlab.model.places import Place

HEAD_WIDTH = 64
"""About how wide a head is where the number of heads is left to be derived."""
EXPLICIT_KEYS = 512
"""Up to how many keys attention in bfloat16 is faster when all its weights are held in memory."""
ValueMap = Callable[[Tensor], Tensor]
"""What a residual connection does to the values v_BHTK before they are averaged; shape kept."""


class Attention(nn.Module, ABC):
    """Each position reads from the positions up to its own; y = out(weighted mean of the values).

    Final classes take `(options, width, context, position)`. What every attention must keep:

    - Position t of the output depends on positions up to t only, bit for bit.
    - Without a cache it reads as far back as `lookback` says, and no further. With one, a sequence
      read in pieces of any length gives the outputs of the sequence read at once, up to rounding,
      as far as `receptive_field` reaches; the cache stops growing once that is full.
    - It rotates queries and keys, and adds the bias to the scores, as its position encoding says,
      or raises UserError, naming models.transformer.position, when built with one that it cannot
      apply. Only a `SoftmaxAttention` must apply all, and none may refuse one that does neither.
    - `map_values` is applied to the values before they are averaged and before they are cached; if
      it returns zeros, so does the layer.
    - Its last linear map is the attribute `out`, whose weights models initialise at a smaller
      scale. It ends in `join_heads`, so what its heads read passes the place `head_outputs`. If
      its weights on earlier positions come from a softmax, it derives from `SoftmaxAttention`.
    """

    out: nn.Linear
    receptive_field: int | None
    """How many positions one reads at most when there is a cache, its own included.

    None: all there were.
    """
    lookback: int | None = None
    """How many positions before its own one reads at most, with a cache or without.

    None: all there are; with a cache, all that `receptive_field` lets it keep.
    """

    def __init__(self, position: Position) -> None:
        super().__init__()
        # in a tuple, because the model owns it: a submodule would be saved again with every block
        self._position = (position,)
        self.head_outputs = Place()
        """What each head has read at each position, y_BTHK."""

    @property
    def position(self) -> Position:
        """The position encoding that all blocks of a model share."""
        return self._position[0]

    @abstractmethod
    def forward(
        self, x_BTD: Tensor, cache: Cache | None = None, map_values: ValueMap | None = None
    ) -> Tensor:
        """y_BTD; with a cache, x_BTD continues the positions of earlier calls.

        The caller advances `cache.seen` after all layers of the block have run.
        """

    def join_heads(self, y_BHTK: Tensor) -> Tensor:
        """Out of the heads' outputs side by side, y_BTD: the last step of every attention."""
        y_BTHK = self.head_outputs(y_BHTK.transpose(1, 2))
        return self.out(y_BTHK.flatten(2))


class SoftmaxAttention(Attention):
    """Attention that averages values by a softmax of scores, computed by `attend`."""

    def __init__(self, position: Position) -> None:
        super().__init__(position)
        self.pattern = Place()
        """The weight of each position s for each query t, w_BHTS; each row adds up to 1."""

    def attend(
        self,
        q_BHTK: Tensor,
        k_BHSK: Tensor,
        v_BHSK: Tensor,
        bias_HTS: Tensor | None,
        window: int | None = None,
    ) -> Tensor:
        """y_BHTK of the function `attend`; where `pattern` is watched its weights pass there.

        If they come out as they went in, the output is the same to the last bit as if nobody had
        watched, and its gradient flows through them.
        """
        y_BHTK = attend(q_BHTK, k_BHSK, v_BHSK, bias_HTS, window)
        if not self.pattern.watchers:
            return y_BHTK
        weights_BHTS = attention_weights(q_BHTK, k_BHSK, bias_HTS, window)
        used_BHTS = self.pattern(weights_BHTS)
        averaged_BHTK = used_BHTS.to(v_BHSK.dtype) @ v_BHSK
        if used_BHTS is weights_BHTS or torch.equal(used_BHTS, weights_BHTS):
            same: Tensor = _ValueAndGradient.apply(y_BHTK, averaged_BHTK)  # type: ignore[no-untyped-call]
            return same
        return averaged_BHTK


class _ValueAndGradient(torch.autograd.Function):
    """The first tensor's values, with the derivatives of the second."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, differentiable: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Nothing has to be kept."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad

    @staticmethod
    def jvp(ctx: Any, values: Tensor, differentiable: Tensor) -> Tensor:
        return differentiable.view_as(differentiable)


@lru_cache
def _divisors(number: int) -> list[int]:
    """All divisors in ascending order, in about sqrt(number) steps."""
    small = [divisor for divisor in range(1, isqrt(number) + 1) if number % divisor == 0]
    large = [number // divisor for divisor in small]
    return sorted({*small, *large})


def head_count(requested: int, width: int, key: str) -> int:
    """The requested number of heads; for 0, about one for every HEAD_WIDTH of the width.

    Raises UserError, naming the option `key`, unless the heads get the same, even width each
    (rotary position embedding rotates pairs).
    """
    fitting = _divisors(width // 2) if width % 2 == 0 else []
    if requested in fitting:
        return requested
    target = requested or width / HEAD_WIDTH
    nearest = min(fitting, key=lambda heads: abs(heads - target), default=0)
    if nearest and not requested:
        return nearest
    if nearest:
        advice = f"{nearest} would"
    else:
        advice = f"no number does, so make the width a multiple of {2 * (requested or 1)}"
    raise UserError(
        f"params.yaml: {key}: {requested or 1} heads do not divide the model's width {width} into"
        f" heads of an even width; {advice}"
    )


def extend_cache(cache: Cache | None, receptive_field: int, **new: Tensor) -> list[Tensor]:
    """Each tensor of shape (..., T, K) appended to what the cache holds under its name.

    The cache keeps the last `receptive_field` - 1 positions. Without one, the tensors as they are.
    """
    if cache is None:
        return list(new.values())
    extended = []
    for name, tensor in new.items():
        past = cache.tensors.get(name)
        whole = tensor if past is None else torch.cat((past, tensor), dim=-2)
        first_kept = max(0, whole.shape[-2] - receptive_field + 1)
        cache.tensors[name] = whole[..., first_kept:, :]
        extended.append(whole)
    return extended


def attend(
    q_BHTK: Tensor,
    k_BHSK: Tensor,
    v_BHSK: Tensor,
    bias_HTS: Tensor | None,
    window: int | None = None,
) -> Tensor:
    """softmax(q kᵀ / sqrt(K) + bias) v with a causal mask, of shape (B, H, T, K).

    The T queries stand at the last of the S key positions. With a window, each query reads the
    nearest `window` keys only, its own included.
    """
    time, keys = q_BHTK.shape[-2], k_BHSK.shape[-2]
    windowed = window is not None and window < keys
    # the backward pass of torch's own attention is slow in bfloat16 on a CPU
    explicit = (
        q_BHTK.dtype == torch.bfloat16
        and q_BHTK.device.type == "cpu"
        and q_BHTK.requires_grad
        and keys <= EXPLICIT_KEYS
    )
    if bias_HTS is None and not windowed and time == keys and not explicit:
        return nn.functional.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, is_causal=True)
    mask = _mask(q_BHTK, keys, bias_HTS, window if windowed else None)
    if explicit:
        return _explicit_attention(q_BHTK, k_BHSK, v_BHSK, mask)
    return nn.functional.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSK, attn_mask=mask)


def attention_weights(
    q_BHTK: Tensor, k_BHSK: Tensor, bias_HTS: Tensor | None, window: int | None = None
) -> Tensor:
    """softmax(q kᵀ / sqrt(K) + bias) with the mask of `attend`, w_BHTS, in at least float32."""
    dtype = torch.promote_types(q_BHTK.dtype, torch.float32)
    scores_BHTS = q_BHTK.to(dtype) @ k_BHSK.to(dtype).mT / sqrt(q_BHTK.shape[-1])
    return (scores_BHTS + _mask(scores_BHTS, k_BHSK.shape[-2], bias_HTS, window)).softmax(-1)


def _mask(like_BHTX: Tensor, keys: int, bias_HTS: Tensor | None, window: int | None) -> Tensor:
    """The bias, or 0, where a query sees a key, and minus infinity elsewhere: of shape (T, S) or
    (H, T, S), on a tensor's device and in its precision.
    """
    time = like_BHTX.shape[-2]
    visible_TS = torch.ones(time, keys, dtype=torch.bool, device=like_BHTX.device)
    visible_TS = visible_TS.tril(keys - time)
    if window is not None:
        visible_TS = visible_TS.triu(keys - time - window + 1)
    bias = torch.zeros(time, keys) if bias_HTS is None else bias_HTS
    return bias.to(like_BHTX).masked_fill(~visible_TS, float("-inf"))


def _explicit_attention(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, mask: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(K) + mask) v, one operation at a time; N stands for B and H together."""
    batch, heads, time, width = q_BHTK.shape
    q_NTK = (q_BHTK / sqrt(width)).flatten(0, 1)
    k_NSK = k_BHSK.flatten(0, 1)
    v_NSK = v_BHSK.flatten(0, 1)
    mask_NTS = mask.expand(batch, heads, time, mask.shape[-1]).flatten(0, 1)
    weights_NTS = torch.baddbmm(mask_NTS, q_NTK, k_NSK.mT).softmax(-1)
    return torch.bmm(weights_NTS, v_NSK).view(batch, heads, time, -1)
