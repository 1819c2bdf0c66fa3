"""Long short-term memory (Hochreiter & Schmidhuber 1997) in residual blocks.

A cell c carries what is kept; at each token gates decide what is added, kept and output (forget
gates: Gers et al. 2000). The cache is the last cell and the last output of each block: a state of
fixed size, with no limit to the receptive field but what the gates forget.
"""

import torch
from pydantic import Field
from torch import Tensor, nn

from lmlab.core.params import Params
from lmlab.model.layers.cache import Cache
from lmlab.model.models.base import LanguageModel, Norm, init_weights
from lmlab.model.places import Place


class Options(Params):
    """Options of the model."""

    layers: int = Field(ge=1)
    width: int = Field(ge=1)


class Recurrence(nn.Module):
    """c = forget * c + input * tanh(candidate); h = output * tanh(c).

    The gates and the candidate are linear in the token's vector and the last h.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        # rows in the order input, forget, output, candidate: the first three share one sigmoid
        self.from_input = nn.Linear(width, 4 * width)
        self.from_last = nn.Linear(width, 4 * width, bias=False)
        self.sections = dict.fromkeys(("from_input", "from_last"), (width,) * 4)
        self.state = Place()

    def forward(self, x_BTD: Tensor, cache: Cache | None) -> Tensor:
        width = x_BTD.shape[-1]
        h_BD = c_BD = x_BTD.new_zeros(x_BTD.shape[0], width)
        if cache is not None and cache.seen:
            h_BD, c_BD = cache.tensors["output"], cache.tensors["cell"]
        outputs = []
        # what does not need the last h is one matrix product for all positions
        projected_BTE = self.from_input(x_BTD)
        for projected_BE in projected_BTE.unbind(dim=1):
            summed_BE = projected_BE + self.from_last(h_BD)
            gates, candidate = summed_BE.split((3 * width, width), dim=-1)
            input_gate, forget_gate, output_gate = gates.sigmoid().chunk(3, dim=-1)
            c_BD = forget_gate * c_BD + input_gate * candidate.tanh()
            h_BD = output_gate * c_BD.tanh()
            outputs.append(h_BD)
        if cache is not None:
            cache.tensors["output"], cache.tensors["cell"] = h_BD, c_BD
        return self.state(torch.stack(outputs, dim=1))


class Block(nn.Module):
    """x + recurrence(norm(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.recurrence = Norm(width), Recurrence(width)

    def forward(self, x_BTD: Tensor, cache: Cache | None = None) -> Tensor:
        return x_BTD + self.recurrence(self.norm(x_BTD), cache)


class LSTM(LanguageModel):
    """Embedding, `layers` blocks, final norm, output head."""

    readout: nn.Linear

    def __init__(self, options: Options, vocabulary_size: int, context: int) -> None:
        super().__init__()
        width = options.width
        self.vocabulary_size, self.context, self.width = vocabulary_size, context, width
        self.embedding = nn.Embedding(vocabulary_size, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(options.layers))
        self.final_norm = Norm(width)
        self.readout = nn.Linear(width, vocabulary_size, bias=False)
        init_weights(self)
        for module in self.modules():
            if isinstance(module, Recurrence):
                # the forget gate: initially a cell keeps most of what it holds (Jozefowicz et al.
                # 2015)
                nn.init.constant_(module.from_input.bias[width : 2 * width], 1.0)

    def embed(self, tokens_BT: Tensor, cache: Cache | None = None) -> Tensor:
        return self.embedding(tokens_BT)

    def head(self, x_BTD: Tensor) -> Tensor:
        return self.readout(self.final_norm(x_BTD))
