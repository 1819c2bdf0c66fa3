"""Which attributes a piece of source reads, and of what: of `self`, of a part's options, or of any
other object, whose class is not known from the text.
"""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

BY_NAME = {"getattr", "hasattr", "delattr", "attrgetter", "methodcaller"}
"""Functions that are given attributes as text."""


@dataclass
class Reads:
    """Names of attributes that are read."""

    of_self: set[str] = field(default_factory=set)
    of_options: set[str] = field(default_factory=set)
    of_others: set[str] = field(default_factory=set)
    counted: set[str] = field(default_factory=set)
    """Attributes of `self` that are read only in order to be changed: `self.calls += 1`."""

    def update(self, more: "Reads") -> None:
        """Add what something else reads."""
        self.of_self |= more.of_self
        self.of_options |= more.of_options
        self.of_others |= more.of_others
        self.counted |= more.counted

    def __len__(self) -> int:
        return sum(map(len, (self.of_self, self.of_options, self.of_others, self.counted)))


def reads_in(nodes: Iterable[ast.AST]) -> Reads:
    """What some statements read, wherever in them. Who deletes an attribute needs it too."""
    reads = Reads()
    for node in nodes:
        for part in ast.walk(node):
            if isinstance(part, ast.Attribute) and not isinstance(part.ctx, ast.Store):
                _set_for(part.value, reads).add(part.attr)
            elif isinstance(part, ast.AugAssign) and isinstance(part.target, ast.Attribute):
                is_own = _set_for(part.target.value, reads) is reads.of_self
                (reads.counted if is_own else reads.of_others).add(part.target.attr)
            elif isinstance(part, ast.Call):
                reads.of_others |= set(_named(part))
            elif isinstance(part, ast.MatchClass):
                reads.of_others |= set(part.kwd_attrs)
    return reads


def _set_for(owner: ast.expr, reads: Reads) -> set[str]:
    name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
    if name == "options":
        return reads.of_options
    is_super = isinstance(owner, ast.Call) and ast.unparse(owner) == "super()"
    is_self = isinstance(owner, ast.Name) and name == "self"
    return reads.of_self if is_self or is_super else reads.of_others


def _named(call: ast.Call) -> Iterator[str]:
    """The attributes that a call asks for by text: `getattr(x, "name")`, `vars(x)["name"]`."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    of_dictionary = isinstance(function, ast.Attribute) and _is_vars(function.value)
    if name in BY_NAME or of_dictionary:
        for argument in call.args:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                yield from argument.value.split(".")


def _is_vars(node: ast.expr) -> bool:
    text = ast.unparse(node)
    return text.startswith("vars(") or text.endswith(".__dict__")
