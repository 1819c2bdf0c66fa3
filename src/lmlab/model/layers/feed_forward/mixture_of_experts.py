"""Mixture of experts (Shazeer et al. 2017; Fedus et al. 2022): several feed-forward layers, of
which each token uses a few.

A router gives each token a share of every expert, all shares together 1; those with the largest
shares work on it, and their answers are weighed by the shares. Left alone, a router soon sends
everything to the same expert. So the gradient of a penalty is added in the backward pass: `balance`
times the number of experts times the sum over experts of (share of tokens sent there) x (mean share
given), which is least when all are used alike. The loss reported stays that of the text alone.

In evaluation every token goes to every expert, those not chosen weighed by 0, so that it is causal
bit for bit. In training an expert is given its own tokens alone; how many they are decides how its
matrix products are cut up, so there a token may change those before it in the last bit: causal to
rounding. The penalty is that of a piece of the batch (`train.gradient_accumulation`).
"""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.errors import UserError
from lmlab.core.params import Params
from lmlab.core.registry import Choice, OneOf
from lmlab.model.layers.feed_forward.base import FeedForward


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
                f"params.yaml: layers.feed_forward.mixture_of_experts.active ({options.active})"
                " is more than there are"
                f" experts ({options.experts}); set it to {options.experts} or less"
            )
        self.active, self.balance = options.active, options.balance
        self.router = nn.Linear(width, options.experts, bias=False)
        self.experts = nn.ModuleList(expert.build(width) for _ in range(options.experts))

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_ND = x_BTD.flatten(0, 1)
        shares_NE = self.router(x_ND).softmax(dim=-1)
        chosen_NA = shares_NE.topk(self.active, dim=-1).indices
        weights_NE = torch.zeros_like(shares_NE).scatter(
            -1, chosen_NA, shares_NE.gather(-1, chosen_NA)
        )
        y_ND = torch.zeros_like(x_ND)
        for number, expert in enumerate(self.experts):
            weight_N = weights_NE[:, number]
            if self.training:
                token = (chosen_NA == number).any(dim=-1).nonzero()[:, 0]
                answer = expert(x_ND[token]) * weight_N[token, None]
                y_ND = y_ND.index_add(
                    0, token, answer.to(y_ND.dtype)
                )  # in lower precision experts answer in that
            else:
                # all tokens go to all experts: no bit of one may depend on how many others share
                # its expert
                y_ND = y_ND + expert(x_ND) * weight_N[:, None]
        if self.training and self.balance:
            y_ND = _AddPenalty.apply(y_ND, self.balance * self.penalty(shares_NE, chosen_NA))  # type: ignore[no-untyped-call]
        return y_ND.view_as(x_BTD)

    def penalty(self, shares_NE: Tensor, chosen_NA: Tensor) -> Tensor:
        """1 when every expert is used alike, up to the number of experts when one does all (Fedus
        et al., equation 4).
        """
        experts = shares_NE.shape[-1]
        used_E = torch.bincount(chosen_NA.flatten(), minlength=experts) / chosen_NA.numel()
        return experts * (used_E * shares_NE.mean(dim=0)).sum()


class _AddPenalty(torch.autograd.Function):
    """The first argument as it is; backward, the penalty gets the gradient it would have as a
    summand of the loss.
    """

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
