"""Which tokens may be drawn: the likeliest few, or those that share most of the probability.

Each keeps a set of tokens, and the probabilities of those that all of them keep are divided by
their sum. Tokens as likely as the last one kept stay with it, so that the order of the vocabulary
decides nothing.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Truncation:
    """How a distribution is cut off; the defaults keep all of it."""

    top_k: int = 0
    """The k likeliest tokens (Fan et al. 2018); 0: all."""
    top_p: float = 1.0
    """The fewest tokens that together have at least this probability (nucleus sampling, Holtzman et
    al. 2020).
    """
    min_p: float = 0.0
    """Tokens at least this share as likely as the likeliest (Nguyen et al. 2024)."""

    def kept(self, probabilities_BV: Tensor) -> Tensor:
        """Which tokens may be drawn, shape (B, V), booleans: at least one in each row."""
        by_rank_BV = probabilities_BV.sort(dim=-1, descending=True).values
        least_B = by_rank_BV[:, 0] * self.min_p
        if self.top_k:
            last = min(self.top_k, by_rank_BV.shape[1]) - 1
            least_B = torch.maximum(least_B, by_rank_BV[:, last])
        if self.top_p < 1:
            before_BV = by_rank_BV.cumsum(-1) - by_rank_BV  # what the likelier ones have
            counts_B = (before_BV < self.top_p).sum(-1).clamp(min=1)
            last_B = by_rank_BV.gather(1, counts_B[:, None] - 1)[:, 0]
            least_B = torch.maximum(least_B, last_B)
        least_B = torch.minimum(least_B, by_rank_BV[:, 0])
        return probabilities_BV >= least_B[:, None]

    def of(self, probabilities_BV: Tensor) -> Tensor:
        """The probabilities after cutting, which add up to 1 in each row."""
        cut_BV = probabilities_BV * self.kept(probabilities_BV)
        return cut_BV / cut_BV.sum(-1, keepdim=True)
