"""What a definition comes to once all choices are made: branches that are not taken are left out.

What is known of a configuration is known from its objects themselves: where a layer's `qk_norm` is
true in every layer there is, `if self.qk_norm:` is no question any more. Left out as well: caches
for generation, places, dropout that drops nothing, checks of what has been checked, types.
"""

import ast
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from lmlab.export.eject.comments import comments_of, hand_on


def _cached(call: ast.Call) -> ast.expr:
    """What `extend_cache` comes to where there is no cache: the new tensors themselves."""
    if any(keyword.arg is None for keyword in call.keywords):
        return ast.parse("list(new.values())", mode="eval").body
    return ast.Tuple([keyword.value for keyword in call.keywords], ast.Load())


def _one_after_the_other(call: ast.Call) -> ast.expr:
    """What `in_turn` comes to in one process."""
    compute, count = call.args
    members = ast.Call(ast.Name("range", ast.Load()), [count], [])
    return ast.Call(ast.Name("map", ast.Load()), [compute, members], [])


REPLACED_CALLS: dict[str, Callable[[ast.Call], ast.expr]] = {
    "by_fans": lambda call: call.args[0],
    "extend_cache": _cached,
    "to_autocast_dtype": lambda call: call.args[0],
    "epsilon_of": lambda call: call.args[1],
    "kind_of": lambda call: call.args[0],
    "cast": lambda call: call.args[1],
    "_width_keys": lambda call: ast.Dict([], []),
    "share_it": lambda call: ast.Constant(False),
    "in_turn": _one_after_the_other,
    "is_compiling": lambda call: ast.Constant(False),
    "is_autocast_enabled": lambda call: ast.Constant(False),
}
"""What calls of these functions come to in float32, on a CPU, at the width that rates are for."""
LEFT_OUT_CALLS = {"follow_width", "follow", "require_backward"}
"""Functions whose call, as a statement, does nothing then."""
COMPUTED = {"head_count"}
"""Functions that work out an option, such as a number of heads that is left to be derived: their
result is an attribute that is known. The option is written as what it comes to.
"""
DERIVED_OPTIONS = {"whole_width": "width"}
"""Properties of options that work out an option, by the option that is written in their place."""
KNOWN_ATTRIBUTES = {"is_cuda": False, "watchers": 0, "is_meta": False}
CACHE = "cache"
PLAIN_TYPES = {"Tensor", "int", "float", "bool", "str", "None"}


@dataclass
class Known:
    """What is known while a definition of one class, or of none, is simplified."""

    constants: Mapping[str, Any] = field(default_factory=dict)
    """Attributes of `self` that never change, for the tests of branches."""
    passed_through: Collection[str] = ()
    """Attributes of `self` that are called and return what they get: places, idle dropout."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The values of `options` and `self.options`."""
    absent: Collection[str] = (CACHE,)
    """Parameters that are never given."""
    left_out: Collection[str] = ()
    """More functions whose call, as a statement, does nothing."""
    give_nothing: Collection[str] = ()
    """Methods that return None whenever they are called."""


