"""Mixture of experts (Shazeer et al. 2017; Fedus et al. 2022): each token uses a few of them.

A router gives each token a share of every expert; the shares add up to 1. The experts with the
largest shares process the token, and their outputs are weighted by the shares.

Left alone, a router soon sends everything to the same expert. So the backward pass adds the
gradient of a load-balancing penalty: `balance` times the number of experts times the sum over
experts of (fraction of tokens sent there) x (mean share), which is least when all experts are used
equally. The reported loss remains that of the text alone. Under gradient accumulation the penalty
is computed on each piece of the batch.

In evaluation every expert processes every token, with weight 0 where it was not chosen, so the
layer is causal bit for bit. In training an expert processes only its own tokens. Their number
decides how its matrix products are split up, so a token may change the last bit of earlier ones:
there the layer is causal up to rounding.
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.core.registry import Choice, OneOf
from lmlab.model.layers.feed_forward.base import FeedForward
from lmlab.model.places import Place


class Options(Params):
    """Options of the layer."""

    expert: Annotated[str, OneOf("layers.feed_forward")]
    experts: int = Field(ge=1, le=1024)
    active: int = Field(ge=1)
    balance: float = Field(ge=0)


class MixtureOfExperts(FeedForward):
    """sum over the chosen experts e of share_e(x) * expert_e(x)."""

    out = None

    def __init__(self, options: Options, width: int, expert: Choice) -> None:
        super().__init__()
        if options.active > options.experts:
            raise UserError(
                f"params.yaml: layers.feed_forward.mixture_of_experts.active ({options.active}) is"
                f" more than there are experts ({options.experts}); set it to {options.experts} or"
                " less"
            )
        self.active, self.balance = options.active, options.balance
        self.router = nn.Linear(width, options.experts, bias=False)
        self.shares = Place()
        self.experts = nn.ModuleList(expert.build(width) for _ in range(options.experts))

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        shares_NE = self.router(x_ND).softmax(dim=-1)
        shares_NE = self.shares(shares_NE.view(*x_BTD.shape[:2], -1)).flatten(0, 1)
        chosen_NA = shares_NE.topk(self.active, dim=-1).indices
        chosen_shares_NA = shares_NE.gather(-1, chosen_NA)
        weights_NE = torch.zeros_like(shares_NE).scatter(-1, chosen_NA, chosen_shares_NA)
        y_ND = torch.zeros_like(x_ND)
        for number, expert in enumerate(self.experts):
            weight_N = weights_NE[:, number]
            if self.training:
                rows = (chosen_NA == number).any(dim=-1).nonzero()[:, 0]
                weighted = expert(x_ND[rows]) * weight_N[rows, None]
                # under autocast experts return a lower precision
                y_ND = y_ND.index_add(0, rows, weighted.to(y_ND.dtype))
            else:
                # every expert gets all tokens: no bit of a token's output may depend on how many
                # others share its expert
                y_ND = y_ND + expert(x_ND.view_as(x_BTD)).flatten(0, 1) * weight_N[:, None]
        if self.training and self.balance:
            penalty = self.balance * self.penalty(shares_NE, chosen_NA)
            y_ND = _AddPenalty.apply(y_ND, penalty)  # type: ignore[no-untyped-call]
        return y_ND.view_as(x_BTD)

    def penalty(self, shares_NE: Tensor, chosen_NA: Tensor) -> Tensor:
        """The load-balancing loss of Fedus et al., equation 4.

        1 when all experts are used equally, up to the number of experts when one gets everything.
        """
        experts = shares_NE.shape[-1]
        used_E = torch.bincount(chosen_NA.flatten(), minlength=experts) / chosen_NA.numel()
        return experts * (used_E * shares_NE.mean(dim=0)).sum()


class _AddPenalty(torch.autograd.Function):
    """Returns y; backward, the penalty gets the gradient it would have as part of the loss."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y_ND: Tensor, penalty: Tensor) -> Tensor:
        return y_ND.view_as(y_ND)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.like = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor, Tensor]:
        return grad_ND, torch.ones_like(ctx.like)

    @staticmethod
    def jvp(ctx: Any, y_ND: Tensor, penalty: Tensor) -> Tensor:
        return y_ND.view_as(y_ND)
