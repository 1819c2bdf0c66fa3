"""The loss of each token alone, for rules that assign credit token by token."""

import torch
from torch import Tensor, nn


def token_losses(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """losses_BT: the cross-entropy of every target in nats, in float32 at least."""
    dtype = torch.promote_types(logits_BTV.dtype, torch.float32)
    logits_NV = logits_BTV.flatten(0, 1).to(dtype)
    losses_N = nn.functional.cross_entropy(logits_NV, targets_BT.flatten(), reduction="none")
    return losses_N.view_as(targets_BT)
