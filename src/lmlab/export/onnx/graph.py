"""A model as a graph: tokens (batch, time) and states in, logits and the next states out.

torch traces the model with sizes left open. Where that fixes the number of tokens, as a loop over
time does, it traces the model for a single one instead, and the graph computes that for one token
after the other (ONNX's operator `Loop`).
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import Dim, ExportedProgram
from torch.utils._sympy.numbers import int_oo

from lmlab.core.errors import UserError
from lmlab.export.onnx.states import BATCH, PAST, State
from lmlab.export.onnx.step import Step, symbolic_max
from lmlab.model.models.base import LanguageModel

OPSET, IR_VERSION = 18, 10
"""The versions of ONNX's operators and of its file: the oldest that torch exports."""
TIME = "time"
TOKENS, LOGITS, SEEN = "tokens", "logits", "seen"
NEXT, INNER = "next.", "step."
"""Begin the names of a state after the tokens, and of what is inside the loop."""
TRACED_BATCH, TRACED_TIME = 3, 5
"""Sizes to trace with. Those of 0 and 1 would be taken for fixed."""
MOST_BYTES = 1_800_000_000
"""Of a graph in one file: Protocol Buffers end at 2 GB."""


@dataclass(frozen=True)
class Port:
    """A state as an input of the graph; the output that gives its next value is named `next`."""

    name: str
    dtype: str
    """As numpy calls it."""
    shape: tuple[int | str, ...]
    initial: int

    @property
    def next(self) -> str:
        return NEXT + self.name

    @property
    def next_shape(self) -> tuple[int | str, ...]:
        """The shape of its next value; how much it has grown is not known beforehand."""
        return tuple(NEXT + PAST if size == PAST else size for size in self.shape)


@dataclass(frozen=True)
class Graph:
    """A model as a graph."""

    proto: Any
    """An onnx.ModelProto."""
    ports: list[Port]
    loops: bool
    """Whether it computes token after token."""

    def save(self, file: Path) -> bool:
        """Write it, with the weights in a second file, `.data`, where they are too large for one.

        Returns whether they are.
        """
        import onnx

        large = bool(self.proto.ByteSize() > MOST_BYTES)
        data = f"{file.name}.data"
        onnx.save_model(self.proto, file, save_as_external_data=large, location=data)
        return large


def graph_of(model: LanguageModel, states: list[State]) -> Graph:
    """The graph of a model in evaluation mode whose cache keeps these states.

    Raises UserError where torch cannot trace the model.
    """
    step = Step(model, states)
    ports = [_port(state) for state in states]
    if step.counts:
        ports.insert(0, Port(SEEN, "int64", (), 0))
    with _quiet(), symbolic_max(), torch.no_grad():
        program = _of_any_length(step)
        loops = program is None
        try:
            traced = _converted(program or _traced(step, 1), ports, INNER if loops else "")
        except Exception as error:  # of many kinds
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"train.model: {model.choice.name} cannot be exported to ONNX: torch does not trace"
                f" it, or one of its layers ({reason})"
            ) from error
    body = _looped(traced, ports) if loops else traced
    return Graph(_assembled(body, ports, model.vocabulary_size), ports, loops)


def _port(state: State) -> Port:
    dtype = str(state.dtype).removeprefix("torch.")
    return Port(state.name, dtype, state.shape, state.initial)


def _traced(step: Step, time: int) -> ExportedProgram:
    """The step as torch traces it, with all sizes open but that of a single token."""
    tokens_BT = torch.zeros(TRACED_BATCH, time, dtype=torch.int64)
    # more than any window holds, so that none is found not to be full
    past = step.model.context + TRACED_BATCH + TRACED_TIME
    before = [state.filled(TRACED_BATCH, past) for state in step.states]
    open_sizes: list[dict[int, Any]] = [
        {place: Dim.AUTO for place, size in enumerate(state.shape) if isinstance(size, str)}
        for state in step.states
    ]
    if step.counts:
        before.insert(0, torch.tensor(past))
        open_sizes.insert(0, {})
    of_tokens = {0: Dim.AUTO, 1: Dim.AUTO} if time > 1 else {0: Dim.AUTO}
    return torch.export.export(
        step, (tokens_BT, before), dynamic_shapes=(of_tokens, open_sizes), strict=False
    )


