"""Parameters that the calls decide: one that always gets the same constant is that constant, and
one that is not read is not handed over.
"""

import ast
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lmlab.export.eject.simplify import Known, Simplify
from lmlab.export.eject.source import plain_name

WITHOUT_EFFECT = {"width_powers", "getattr", "get", "_shrinkage"}
"""Functions and methods whose call can go where its result is not used."""
OF_TORCH = {
    name
    for owner in (Tensor, nn.Module, nn.functional, torch, torch.optim.Optimizer, dict, list, str)
    for name in dir(owner)
}
"""Methods of these names may be torch's or Python's where they are called."""


@dataclass
class Callee:
    """Functions of one name that the same calls may reach."""

    functions: list[ast.FunctionDef]
    calls: list[ast.Call]
    is_method: bool

    @property
    def parameters(self) -> list[ast.arg]:
        """Those that calls give values."""
        return self.functions[0].args.args[self.is_method :]


def settle_parameters(nodes: list[ast.stmt], asked_for: Collection[str]) -> None:
    """Leave out what all calls of a function agree on, and what no function of the name reads.

    Functions in `asked_for` are called from elsewhere too.
    """
    for callee in _callees(nodes, asked_for):
        if callee.calls and _is_plain(callee):
            _fold_constants(callee)
            _drop_unread(callee)


def _callees(nodes: list[ast.stmt], asked_for: Collection[str]) -> Iterator[Callee]:
    functions: dict[tuple[str, bool], list[ast.FunctionDef]] = {}
    constructors: dict[str, list[ast.FunctionDef]] = {}
    for node in nodes:
        if isinstance(node, ast.FunctionDef):
            functions.setdefault((node.name, False), []).append(node)
        for member in node.body if isinstance(node, ast.ClassDef) else []:
            assert isinstance(node, ast.ClassDef)
            if isinstance(member, ast.FunctionDef) and member.name == "__init__":
                constructors.setdefault(node.name, []).append(member)
            elif isinstance(member, ast.FunctionDef) and not member.name.startswith("__"):
                functions.setdefault((member.name, True), []).append(member)
    calls: dict[tuple[str, bool], list[ast.Call]] = {}
    handed_on: set[str] = set()
    for node in nodes:
        called = set()
        for part in ast.walk(node):
            if isinstance(part, ast.Call):
                called.add(id(part.func))
                name = _name_of(part.func)
                calls.setdefault((name, isinstance(part.func, ast.Attribute)), []).append(part)
        for part in ast.walk(node):
            if isinstance(part, ast.Name | ast.Attribute) and id(part) not in called:
                handed_on.add(_name_of(part))
    closed = {*asked_for, *handed_on}
    for (name, is_method), same in functions.items():
        if name in closed or (is_method and name in OF_TORCH) or (len(same) > 1 and not is_method):
            continue
        yield Callee(same, calls.get((name, is_method), []), is_method)
    for name, same in constructors.items():
        if name not in closed and len(same) == 1:
            yield Callee(same, calls.get((name, False), []), is_method=True)


def _is_plain(callee: Callee) -> bool:
    """Whether it is clear which value each parameter gets."""
    names = {tuple(each.arg for each in function.args.args) for function in callee.functions}
    defaults = {
        tuple(ast.dump(each) for each in function.args.defaults) for function in callee.functions
    }
    if len(names) > 1 or len(defaults) > 1:
        return False
    for function in callee.functions:
        if function.args.vararg or function.args.kwarg or function.decorator_list:
            return False
    return not any(
        any(isinstance(each, ast.Starred) for each in call.args)
        or any(keyword.arg is None for keyword in call.keywords)
        for call in callee.calls
    )


def _fold_constants(callee: Callee) -> None:
    constants: dict[str, ast.expr] = {}
    defaults = defaults_of(callee.functions[0])
    for index, argument in enumerate(callee.parameters):
        values = [given(call, index, argument.arg, defaults) for call in callee.calls]
        first = values[0]
        if (
            first
            and _is_settled(first)
            and all(each and _are_equal(each, first) for each in values)
        ):
            constants[argument.arg] = first
    stored = {
        part.id
        for function in callee.functions
        for part in ast.walk(function)
        if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)
    }
    constants = {name: value for name, value in constants.items() if name not in stored}
    if constants:
        _leave_out(callee, constants)
        for function in callee.functions:
            replace_names(function, constants)


