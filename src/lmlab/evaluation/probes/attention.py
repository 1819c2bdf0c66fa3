"""How widely each attention head looks, and whether it is an induction head (Olsson et al. 2022).

`entropy` is the mean over positions of -Σ w ln w, in nats, over a head's weights w: ln t where t
tokens have equal weight, 0 where one has all of it. `induction`: random tokens are read twice over;
in the second round it is the mean weight that a token gives to the token after its first
occurrence, 1 for a perfect induction head.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lmlab.core.params import Params
from lmlab.evaluation.probes.base import (
    Batch,
    Probe,
    Reading,
    Snapshot,
    module_name,
    nothing_to_look_at,
    streams,
)
from lmlab.model.models.base import LanguageModel


class Options(Params):
    """Options of the probe."""

    sequences: int = Field(ge=1, le=100_000)
    seed: int = Field(ge=0)


class Attention(Probe):
    """Entropy and induction by block and head, for every attention with a softmax.

    The layers run as they are: their queries and keys are observed.
    """

    reading = (
        "How widely each head looks (entropy in nats: 0 for one token, ln t for t tokens alike) and"
        " how far it is an induction head, which finds what came next the last time (0: not at"
        " all, 1: perfectly). Entropy usually falls in training; most heads have little induction."
    )
    needs = "attention with a softmax"

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        model, options = snapshot.model, self.options
        period = max(1, model.context // 2)
        once_BT = random_tokens(options.sequences, period, model.vocabulary_size, options.seed)
        twice_BT = once_BT.to(batch.tokens.device).repeat(1, 2)
        readings = [
            *_by_head("entropy", model, batch.tokens, entropy),
            *_by_head("induction", model, twice_BT, lambda weights: induction(weights, period)),
        ]
        if not readings:
            raise nothing_to_look_at(self, snapshot)
        yield from readings


@torch.no_grad()
def _by_head(
    measure: str, model: LanguageModel, tokens_BT: Tensor, of_heads: Callable[[Tensor], Tensor]
) -> list[Reading]:
    """A reading for each head, of what `of_heads` computes from weights of shape (B, H, T, S)."""
    readings = []
    with WatchedAttention() as watched:
        for number, _ in enumerate(streams(model, tokens_BT)):
            values = [value for weights in watched.pop() for value in of_heads(weights).tolist()]
            for head, value in enumerate(values):
                readings.append(Reading(measure, f"{module_name(number)}.head.{head}", value))
    return readings


def random_tokens(sequences: int, length: int, vocabulary_size: int, seed: int) -> Tensor:
    """Random tokens of shape (sequences, length).

    Within a sequence they are all different if the vocabulary is large enough.
    """
    rng = torch.Generator().manual_seed(seed)
    rounds = -(-length // vocabulary_size)
    rows = []
    for _ in range(sequences):
        orders = [torch.randperm(vocabulary_size, generator=rng) for _ in range(rounds)]
        rows.append(torch.cat(orders)[:length])
    return torch.stack(rows)


def entropy(weights_BHTS: Tensor) -> Tensor:
    """The entropy of each head's weights in nats, averaged over positions, shape (H,)."""
    return torch.special.entr(weights_BHTS).sum(dim=-1).mean(dim=(0, 2))


def induction(weights_BHTS: Tensor, period: int) -> Tensor:
    """The mean weight in the second round on the position `period` - 1 earlier, shape (H,)."""
    earlier_BHT = weights_BHTS.diagonal(offset=1 - period, dim1=-2, dim2=-1)
    second_round_BHT = earlier_BHT[..., 1:]
    return second_round_BHT.mean(dim=(0, 2))


def softmax_weights(
    q_BHTK: Tensor,
    k_BHSK: Tensor,
    v_BHSK: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """The weights of `scaled_dot_product_attention` called with the same arguments.

    softmax(scale Q Kᵀ + mask) in double precision, shape (B, H, T, S).
    """
    if scale is None:
        scale = q_BHTK.shape[-1] ** -0.5
    scores_BHTS = q_BHTK.double() @ k_BHSK.double().mT * scale
    if is_causal:
        size = scores_BHTS.shape[-2:]
        attn_mask = torch.ones(size, dtype=torch.bool, device=scores_BHTS.device).tril()
    if attn_mask is not None:
        if attn_mask.dtype == torch.bool:
            scores_BHTS = scores_BHTS.masked_fill(~attn_mask, float("-inf"))
        else:
            scores_BHTS = scores_BHTS + attn_mask
    return scores_BHTS.softmax(dim=-1)


class WatchedAttention(TorchFunctionMode):
    """Computes the weights of every call of `scaled_dot_product_attention` made inside it."""

    def __init__(self) -> None:
        super().__init__()
        self._weights: list[Tensor] = []

    def pop(self) -> list[Tensor]:
        """The weights of each call since this was last asked for, each of shape (B, H, T, S)."""
        weights, self._weights = self._weights, []
        return weights

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function is nn.functional.scaled_dot_product_attention:
            self._weights.append(softmax_weights(*args, **(kwargs or {})))
        return function(*args, **(kwargs or {}))
