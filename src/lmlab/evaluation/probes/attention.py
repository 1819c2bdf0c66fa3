"""How widely each attention head looks, and whether it is an induction head (Olsson et al. 2022).

`entropy` is the mean over positions of -Σ w ln w, in nats, over a head's weights w: ln t where t
tokens have equal weight, 0 where one has all of it. `induction`: random tokens are read twice over;
in the second round it is the mean weight that a token gives to the token after its first
occurrence, 1 for a perfect induction head.
"""

from collections.abc import Callable, Iterator

import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.evaluation.probes.base import (
    Batch,
    Probe,
    Reading,
    Snapshot,
    nothing_to_look_at,
)
from lmlab.model import places
from lmlab.model.models.base import LanguageModel


class Options(Params):
    """Options of the probe."""

    sequences: int = Field(ge=1, le=100_000)
    seed: int = Field(ge=0)


class Attention(Probe):
    """Entropy and induction by block and head, for every attention with a softmax."""

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
        if not attention_patterns(model):
            raise nothing_to_look_at(self, snapshot)
        period = max(1, model.context // 2)
        once_BT = random_tokens(options.sequences, period, model.vocabulary_size, options.seed)
        twice_BT = once_BT.to(batch.tokens.device).repeat(1, 2)
        yield from _by_head("entropy", model, batch.tokens, entropy)
        yield from _by_head("induction", model, twice_BT, lambda w: induction(w, period))


def attention_patterns(model: LanguageModel) -> list[str]:
    """The places where a model has attention weights."""
    return [name for name in places.names(model) if name.endswith(".pattern")]


def _by_head(
    measure: str, model: LanguageModel, tokens_BT: Tensor, of_heads: Callable[[Tensor], Tensor]
) -> list[Reading]:
    """A reading for each head, of what `of_heads` computes from weights of shape (B, H, T, S)."""
    with torch.no_grad(), places.record(model, attention_patterns(model)) as patterns:
        model(tokens_BT)
    readings = []
    for name, weights_BHTS in patterns.items():
        block = ".".join(name.split(".")[:2])
        for head, value in enumerate(of_heads(weights_BHTS.double()).tolist()):
            readings.append(Reading(measure, f"{block}.head.{head}", value))
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
