"""The lab's own modules as syntax trees, and what a name in one of them stands for."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from lmlab.export.eject.comments import note_comments

PACKAGE = "lmlab"
DOT = "\u00b7"
BETWEEN = 2 * DOT
"""Between a module and a name in it; both are letters to Python."""


@dataclass(frozen=True)
class Definition:
    """A function, class or constant of a module."""

    module: str
    name: str


@dataclass(frozen=True)
class Outside:
    """A name that a module imports from elsewhere."""

    statement: str
    """The import, such as `from torch import Tensor`."""


@dataclass(frozen=True)
class WholeModule:
    """A name that stands for one of the lab's modules."""

    module: str


@dataclass
class Source:
    """A module of the lab, parsed."""

    module: str
    tree: ast.Module
    definitions: dict[str, ast.stmt] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    """The docstring that stands behind a constant."""
    imports: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """By local name: the module, and the name in it; None where the module itself is meant."""

    @property
    def docstring(self) -> str:
        return ast.get_docstring(self.tree) or ""


@cache
def source(module: str) -> Source:
    """A module of the lab by its dotted name."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    text = Path(spec.origin).read_text(encoding="utf-8")
    tree = ast.parse(text)
    note_comments(tree, text)
    parsed = Source(module, tree)
    for index, node in enumerate(tree.body):
        for name in _defined(node):
            parsed.definitions[name] = node
            following = tree.body[index + 1 : index + 2]
            if isinstance(node, ast.Assign | ast.AnnAssign) and following:
                parsed.notes[name] = _text(following[0])
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                parsed.imports[alias.asname or alias.name] = (node.module, alias.name)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                parsed.imports[alias.asname or alias.name] = (alias.name, None)
    return parsed


def qualified(module: str, name: str) -> str:
    """A name, still an identifier, that means in any module what it means in this one."""
    return name if BETWEEN in name else f"{module.replace('.', DOT)}{BETWEEN}{name}"


def plain_name(name: str) -> str:
    """The name that has been qualified, or not."""
    return name.rpartition(BETWEEN)[2]


def meaning(module: str, name: str) -> Definition | Outside | WholeModule | None:
    """What a global name of a module stands for; None for a builtin."""
    if BETWEEN in name:
        module, name = name.split(BETWEEN)
        module = module.replace(DOT, ".")
    parsed = source(module)
    if name in parsed.definitions:
        return Definition(module, name)
    if name not in parsed.imports:
        return None
    origin, original = parsed.imports[name]
    if origin.split(".")[0] != PACKAGE:
        return Outside(_statement(origin, original, name))
    if original is None:
        return WholeModule(origin)
    if _is_module(f"{origin}.{original}"):
        return WholeModule(f"{origin}.{original}")
    return meaning(origin, original)


def _statement(origin: str, original: str | None, name: str) -> str:
    if original is None:
        return f"import {origin}" + (f" as {name}" if name != origin else "")
    return f"from {origin} import {original}" + (f" as {name}" if name != original else "")


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _defined(node: ast.stmt) -> Iterator[str]:
    """The global names that a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            for part in ast.walk(target):
                if isinstance(part, ast.Name):
                    yield part.id


def _text(node: ast.stmt) -> str:
    """The text of a statement that is nothing but text."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return node.value.value if isinstance(node.value.value, str) else ""
    return ""
