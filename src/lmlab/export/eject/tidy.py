"""What becomes plain only when all definitions are seen together.

An attribute that nobody reads is not set; a parameter that always gets the same constant is that
constant; a variable that holds a constant, or is returned at once, needs no name.
"""

import ast
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator

from lmlab.export.eject.comments import comments_of, hand_on
from lmlab.export.eject.parameters import (
    Substitute,
    has_no_effect,
    replace_names,
    settle_parameters,
)


def tidy(statements: Iterable[ast.stmt], asked_for: Collection[str]) -> None:
    """Tidy definitions in place; `asked_for` are methods that are called from elsewhere."""
    nodes = list(statements)
    functions = [part for node in nodes for part in ast.walk(node)]
    for part in functions:
        if isinstance(part, ast.FunctionDef):
            _drop_overwritten(part)
            _drop_unused_names(part)
            _one_name_each(part)
            _fold_constant_variables(part)
            _call_directly(part)
            _return_at_once(part)
    settle_parameters(nodes, asked_for)
    _drop_identities(nodes, asked_for)


def drop_unread_attributes(cls: ast.ClassDef, read: Collection[str]) -> None:
    """Do not set attributes of a class's objects that nobody reads."""
    unread = _Unread(read)
    for member in cls.body:
        if isinstance(member, ast.FunctionDef):
            unread.visit(member)


def in_use(classes: Iterable[ast.stmt], counted: Iterable[str]) -> set[str]:
    """Which of the attributes that classes only change in place, as by `self.calls += 1`, have to
    stay: changing one that is not a plain number all the time may change something else.
    """
    parts = [part for cls in classes for part in ast.walk(cls)]
    values: dict[str, list[ast.expr]] = {}
    for part in parts:
        for attribute, value in _set_in(part):
            values.setdefault(attribute, []).append(value)
    changed = {
        part.target.attr: part.value
        for part in parts
        if isinstance(part, ast.AugAssign)
        and isinstance(part.target, ast.Attribute)
        and not isinstance(part.value, ast.Constant)
    }
    plain = {
        name
        for name, each in values.items()
        if name not in changed and all(isinstance(value, ast.Constant) for value in each)
    }
    return set(counted) - plain


def _set_in(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """The attributes of `self` that an assignment sets, each with its value."""
    if not isinstance(node, ast.Assign):
        return
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = list(zip(target.elts, node.value.elts, strict=True))
        else:
            parts = target.elts if isinstance(target, ast.Tuple) else [target]
            pairs = [(part, node.value) for part in parts]
        for part, value in pairs:
            if isinstance(part, ast.Attribute) and _is_unread(part, ()):
                yield part.attr, value


class _Unread(ast.NodeTransformer):
    """Leaves out statements that only set attributes that are not read."""

    def __init__(self, read: Collection[str]) -> None:
        self.read = read

    def visit_Assign(self, node: ast.Assign) -> ast.stmt | None:
        return _without_unread(node, self.read)

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.stmt | None:
        return None if _is_unread(node.target, self.read) and has_no_effect(node.value) else node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.FunctionDef | ast.If | ast.For | ast.With) and not node.body:
            node.body = [ast.Pass()]
        return node


def _without_unread(statement: ast.Assign, read: Collection[str]) -> ast.stmt | None:
    return _without(statement, lambda target: _is_unread(target, read))


def _without(statement: ast.Assign, is_unread: Callable[[ast.expr], bool]) -> ast.Assign | None:
    """An assignment without what is not read; None where nothing is left."""
    target, value = statement.targets[0], statement.value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        pairs = [
            (one, other)
            for one, other in zip(target.elts, value.elts, strict=True)
            if not (is_unread(one) and has_no_effect(other))
        ]
        if not pairs:
            return None
        if len(pairs) == 1:
            statement.targets, statement.value = [pairs[0][0]], pairs[0][1]
        else:
            target.elts = [one for one, _ in pairs]
            value.elts = [other for _, other in pairs]
        return statement
    if len(statement.targets) == 1 and is_unread(target) and has_no_effect(value):
        return None
    return statement


