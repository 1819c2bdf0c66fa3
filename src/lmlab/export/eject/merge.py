"""Classes from which only one class derives become a part of it, and methods that only call a
function with what they get are no methods any more.
"""

import ast
from collections import Counter
from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Protocol, TypeVar

from lmlab.export.eject.names import local_names
from lmlab.export.eject.parameters import Substitute, defaults_of, given, has_no_effect
from lmlab.export.eject.source import Definition, meaning, qualified

Node = TypeVar("Node", bound=ast.AST)


class HasNode(Protocol):
    """A gathered definition."""

    definition: Definition
    node: ast.stmt


Pieces = Mapping[Definition, HasNode]


def merge(pieces: Pieces, roots: Collection[Definition]) -> bool:
    """Merge one base into the class that alone derives from it; whether there was one."""
    for definition, piece in pieces.items():
        heirs = [each for each in pieces if definition in _bases(pieces[each])]
        if isinstance(piece.node, ast.ClassDef) and len(heirs) == 1 and definition not in roots:
            base, heir = piece.node, pieces[heirs[0]].node
            assert isinstance(heir, ast.ClassDef)
            members = _merged(base, definition.module, heir)
            if members is not None and _only_asked_about(definition, pieces, heirs[0]):
                heir.body = members
                heir.bases = [
                    inner
                    for each in heir.bases
                    for inner in (
                        [_requalified(one, definition.module) for one in base.bases]
                        if _stands_for(each, heirs[0].module) == definition
                        else [each]
                    )
                ]
                for other in pieces.values():
                    _Refer(other.definition.module, definition, heirs[0]).visit(other.node)
                return True
    return False


def _bases(piece: HasNode) -> list[Definition]:
    bases = piece.node.bases if isinstance(piece.node, ast.ClassDef) else []
    found = [_stands_for(base, piece.definition.module) for base in bases]
    return [each for each in found if each is not None]


def _stands_for(node: ast.AST, module: str) -> Definition | None:
    found = meaning(module, node.id) if isinstance(node, ast.Name) else None
    return found if isinstance(found, Definition) else None


def _only_asked_about(definition: Definition, pieces: Pieces, heir: Definition) -> bool:
    """Whether a class is named only as a base, or to ask whether an object is one."""
    for piece in pieces.values():
        asked = {
            id(name)
            for part in ast.walk(piece.node)
            if isinstance(part, ast.Call) and ast.unparse(part.func) == "isinstance"
            for name in ast.walk(part.args[1])
        }
        if isinstance(piece.node, ast.ClassDef) and piece.definition == heir:
            asked |= {id(base) for base in piece.node.bases}
        for part in ast.walk(piece.node):
            is_other = isinstance(part, ast.expr) and id(part) not in asked
            if is_other and _stands_for(part, piece.definition.module) == definition:
                return False
    return True


def _merged(base: ast.ClassDef, module: str, heir: ast.ClassDef) -> list[ast.stmt] | None:
    """The members of both as the heir's; None where they cannot be told apart."""
    if base.decorator_list or any(not isinstance(each, ast.expr) for each in base.bases):
        return None
    own = {each.name: each for each in heir.body if isinstance(each, ast.FunctionDef)}
    members = [each for each in base.body if not (isinstance(each, ast.Expr | ast.Pass))]
    if not all(isinstance(each, ast.FunctionDef | ast.Assign) for each in members):
        return None
    inherited: list[ast.stmt] = []
    constructor: list[ast.stmt] | None = None
    assigned = {ast.unparse(each.targets[0]) for each in heir.body if isinstance(each, ast.Assign)}
    for member in members:
        assert isinstance(member, ast.FunctionDef | ast.Assign)
        again = _requalified(member, module)
        if isinstance(member, ast.Assign):
            if ast.unparse(member.targets[0]) not in assigned:
                inherited.append(again)
        elif member.name not in own:
            inherited.append(again)
        elif member.name == "__init__":
            assert isinstance(again, ast.FunctionDef)
            constructor = _inlined(again, own["__init__"])
            if constructor is None:
                return None
        elif f"super().{member.name}" in ast.unparse(own[member.name]):
            return None
    others = [each for each in inherited if getattr(each, "name", "") != "__init__"]
    if any("super()" in ast.unparse(each) for each in others):
        return None
    if constructor is not None:
        own["__init__"].body = constructor
    text = [each for each in heir.body[:1] if isinstance(each, ast.Expr)]
    rest = [each for each in heir.body[len(text) :] if not isinstance(each, ast.Pass)]
    first = [each for each in rest if getattr(each, "name", "") == "__init__"]
    after = [each for each in rest if each not in first]
    return [*text, *first, *inherited, *after] or [ast.Pass()]


