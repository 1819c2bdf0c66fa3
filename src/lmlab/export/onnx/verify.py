"""A written graph against the lab's own model: the same tokens, the same logits."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lmlab.core.errors import UserError
from lmlab.export.onnx.graph import LOGITS, TOKENS, Graph
from lmlab.export.onnx.states import BATCH, PAST
from lmlab.export.run import Run
from lmlab.export.scored import scored
from lmlab.model.models.base import LanguageModel

TOLERANCE = 1e-4
"""The largest difference allowed, as a share of the largest logit, or of 1 where that is less."""
MOST_TOKENS = 5_000
"""Of validation text for bits per byte; a graph that loops is slow at long texts."""


@dataclass(frozen=True)
class Agreement:
    """How far a graph's logits are from the model's own."""

    tokens: int
    """How many were read, the batch included."""
    difference: float
    """The largest."""
    largest: float
    """The largest logit, in absolute value."""

    def line(self) -> str:
        """In words."""
        return (
            f"logits of {self.tokens:,} random tokens, read at once and in pieces to beyond two"
            f" contexts, differ by at most {self.difference:.1e} (largest {self.largest:.1f})"
        )

    @property
    def holds(self) -> bool:
        """Whether all differences are within the tolerance; none is if anything is NaN."""
        return self.difference <= TOLERANCE * max(1.0, self.largest)


class Session:
    """A graph in ONNX Runtime, with the states that its last call left."""

    def __init__(self, file: Path, graph: Graph, batch: int) -> None:
        # ONNX Runtime would write down what machine this is, and try to send it
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        self._session: Any = onnxruntime.InferenceSession(
            file, options, providers=["CPUExecutionProvider"]
        )
        self._states: dict[str, NDArray[Any]] = {}
        for port in graph.ports:
            sizes = {BATCH: batch, PAST: 0}
            shape = [sizes[size] if isinstance(size, str) else size for size in port.shape]
            self._states[port.name] = np.full(shape, port.initial, dtype=port.dtype)
        self._outputs = [LOGITS, *(port.next for port in graph.ports)]

    def read(self, tokens_BT: Tensor) -> Tensor:
        """The logits of tokens that continue those of earlier calls."""
        inputs = {TOKENS: tokens_BT.numpy(), **self._states}
        logits_BTV, *states = self._session.run(self._outputs, inputs)
        self._states = dict(zip(self._states, states, strict=True))
        return torch.from_numpy(logits_BTV)


def verify(model: LanguageModel, file: Path, graph: Graph) -> Agreement:
    """Read random tokens by both: a context at once, and several texts, longer than two contexts,
    in pieces of different lengths.

    Raises UserError where ONNX Runtime cannot compute the graph.
    """
    context = model.context
    third, half = max(1, context // 3), max(1, context // 2)
    pieces = [1, third, 2, context, 1, half, 3, third]
    try:
        return _compared(model, file, graph, [(1, [context]), (3, pieces)])
    except Exception as error:  # ONNX Runtime's own have no base class but this
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise UserError(
            f"train.model: {model.choice.name} cannot be exported to ONNX: ONNX Runtime does not"
            f" compute it: {error}"
        ) from None


@torch.no_grad()
def bits_per_byte(run: Run, file: Path, graph: Graph) -> tuple[float, float] | None:
    """Of the lab's model and of the graph on the same validation text; None where there is none."""
    text = scored(run, MOST_TOKENS)
    if not text.is_text:
        return None
    own_nats = graph_nats = 0.0
    for inputs_BT, targets_BT in text.batches():
        session = Session(file, graph, len(inputs_BT))
        own_nats += text.nats(run.model(inputs_BT), targets_BT)
        graph_nats += text.nats(session.read(inputs_BT), targets_BT)
    return text.bits_per_byte(own_nats), text.bits_per_byte(graph_nats)


def _compared(
    model: LanguageModel, file: Path, graph: Graph, readings: Sequence[tuple[int, Sequence[int]]]
) -> Agreement:
    """The agreement over readings, each of a batch of texts in pieces of some lengths."""
    rng = torch.Generator().manual_seed(0)
    tokens, difference, largest = 0, 0.0, 0.0
    for batch, lengths in readings:
        tokens_BT = torch.randint(model.vocabulary_size, (batch, sum(lengths)), generator=rng)
        session = Session(file, graph, batch)
        pieces = torch.split(tokens_BT, list(lengths), dim=1)
        read = torch.cat([session.read(piece) for piece in pieces], dim=1)
        own = _own_logits(model, tokens_BT, graph, lengths)
        tokens += tokens_BT.numel()
        # numpy's, because NaN is the maximum then
        difference = float(np.maximum(difference, (read - own).abs().max().item()))
        largest = float(np.maximum(largest, own.abs().max().item()))
    return Agreement(tokens, difference, largest)


def _own_logits(
    model: LanguageModel, tokens_BT: Tensor, graph: Graph, lengths: Sequence[int]
) -> Tensor:
    """The lab's logits, read in the same pieces.

    Attention in a graph that loops forgets after every token what is beyond its context, so the lab
    reads in single tokens then.
    """
    forgets = any(PAST in port.shape for port in graph.ports)
    by_token = graph.loops and forgets
    pieces = torch.split(tokens_BT, 1 if by_token else list(lengths), dim=1)
    cache = model.new_cache()
    with torch.no_grad():
        return torch.cat([model(piece, cache) for piece in pieces], dim=1)