def _is_unread(target: ast.expr, read: Collection[str]) -> bool:
    return (
        isinstance(target, ast.Attribute)
        and isinstance(target.value, ast.Name)
        and target.value.id == "self"
        and target.attr not in read
    )


def _drop_unused_names(function: ast.FunctionDef) -> None:
    """Functions and variables inside a function that nothing in it reads."""
    while True:
        read = {
            part.id
            for part in ast.walk(function)
            if isinstance(part, ast.Name) and not isinstance(part.ctx, ast.Store)
        }
        read |= {
            part.target.id
            for part in ast.walk(function)
            if isinstance(part, ast.AugAssign) and isinstance(part.target, ast.Name)
        }
        for part in ast.walk(function):
            if isinstance(part, ast.Global | ast.Nonlocal):
                read |= set(part.names)
        unused = _Unused(read)
        function.body = [
            kept for each in function.body if (kept := unused.visit(each)) is not None
        ] or [ast.Pass()]
        if not unused.found:
            return


class _Unused(ast.NodeTransformer):
    """Leaves out what is named and not read."""

    def __init__(self, read: set[str]) -> None:
        self.read = read
        self.found = False

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.stmt | None:
        if node.name not in self.read and not node.decorator_list:
            self.found = True
            return None
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.stmt | None:
        before = ast.dump(node)
        kept = _without(node, self._is_unread)
        self.found = self.found or kept is None or ast.dump(kept) != before
        return kept

    def _is_unread(self, target: ast.expr) -> bool:
        names = _names_in(target)
        return bool(names) and not names & self.read

    def visit_For(self, node: ast.For) -> ast.stmt:
        self.generic_visit(node)
        target, over = node.target, node.iter
        if (
            isinstance(over, ast.Call)
            and ast.unparse(over.func) == "enumerate"
            and len(over.args) == 1
            and isinstance(target, ast.Tuple)
            and isinstance(target.elts[0], ast.Name)
            and target.elts[0].id not in self.read
        ):
            node.target, node.iter = target.elts[1], over.args[0]
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if isinstance(node, ast.FunctionDef | ast.If | ast.For | ast.With) and not node.body:
            node.body = [ast.Pass()]
        return node


def _names_in(target: ast.expr) -> set[str]:
    """The variables that a target consists of; none where it sets anything else."""
    parts = target.elts if isinstance(target, ast.Tuple) else [target]
    names = {part.id for part in parts if isinstance(part, ast.Name)}
    return names if len(names) == len(parts) else set()


def _drop_overwritten(function: ast.FunctionDef) -> None:
    """`x = a; x = b` as `x = b`."""
    body = function.body
    kept = []
    for statement, following in zip(body, [*body[1:], ast.Pass()]):
        name = _name_defined(statement)
        is_overwritten = (
            name
            and isinstance(statement, ast.Assign)
            and isinstance(following, ast.Assign)
            and _name_defined(following) == name
            and name
            not in {part.id for part in ast.walk(following.value) if isinstance(part, ast.Name)}
            and has_no_effect(statement.value)
        )
        if not is_overwritten:
            kept.append(statement)
    function.body = kept


def _stores(function: ast.FunctionDef) -> Counter[str]:
    """How often each variable of a function is assigned."""
    names = (part for part in ast.walk(function) if isinstance(part, ast.Name))
    return Counter(name.id for name in names if isinstance(name.ctx, ast.Store))


def _fold_constant_variables(function: ast.FunctionDef) -> None:
    """Variables that are assigned once, a constant, and only asked whether they hold."""
    stores = _stores(function)
    values = {
        statement.targets[0].id: statement.value
        for statement in function.body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, bool | None)
        and stores[statement.targets[0].id] == 1
    }
    if values:
        replace_names(function, dict(values))
        function.body = [each for each in function.body if _name_defined(each) not in values]