def _inlined(base: ast.FunctionDef, own: ast.FunctionDef) -> list[ast.stmt] | None:
    """The body of a constructor with that of its base in the place where it is called."""
    calls = [
        each
        for each in own.body
        if isinstance(each, ast.Expr) and ast.unparse(each.value).startswith("super().__init__(")
    ]
    if len(calls) != 1 or "super()" in "".join(
        ast.unparse(each) for each in own.body if each is not calls[0]
    ):
        return None
    call = calls[0].value
    assert isinstance(call, ast.Call)
    if any(isinstance(each, ast.Starred) for each in call.args) or base.args.vararg:
        return None
    if base.args.kwarg or base.args.kwonlyargs or any(each.arg is None for each in call.keywords):
        return None
    names = [part for part in ast.walk(base) if isinstance(part, ast.Name)]
    if any(isinstance(name.ctx, ast.Store) for name in names):
        return None
    uses = Counter(name.id for name in names)
    values: dict[str, ast.expr] = {}
    for index, argument in enumerate(base.args.args[1:]):
        value = given(call, index, argument.arg, defaults_of(base))
        is_simple = isinstance(value, ast.Name | ast.Constant)
        if value is None or not (is_simple or uses[argument.arg] == 1):
            return None
        if uses[argument.arg] == 0 and not has_no_effect(value):
            return None
        values[argument.arg] = value
    body = [each for each in deepcopy(base.body) if not _is_text(each)]
    body = [Substitute(values).visit(each) for each in body]
    at = own.body.index(calls[0])
    return [*own.body[:at], *body, *own.body[at + 1 :]]


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _requalified(node: Node, module: str) -> Node:
    """A copy whose global names mean in any module what they mean in this one."""
    copied = deepcopy(node)
    local = local_names(copied)
    for part in ast.walk(copied):
        if isinstance(part, ast.Name) and part.id not in local and meaning(module, part.id):
            part.id = qualified(module, part.id)
    return copied


class _Refer(ast.NodeTransformer):
    """Names another class in the place of one."""

    def __init__(self, module: str, before: Definition, after: Definition) -> None:
        self.module, self.before, self.after = module, before, after

    def visit_Name(self, node: ast.Name) -> ast.Name:
        if _stands_for(node, self.module) == self.before:
            node.id = qualified(self.after.module, self.after.name)
        return node


# ------------------------------------------------------------ methods that forward


def call_directly(pieces: Pieces, asked_for: Collection[str]) -> None:
    """Call the functions that methods call with what they get and do nothing else."""
    methods: dict[str, list[tuple[str, ast.FunctionDef]]] = {}
    for definition, piece in pieces.items():
        for member in piece.node.body if isinstance(piece.node, ast.ClassDef) else []:
            if isinstance(member, ast.FunctionDef):
                methods.setdefault(member.name, []).append((definition.module, member))
    targets: dict[str, str] = {}
    for name, same in methods.items():
        module, method = same[0]
        function = _forwards_to(method, module)
        if len(same) == 1 and function and name not in asked_for and not method.decorator_list:
            targets[name] = qualified(function.module, function.name)
    for piece in pieces.values():
        of_self = {
            id(part.func)
            for part in ast.walk(piece.node)
            if isinstance(part, ast.Call) and _is_own(part.func)
        }
        for part in ast.walk(piece.node):
            if isinstance(part, ast.Attribute) and id(part) not in of_self:
                targets.pop(part.attr, None)
    for piece in pieces.values() if targets else ():
        for part in ast.walk(piece.node):
            if isinstance(part, ast.Call) and _is_own(part.func):
                assert isinstance(part.func, ast.Attribute)
                if part.func.attr in targets:
                    part.func = ast.Name(targets[part.func.attr], ast.Load())


def _is_own(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"


def _forwards_to(method: ast.FunctionDef, module: str) -> Definition | None:
    body = [each for each in method.body if not _is_text(each)]
    if len(body) != 1 or not isinstance(body[0], ast.Return) or method.name.startswith("__"):
        return None
    call, arguments = body[0].value, method.args
    if not isinstance(call, ast.Call) or call.keywords or arguments.defaults:
        return None
    if arguments.kwonlyargs or arguments.vararg or arguments.kwarg:
        return None
    names = [getattr(each, "id", "") for each in call.args]
    if names != [each.arg for each in arguments.args[1:]]:
        return None
    return _stands_for(call.func, module)
