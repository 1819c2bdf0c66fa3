"""What a residual connection is: it gives a layer its input and adds the output to the stream."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor, nn

from lmlab.model.layers.placement.base import Placement

Layer = Callable[..., Tensor]
"""Maps x_BTD to y_BTD. An attention takes a second argument, `map_values` (see `ValueMap`)."""


class Residual(nn.Module, ABC):
    """Carries the residual stream past a layer; the plain connection computes x + layer(norm(x)).

    Final classes take `(options, width, index, placement)`. `index` counts the connections of a
    model from 0: even ones belong to attention, odd ones to feed-forward layers. The placement is
    built, belongs to this connection, and says where it normalises.

    The stream s_BTS holds everything one block hands to the next, so a block stays a function of
    its input alone. It may be wider than the model: S >= D. What every connection must keep:

    - The layer is called exactly once, and position t of the stream depends on positions up to t
      only, bit for bit.
    - `expand` and `reduce` use no weights, so a model may ask any of its connections for them.
    - Every parameter gets a gradient: it has none that would be useless at its index.
    """

    placement: Placement
    widens: bool
    """Whether the stream is more than x_BTD; otherwise `expand` and `reduce` return their input."""

    @abstractmethod
    def expand(self, x_BTD: Tensor) -> Tensor:
        """The embeddings as the stream s_BTS that enters the first block."""

    @abstractmethod
    def forward(self, s_BTS: Tensor, layer: Layer) -> Tensor:
        """The stream s_BTS after the layer."""

    @abstractmethod
    def reduce(self, s_BTS: Tensor) -> Tensor:
        """The stream after the last block as x_BTD, which the final norm reads."""