def _drop_unread(callee: Callee) -> None:
    read = {
        part.id
        for function in callee.functions
        for statement in function.body
        for part in ast.walk(statement)
        if isinstance(part, ast.Name)
    }
    defaults = defaults_of(callee.functions[0])
    unread = set()
    for index, argument in enumerate(callee.parameters):
        values = [given(call, index, argument.arg, defaults) for call in callee.calls]
        if argument.arg not in read and all(each and has_no_effect(each) for each in values):
            unread.add(argument.arg)
    if unread:
        _leave_out(callee, unread)


def _leave_out(callee: Callee, names: Collection[str]) -> None:
    """Take parameters from functions and from their calls."""
    positions = {index for index, argument in enumerate(callee.parameters) if argument.arg in names}
    for call in callee.calls:
        call.args = [value for index, value in enumerate(call.args) if index not in positions]
        call.keywords = [keyword for keyword in call.keywords if keyword.arg not in names]
    for function in callee.functions:
        arguments, defaults = function.args, defaults_of(function)
        kept = [argument for argument in arguments.args if argument.arg not in names]
        arguments.defaults = [defaults[each.arg] for each in kept if each.arg in defaults]
        arguments.args = kept


def _is_settled(value: ast.expr) -> bool:
    """Whether a constant is one that makes code simpler."""
    if not isinstance(value, ast.Constant):
        return False
    return isinstance(value.value, bool | None) or (type(value.value) is int and value.value == 0)


def defaults_of(function: ast.FunctionDef) -> dict[str, Any]:
    """By name, the values of parameters that a call need not give."""
    arguments = function.args
    pairs = zip(reversed(arguments.args), reversed(arguments.defaults))
    return {argument.arg: default for argument, default in pairs}


def _name_of(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else plain_name(getattr(node, "id", ""))


def _are_equal(one: ast.expr, other: ast.expr) -> bool:
    return ast.dump(one) == ast.dump(other)


def given(call: ast.Call, index: int, name: str, defaults: dict[str, Any]) -> ast.expr | None:
    """What a call gives for a parameter."""
    if index < len(call.args):
        return call.args[index]
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value
    return defaults.get(name)


def has_no_effect(value: ast.expr) -> bool:
    """Whether evaluating something does nothing else."""
    if any(isinstance(part, ast.NamedExpr | ast.Yield | ast.Await) for part in ast.walk(value)):
        return False
    calls = [part for part in ast.walk(value) if isinstance(part, ast.Call)]
    return all(_name_of(each.func) in WITHOUT_EFFECT for each in calls)


# ------------------------------------------------------------ names


class Substitute(ast.NodeTransformer):
    """Puts expressions in the place of names."""

    def __init__(self, values: dict[str, ast.expr]) -> None:
        self.values = values

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if isinstance(node.ctx, ast.Load) and node.id in self.values:
            return self.values[node.id]
        return node


class _Zero(ast.NodeTransformer):
    """0 + x as x, and x[0:n] as x[:n]."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        is_sum = isinstance(node.op, ast.Add)
        return node.right if is_sum and _is_zero(node.left) else node

    def visit_Slice(self, node: ast.Slice) -> ast.expr:
        self.generic_visit(node)
        if node.lower is not None and _is_zero(node.lower):
            node.lower = None
        return node


def _is_zero(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is int and node.value == 0


def replace_names(function: ast.FunctionDef, values: dict[str, ast.expr]) -> None:
    """Put constants in the place of a function's names, and decide what they decide."""
    substitute, simplify = Substitute(values), Simplify(Known(absent=()))
    function.body = [substitute.visit(each) for each in function.body]
    if any(_is_zero(value) for value in values.values()):
        function.body = [_Zero().visit(each) for each in function.body]
    decorators, returns, arguments = function.decorator_list, function.returns, function.args
    simplify.visit(function)
    function.decorator_list, function.returns, function.args = decorators, returns, arguments
    ast.fix_missing_locations(function)
