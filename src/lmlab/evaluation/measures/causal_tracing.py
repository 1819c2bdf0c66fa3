"""Where a model carries what it has read: causal tracing (Meng et al. 2022, "ROME").

One token is made unreadable: noise is added to its vector as it enters the first block. That moves
the model's prediction `distance` tokens later, from p to q. Then, block by block, the stream of the
clean run is put back at a single position of the corrupted run, which then predicts r:

    restored = 1 - KL(p || r) / KL(p || q)

At the position of the corrupted token (`at_source`) it falls from 1 to 0 with depth, at the
position that predicts (`at_end`) it rises from 0 to 1: between lies the block that moves it. (The
paper compares the probability of one right answer; the divergence needs none, Zhang & Nanda 2024.)
"""

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lmlab.core.params import Params
from lmlab.evaluation.about import WINDOW
from lmlab.evaluation.measures.base import DoesNotApply, Measure, Numbers, Trained, evenly
from lmlab.model.models.base import LanguageModel
from lmlab.model.places import Change, changed, record

BATCH = 32
"""Windows in a pass."""


class Options(Params):
    """Options of the measure."""

    windows: int = Field(ge=1, le=100_000)
    distance: int = Field(ge=1)
    noise: float = Field(gt=0)
    seed: int = Field(ge=0)


class CausalTracing(Measure):
    """The shares of a token's effect that each block's output carries, at two positions.

    In each of `windows` windows of validation the token `distance` before the last position is
    corrupted by Gaussian noise of `noise` standard deviations of the vectors there. `total_nats` is
    the mean divergence KL(p || q) of the last position's prediction, in nats; `at_source.<block>`
    and `at_end.<block>` are the shares of it that putting back a block's output removes. None of
    the numbers is better by itself.
    """

    facts = ("windows",)
    decided_by: ClassVar = {"*": (WINDOW,)}

    def __init__(self, options: Options) -> None:
        self.options = options

    def measure(self, trained: Trained) -> Numbers:
        tokens_BT = self._windows(trained)
        tracer = _Tracer(trained.model, self.options.distance)
        rng = torch.Generator().manual_seed(self.options.seed)
        sums = torch.zeros(1 + 2 * len(trained.model.blocks), dtype=torch.float64)
        for first in range(0, len(tokens_BT), BATCH):
            batch_BT = tokens_BT[first : first + BATCH]
            sums += tracer.divergences(batch_BT, self.options.noise, rng)
        total, *left = (sums / len(tokens_BT)).tolist()
        if total <= 0:
            raise DoesNotApply(
                f"the token {self.options.distance} before the last does not change what this"
                " model predicts"
            )
        shares = [1 - divergence / total for divergence in left]
        blocks = range(len(trained.model.blocks))
        return {
            "total_nats": total,
            "at_source": {str(block): shares[2 * block] for block in blocks},
            "at_end": {str(block): shares[2 * block + 1] for block in blocks},
            "windows": len(tokens_BT),
        }

    def _windows(self, trained: Trained) -> Tensor:
        """Windows of validation, evenly spread, of shape (B, T)."""
        ids = trained.shards.stream("validation")
        length = trained.model.context
        if length <= self.options.distance or len(ids) < length:
            raise DoesNotApply(
                f"no window of validation has a token {self.options.distance} before its last"
            )
        starts = evenly(0, len(ids) - length, self.options.windows)
        rows = np.stack([ids[start : start + length].astype(np.int64) for start in starts])
        return torch.from_numpy(rows).to(next(trained.model.parameters()).device)


class _Tracer:
    """Runs a model clean, corrupted, and corrupted with one clean state put back."""

    def __init__(self, model: LanguageModel, distance: int) -> None:
        self.model, self.source = model, -1 - distance
        self.outputs = [f"blocks.{number}.output" for number in range(len(model.blocks))]

    @torch.no_grad()
    def divergences(self, tokens_BT: Tensor, noise: float, rng: torch.Generator) -> Tensor:
        """Sums over the batch of KL(clean || run): for the corrupted run, then for each block with
        its clean output put back at the source and at the end.
        """
        with record(self.model, ["embedding", *self.outputs]) as clean:
            log_p_BV = self._prediction(tokens_BT)
        vectors_BS = clean["embedding"][:, self.source]
        drawn_BS = torch.randn(vectors_BS.shape, generator=rng).to(vectors_BS)
        corrupted_BS = vectors_BS + noise * clean["embedding"].std() * drawn_BS
        sums = []
        with changed(self.model, {"embedding": _put(corrupted_BS, self.source)}):
            sums.append(_divergence(log_p_BV, self._prediction(tokens_BT)))
            for place, position in self._restorations():
                restored = _put(clean[place][:, position], position)
                with changed(self.model, {place: restored}):
                    sums.append(_divergence(log_p_BV, self._prediction(tokens_BT)))
        return torch.stack(sums).cpu()

    def _restorations(self) -> Iterator[tuple[str, int]]:
        for place in self.outputs:
            yield place, self.source
            yield place, -1

    def _prediction(self, tokens_BT: Tensor) -> Tensor:
        """Log-probabilities of the token behind the window, of shape (B, V)."""
        return self.model(tokens_BT)[:, -1].double().log_softmax(-1)


def _divergence(log_p_BV: Tensor, log_q_BV: Tensor) -> Tensor:
    """The sum over the batch of KL(p || q) = sum p (ln p - ln q), in nats."""
    return (log_p_BV.exp() * (log_p_BV - log_q_BV)).sum()


def _put(state_BS: Tensor, position: int) -> Change:
    """A change that sets what flows through a place at one position."""

    def put(x_BTS: Tensor) -> Tensor:
        x_BTS[:, position] = state_BS
        return x_BTS

    return put
