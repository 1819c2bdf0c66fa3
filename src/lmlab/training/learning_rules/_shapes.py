"""The shapes inside a model, found without computing any values."""

import copy
from typing import Any

import torch
from torch import nn

from lmlab.model.models.base import LanguageModel
from lmlab.training.learning_rules._detached_blocks import unit_outputs


def meta_copy(model: LanguageModel) -> LanguageModel:
    """A copy on the device `meta`, which computes shapes alone.

    It is in evaluation mode, in which no layer asks for a tensor's values. Tied weights stay tied.
    """
    copies: dict[int, Any] = {}
    for parameter in model.parameters():
        meta = parameter.detach().to("meta")
        copies[id(parameter)] = nn.Parameter(meta, parameter.requires_grad)
    for buffer in model.buffers():
        copies[id(buffer)] = buffer.to("meta")
    return copy.deepcopy(model, copies).eval()


def stream_widths(model: LanguageModel) -> list[int]:
    """How many numbers the embedding, and then each block, outputs for a token."""
    if model.plain_stream:
        # without a trial run, for which torch would load its compiler (2 s)
        return [model.width] * (1 + len(model.blocks))
    tokens_BT = torch.zeros(1, 2, dtype=torch.long, device="meta")
    with torch.no_grad():
        return [s_BTS.shape[-1] for s_BTS in unit_outputs(meta_copy(model), tokens_BT)]
