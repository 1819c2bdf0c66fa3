"""Where each head of attention looks: how widely, and whether it finds what came next before
(Olsson et al. 2022).

`entropy` is the mean over positions of the entropy of a head's weights in nats: ln t where t tokens
are seen alike, 0 where one gets everything. `induction`: random tokens are read twice over, and in
the second round it is the mean weight that a token gives to the one behind its first occurrence, 1
for a perfect induction head.
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
    nothing_found,
    streams,
)


class Options(Params):
    """Options of the probe."""

    sequences: int = Field(ge=1, le=100_000)
    seed: int = Field(ge=0)


class Attention(Probe):
    """By block and head, for every attention with a softmax. The layers run as they are: their
    queries and keys are seen.
    """

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options

    def look(self, snapshot: Snapshot, batch: Batch) -> Iterator[Reading]:
        model = snapshot.model
        period = max(1, model.context // 2)
        once = drawn(self.options.sequences, period, model.vocabulary_size, self.options.seed).to(
            batch.tokens.device
        )
        measures: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]] = {
            "entropy": (batch.tokens, entropy),
            "induction": (once.repeat(1, 2), lambda weights: induction(weights, period)),
        }
        readings: list[Reading] = []
        for measure, (tokens_BT, of_heads) in measures.items():
            with torch.no_grad(), Watched() as watched:
                for number, _ in enumerate(streams(model, tokens_BT)):
                    heads = [
                        value
                        for weights_BHTS in watched.taken()
                        for value in of_heads(weights_BHTS).tolist()
                    ]
                    where = [f"{module_name(number)}.head.{head}" for head in range(len(heads))]
                    readings += [
                        Reading(measure, *found) for found in zip(where, heads, strict=True)
                    ]
        if not readings:
            raise nothing_found(self, snapshot, "attention with a softmax")
        yield from readings


def drawn(sequences: int, length: int, vocabulary_size: int, seed: int) -> Tensor:
    """Random tokens of shape (sequences, length), in each sequence all different as long as the
    vocabulary allows it.
    """
    rng = torch.Generator().manual_seed(seed)
    rounds = -(-length // vocabulary_size)
    orders = [
        [torch.randperm(vocabulary_size, generator=rng) for _ in range(rounds)]
        for _ in range(sequences)
    ]
    return torch.stack([torch.cat(order)[:length] for order in orders])


def entropy(weights_BHTS: Tensor) -> Tensor:
    """In nats, for each head the mean over positions."""
    return torch.special.entr(weights_BHTS).sum(dim=-1).mean(dim=(0, 2))


def induction(weights_BHTS: Tensor, period: int) -> Tensor:
    """For each head, what positions of the second round give to the one `period` - 1 before them,
    on average.
    """
    return weights_BHTS.diagonal(offset=1 - period, dim1=-2, dim2=-1)[..., 1:].mean(dim=(0, 2))


def softmax_weights(
    q_BHTK: Tensor,
    k_BHSK: Tensor,
    v_BHSK: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """What `scaled_dot_product_attention`, called with the same, weighs the values by; in double
    precision.
    """
    scores = (
        q_BHTK.double()
        @ k_BHSK.double().mT
        * (q_BHTK.shape[-1] ** -0.5 if scale is None else scale)
    )
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None:
        hidden = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, float("-inf")) if hidden else scores + attn_mask
    return scores.softmax(dim=-1)


class Watched(TorchFunctionMode):
    """Works out the weights of every call of `scaled_dot_product_attention`."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def taken(self) -> list[Tensor]:
        """Those since the last time it was asked."""
        seen, self.seen = self.seen, []
        return seen

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if function is nn.functional.scaled_dot_product_attention:
            self.seen.append(softmax_weights(*args, **(kwargs or {})))
        return function(*args, **(kwargs or {}))