def _return_at_once(function: ast.FunctionDef) -> None:
    """`x = value; return x` as `return value`."""
    if len(function.body) < 2:
        return
    before, last = function.body[-2:]
    if (
        isinstance(before, ast.Assign)
        and isinstance(before.targets[0], ast.Name)
        and isinstance(last, ast.Return)
        and isinstance(last.value, ast.Name)
        and last.value.id == before.targets[0].id
    ):
        at_once = ast.Return(before.value)
        hand_on(at_once, [*comments_of(before), *comments_of(last)])
        function.body[-2:] = [at_once]


def _one_name_each(function: ast.FunctionDef) -> None:
    """`a, b = c, d` as no assignment, where all four are steady: c and d are called a and b too."""
    stores = _stores(function) + Counter(argument.arg for argument in function.args.args)
    for statement in list(function.body):
        if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Tuple):
            continue
        new, old = _names_in(statement.targets[0]), _names_in(statement.value)
        if new and old and all(stores[name] == 1 for name in new | old):
            assert isinstance(statement.targets[0], ast.Tuple)
            pairs = zip(statement.targets[0].elts, statement.value.elts, strict=True)
            values = {one.id: other for one, other in pairs if isinstance(one, ast.Name)}
            function.body.remove(statement)
            function.body = [Substitute(values).visit(each) for each in function.body]


def _call_directly(function: ast.FunctionDef) -> None:
    """Variables that only stand for another, and inner functions that only call another with what
    they get.
    """
    stores = _stores(function) + Counter(argument.arg for argument in function.args.args)
    values: dict[str, ast.expr] = {}
    for statement in function.body:
        stands_for = _stands_for(statement)
        name = _name_defined(statement)
        if name and stands_for is not None and stores.get(name, 1) == 1:
            is_steady = not isinstance(stands_for, ast.Name) or stores.get(stands_for.id, 2) == 1
            if is_steady:
                values[name] = stands_for
    if values:
        function.body = [each for each in function.body if _name_defined(each) not in values] or [
            ast.Pass()
        ]
        substitute = Substitute(values)
        function.body = [substitute.visit(each) for each in function.body]


def _name_defined(statement: ast.stmt) -> str:
    if isinstance(statement, ast.FunctionDef):
        return statement.name
    if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id
    return ""


def _stands_for(statement: ast.stmt) -> ast.expr | None:
    if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name):
        return statement.value
    if isinstance(statement, ast.FunctionDef) and len(statement.body) == 1:
        last, names = statement.body[0], [each.arg for each in statement.args.args]
        if isinstance(last, ast.Return) and isinstance(last.value, ast.Call):
            call = last.value
            given = [getattr(each, "id", "") for each in call.args]
            if given == names and not call.keywords and not statement.decorator_list:
                return call.func
    return None


def _drop_identities(nodes: list[ast.stmt], asked_for: Collection[str]) -> None:
    """Calls of methods that, in every class that has them, return what they get."""
    returns: dict[str, list[bool]] = {}
    for node in nodes:
        for member in node.body if isinstance(node, ast.ClassDef) else []:
            if isinstance(member, ast.FunctionDef):
                returns.setdefault(member.name, []).append(_is_identity(member))
    names = {name for name, each in returns.items() if all(each) and name not in asked_for}
    if names:
        for node in nodes:
            _DropCalls(names).visit(node)


def _is_identity(method: ast.FunctionDef) -> bool:
    body = [each for each in method.body if not isinstance(each, ast.Expr)]
    if len(body) != 1 or not isinstance(body[0], ast.Return) or len(method.args.args) != 2:
        return False
    value = body[0].value
    return isinstance(value, ast.Name) and value.id == method.args.args[1].arg


class _DropCalls(ast.NodeTransformer):
    def __init__(self, names: set[str]) -> None:
        self.names = names

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        is_method = isinstance(node.func, ast.Attribute) and node.func.attr in self.names
        return node.args[0] if is_method and len(node.args) == 1 else node