class Simplify(ast.NodeTransformer):
    """Simplifies one function or class."""

    def __init__(self, known: Known) -> None:
        self.known = known
        self.is_test = 0
        self.derived: dict[str, Any] = {}
        """Options that come to something else than params.yaml says."""
        self.in_backward = False
        """Within the backward pass of an autograd function: nobody differentiates it again."""

    # ------------------------------------------------------------ what is left out

    def visit_Assert(self, node: ast.Assert) -> None:
        return None

    def visit_Expr(self, node: ast.Expr) -> ast.stmt | None:
        node.value = self.visit(node.value)
        if isinstance(node.value, ast.Call):
            name = _called(node.value)
            if name in LEFT_OUT_CALLS or name in self.known.left_out:
                return None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt | None:
        if node.value is None:
            return None
        plain = ast.Assign([node.target], node.value, lineno=node.lineno)
        hand_on(plain, comments_of(node))
        return self.visit_Assign(plain)

    def visit_Assign(self, node: ast.Assign) -> ast.stmt | None:
        node.value = self.visit(node.value)
        target = node.targets[0]
        name = _attribute_of_self(target)
        if isinstance(node.value, ast.Call) and _called(node.value) in COMPUTED:
            asked = node.value.args[0]
            self.derived[_last_name(asked)] = self.known.constants[name]
            node.value = asked
        if name in self.known.passed_through:
            return None
        if ast.dump(_loaded(target)) == ast.dump(_loaded(node.value)):
            return None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.stmt:
        arguments = node.args
        defaults = [None] * (len(arguments.args) - len(arguments.defaults)) + arguments.defaults
        kept = [
            (argument, default)
            for argument, default in zip(arguments.args, defaults, strict=True)
            if argument.arg not in self.known.absent
        ]
        arguments.args = [argument for argument, _ in kept]
        arguments.defaults = [default for _, default in kept if default is not None]
        for argument in [*arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]:
            if argument:
                argument.annotation = _plain_type(argument.annotation)
        node.returns = _plain_type(node.returns)
        was_in_backward = self.in_backward
        self.in_backward = was_in_backward or node.name == "backward"
        node.body = self._statements(node.body)
        self.in_backward = was_in_backward
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.stmt:
        is_options = node.name == "Options" or any(
            _last_name(base) == "Params" for base in node.bases
        )
        if is_options:
            node.body = [each for each in node.body if isinstance(each, ast.FunctionDef)]
        node.bases = [
            ast.Name("SimpleNamespace", ast.Load()) if _last_name(base) == "Params" else base
            for base in node.bases
            if _last_name(base) not in ("ABC", "Protocol")
        ]
        if keeps_fields(node):
            node.body = [self._field(each) for each in node.body]
            return node
        node.body = self._statements(node.body)
        return node

    def _field(self, node: ast.stmt) -> ast.stmt:
        """A member of a class whose annotated names are its fields."""
        if isinstance(node, ast.AnnAssign):
            node.annotation = _plain_type(node.annotation) or ast.Name("object", ast.Load())
            return node
        simple = self.visit(node)
        return simple if isinstance(simple, ast.stmt) else ast.Pass()

    def _statements(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """The statements that remain; what stands behind a `return` is never reached."""
        remaining: list[ast.stmt] = []
        for number, statement in enumerate(statements):
            is_docstring = isinstance(statement, ast.Expr) and isinstance(
                statement.value, ast.Constant
            )
            if is_docstring and number:
                continue  # of an attribute
            if is_docstring:
                remaining.append(statement)
                continue
            simple = self.visit(statement)
            more = simple if isinstance(simple, list) else [simple]
            for each in more:
                if each is None:
                    continue
                remaining.append(each)
                if isinstance(each, ast.Return | ast.Raise):
                    return remaining
        return remaining or [ast.Pass()]

    # ------------------------------------------------------------ branches

    def visit_If(self, node: ast.If) -> list[ast.stmt] | ast.stmt | None:
        if _is_check(node):
            return None
        node.test = self._test(node.test)
        if isinstance(node.test, ast.Constant):
            branch = node.body if node.test.value else node.orelse
            remaining = self._statements(branch) if branch else []
            if node.test.value and remaining:
                hand_on(remaining[0], comments_of(node))
            return remaining
        node.body = self._statements(node.body)
        node.orelse = self._statements(node.orelse) if node.orelse else []
        if node.orelse and all(isinstance(each, ast.Pass) for each in node.orelse):
            node.orelse = []
        if all(isinstance(each, ast.Pass) for each in node.body) and not node.orelse:
            return None
        return node

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        test = self._test(node.test)
        if isinstance(test, ast.Constant):
            chosen: ast.expr = self.visit(node.body if test.value else node.orelse)
            return chosen
        node.test = test
        node.body, node.orelse = self.visit(node.body), self.visit(node.orelse)
        return node

    def visit_For(self, node: ast.For) -> ast.stmt | None:
        node.iter = self.visit(node.iter)
        if isinstance(node.iter, ast.List) and not node.iter.elts:
            return None
        node.body = self._statements(node.body)
        return node

    def visit_With(self, node: ast.With) -> ast.stmt:
        node.items = [self.visit(item) for item in node.items]
        node.body = self._statements(node.body)
        return node

    def visit_Try(self, node: ast.Try) -> ast.stmt:
        node.body = self._statements(node.body)
        node.finalbody = self._statements(node.finalbody) if node.finalbody else []
        node.orelse = self._statements(node.orelse) if node.orelse else []
        node.handlers = [self.visit(handler) for handler in node.handlers]
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        is_and = isinstance(node.op, ast.And)
        values: list[ast.expr] = []
        for value in node.values:
            simple = self._test(value) if self.is_test else self.visit(value)
            if isinstance(simple, ast.Constant | ast.List):
                truth = bool(simple.elts if isinstance(simple, ast.List) else simple.value)
                if truth == is_and and value is not node.values[-1]:
                    continue
                values.append(simple)
                if truth != is_and:
                    break
            else:
                values.append(simple)
        is_bool = all(isinstance(value, ast.Compare) for value in values[:-1])
        if (self.is_test or is_bool) and len(values) > 1 and isinstance(values[-1], ast.Constant):
            last = values[-1].value
            if bool(last) == is_and:
                values.pop()
            elif is_and or last:  # decided, whatever the others are
                return ast.Constant(bool(last))
        if not values:
            return ast.Constant(is_and)
        node.values = values
        return values[0] if len(values) == 1 else node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        node.operand = self.visit(node.operand)
        if isinstance(node.op, ast.Not) and isinstance(node.operand, ast.Constant):
            return ast.Constant(not node.operand.value)
        return node

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        node.left = self.visit(node.left)
        node.comparators = [self.visit(other) for other in node.comparators]
        known = _settled(node)
        if known is not None:
            return ast.Constant(known)
        one, other = node.left, node.comparators[0]
        if len(node.ops) > 1 or not isinstance(one, ast.Constant):
            return node
        if not isinstance(other, ast.Constant):
            return node
        value = _compared(node.ops[0], one.value, other.value)
        return node if value is None else ast.Constant(value)

    def _test(self, node: ast.expr) -> ast.expr:
        self.is_test += 1
        try:
            simple: ast.expr = self.visit(node)
        finally:
            self.is_test -= 1
        return simple

    # ------------------------------------------------------------ names and calls

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in self.known.absent and isinstance(node.ctx, ast.Load):
            return ast.Constant(None)
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        node.value, node.slice = self.visit(node.value), self.visit(node.slice)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if node.attr in KNOWN_ATTRIBUTES:
            return ast.Constant(KNOWN_ATTRIBUTES[node.attr])
        if _is_options(node.value) and node.attr in DERIVED_OPTIONS:
            option = DERIVED_OPTIONS[node.attr]
            self.derived[option] = self.known.options[node.attr]
            node.attr = option
        if _attribute_of_self(node) == "site" and "site" in self.known.constants:
            return ast.Constant(self.known.constants["site"])
        if self.is_test and isinstance(node.ctx, ast.Load):
            name = _attribute_of_self(node)
            if name in self.known.constants:
                return ast.Constant(self.known.constants[name])
            if node.attr == "p" and _attribute_of_self(node.value) in self.known.passed_through:
                return ast.Constant(0)
            if _is_options(node.value) and node.attr in self.known.options:
                return ast.Constant(self.known.options[node.attr])
        node.value = self.visit(node.value)
        return node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        test, self.is_test = self.is_test, 0
        node.args = [simple for simple in map(self._argument, node.args) if simple is not None]
        keywords = []
        for keyword in node.keywords:
            value = self._argument(keyword.value)
            if value is not None:
                keyword.value = value
                keywords.append(keyword)
        node.keywords = keywords
        node.func = self.visit(node.func)
        self.is_test = test
        name = _called(node)
        if name in REPLACED_CALLS:
            return REPLACED_CALLS[name](node)
        if name in self.known.give_nothing and isinstance(node.func, ast.Attribute):
            return ast.Constant(None)
        if name == "isinstance" and _last_name(node.args[1]) == "Averaging":
            return ast.Constant(True)  # else nobody asks
        if name == "is_grad_enabled" and self.in_backward:
            return ast.Constant(False)
        if isinstance(node.func, ast.Attribute):
            if _attribute_of_self(node.func) in self.known.passed_through:
                return node.args[0]
            if node.func.attr == "build":
                node.func = node.func.value
        return node

    def _argument(self, node: ast.expr) -> ast.expr | None:
        """An argument of a call; None for one that only hands on a cache."""
        had_cache = any(
            isinstance(part, ast.Name) and part.id in self.known.absent for part in ast.walk(node)
        )
        simple: ast.expr = self.visit(node)
        is_nothing = isinstance(simple, ast.Constant) and simple.value is None
        return None if had_cache and is_nothing else simple

    def visit_Dict(self, node: ast.Dict) -> ast.expr:
        node.values = [self.visit(value) for value in node.values]
        pairs = [
            (key, value)
            for key, value in zip(node.keys, node.values, strict=True)
            if not (key is None and isinstance(value, ast.Dict) and not value.keys)
        ]
        node.keys = [key for key, _ in pairs]
        node.values = [value for _, value in pairs]
        if len(pairs) == 1 and pairs[0][0] is None:
            return pairs[0][1]
        return node


def keeps_fields(node: ast.ClassDef) -> bool:
    """Whether a class's annotated names are its fields, as in data classes and named tuples."""
    names = {_last_name(each) for each in (*node.bases, *node.decorator_list)}
    return bool(names & {"dataclass", "NamedTuple"})


def _is_check(node: ast.If) -> bool:
    """Whether a branch does nothing but refuse what has been accepted."""
    last = node.body[-1]
    return not node.orelse and isinstance(last, ast.Raise)


def _called(node: ast.Call) -> str:
    return _last_name(node.func)


def _last_name(node: ast.expr) -> str:
    if isinstance(node, ast.Subscript):
        return _last_name(node.value)
    if isinstance(node, ast.Call):
        return _last_name(node.func)
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _attribute_of_self(node: ast.expr) -> str:
    """The name x of `self.x`; empty for anything else."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        return node.attr if node.value.id == "self" else ""
    return ""


def _is_options(node: ast.expr) -> bool:
    return ast.unparse(node) in ("options", "self.options")


def _loaded(node: ast.expr) -> ast.expr:
    """The same expression as it is read."""
    return ast.parse(ast.unparse(node), mode="eval").body


def _plain_type(node: ast.expr | None) -> ast.expr | None:
    """A type that a reader of torch knows; others are left out."""
    if node is None:
        return None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return node if names <= PLAIN_TYPES else None


def _settled(node: ast.Compare) -> bool | None:
    """The value of a comparison that asks for a GPU, for bfloat16, for a cache, where there are
    more keys than queries, or for a group that follows the width.
    """
    text = ast.unparse(node)
    if text.endswith(("== torch.bfloat16", "== 'cuda'", "!= 'cpu'", "== 'mps'")):
        return False
    if text == "'base_lr' in group":
        return False
    return (
        True if text.endswith(("== 'cpu'", ".device == device")) or text == "time == keys" else None
    )


def _compared(operator: ast.cmpop, one: Any, other: Any) -> bool | None:
    match operator:
        case ast.Is():
            return one is other
        case ast.IsNot():
            return one is not other
        case ast.Eq():
            return bool(one == other)
        case ast.NotEq():
            return bool(one != other)
        case ast.Gt() if one is not None and other is not None:
            return bool(one > other)
        case ast.Lt() if one is not None and other is not None:
            return bool(one < other)
    return None