def _of_any_length(step: Step) -> ExportedProgram | None:
    """The step traced for any number of tokens; None where what is traced holds for some alone."""
    try:
        program = _traced(step, TRACED_TIME)
    except Exception:  # of many kinds; whether single tokens can be traced is seen then
        return None
    first_input = program.graph_signature.user_inputs[0]
    tokens = next(node for node in program.graph.nodes if node.name == first_input)
    time = tokens.meta["val"].shape[1]
    if not isinstance(time, torch.SymInt):
        return None
    bounds = program.range_constraints.get(time.node.expr)
    any_length = bounds is not None and bounds.lower <= 2 and bounds.upper == int_oo
    return program if any_length else None


def _converted(program: ExportedProgram, ports: list[Port], prefix: str) -> Any:
    """What was traced as an onnx.GraphProto; the prefix begins the names of what it computes."""
    converted = torch.onnx.export(
        program,
        (),
        dynamo=True,
        opset_version=OPSET,
        input_names=[prefix + TOKENS, *(prefix + port.name for port in ports)],
        output_names=[prefix + LOGITS, *(prefix + port.next for port in ports)],
        verbose=False,
    )
    assert converted is not None
    return converted.model_proto.graph


def _looped(step: Any, ports: list[Port]) -> Any:
    """The graph that calls a step, which reads a single token, for each of the tokens."""
    from onnx import TensorProto, helper

    def value(name: str, port: Port) -> Any:
        return helper.make_tensor_value_info(name, _element_type(port.dtype), None)

    column = [
        helper.make_node("Gather", [TOKENS, "loop.number"], ["loop.column"], axis=1),
        helper.make_node("Unsqueeze", ["loop.column", "loop.axis"], [INNER + TOKENS]),
    ]
    ends = [
        helper.make_node("Squeeze", [INNER + LOGITS, "loop.axis"], ["loop.row"]),
        helper.make_node("Identity", ["loop.more"], ["loop.goes_on"]),
    ]
    body = helper.make_graph(
        [*column, *step.node, *ends],
        "step",
        inputs=[
            helper.make_tensor_value_info("loop.number", TensorProto.INT64, []),
            helper.make_tensor_value_info("loop.more", TensorProto.BOOL, []),
            *(value(INNER + port.name, port) for port in ports),
        ],
        outputs=[
            helper.make_tensor_value_info("loop.goes_on", TensorProto.BOOL, []),
            *(value(INNER + port.next, port) for port in ports),
            helper.make_tensor_value_info("loop.row", TensorProto.FLOAT, None),
        ],
    )
    names, next_names = [port.name for port in ports], [port.next for port in ports]
    nodes = [
        helper.make_node("Shape", [TOKENS], ["loop.length"], start=1),
        helper.make_node("Squeeze", ["loop.length"], ["loop.count"]),
        helper.make_node(
            "Loop", ["loop.count", "loop.always", *names], [*next_names, "loop.rows"], body=body
        ),
        helper.make_node("Transpose", ["loop.rows"], [LOGITS], perm=[1, 0, 2]),
    ]
    constants = [
        helper.make_tensor("loop.always", TensorProto.BOOL, [], [True]),
        helper.make_tensor("loop.axis", TensorProto.INT64, [1], [1]),
    ]
    return helper.make_graph(nodes, "model", [], [], [*step.initializer, *constants])


def _assembled(body: Any, ports: list[Port], vocabulary_size: int) -> Any:
    """The model of a graph's nodes and weights, its inputs and outputs described anew.

    What torch notes about the program it traced is left out: where its files lay, for one.
    """
    from onnx import TensorProto, helper

    def value(name: str, dtype: str, shape: tuple[int | str, ...]) -> Any:
        return helper.make_tensor_value_info(name, _element_type(dtype), shape)

    graph = helper.make_graph(
        list(body.node),
        "model",
        inputs=[
            helper.make_tensor_value_info(TOKENS, TensorProto.INT64, [BATCH, TIME]),
            *(value(port.name, port.dtype, port.shape) for port in ports),
        ],
        outputs=[
            value(LOGITS, "float32", (BATCH, TIME, vocabulary_size)),
            *(value(port.next, port.dtype, port.next_shape) for port in ports),
        ],
        initializer=list(body.initializer),
    )
    _without_notes(graph)
    opsets = [helper.make_opsetid("", OPSET)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="lmlab"
    )


def _without_notes(graph: Any) -> None:
    for tensor in graph.initializer:
        del tensor.metadata_props[:]
    for node in graph.node:
        del node.metadata_props[:]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _without_notes(attribute.g)


def _element_type(dtype: str) -> int:
    """ONNX's number of a type."""
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Inside, nothing is told of how torch traces."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
