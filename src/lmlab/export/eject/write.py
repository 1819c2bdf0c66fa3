"""Gathered definitions as source: named, in order, each with what its docstrings say."""

import ast
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterable
from copy import copy, deepcopy
from functools import cache
from types import FunctionType
from typing import Any

from lmlab.core.params import Params
from lmlab.core.registry import Choice
from lmlab.export.eject.comments import COLUMNS, unparsed
from lmlab.export.eject.gather import Gathering, Piece
from lmlab.export.eject.names import Rename, Renaming, local_names
from lmlab.export.eject.source import Definition, Outside, WholeModule, meaning, plain_name, source

ALREADY_IMPORTED = (
    "import torch",
    "import numpy as np",
    "import json",
    "from functools import partial",
)
"""By the template."""


class Writer:
    """Writes pieces as source."""

    def __init__(self, gathering: Gathering) -> None:
        self.gathering = gathering
        self.names = gathering.names()
        self.introduced: set[str] = set()

    def text(self, pieces: Iterable[Piece]) -> str:
        return "\n\n\n".join(text for piece in pieces if (text := self._piece(piece)))

    def _piece(self, piece: Piece) -> str:
        module = piece.definition.module
        node = piece.node
        if isinstance(node, ast.ClassDef):
            members = self.gathering.live(piece)
            if not members and not self._is_mentioned(piece.definition):
                return ""
            docstring = _first_paragraph(node)
            body = [*([docstring] if docstring else []), *members]
            found = [base for each in node.bases for base in self._base(module, each)]
            bases = list({ast.unparse(base): base for base in found}.values())
            node = copy(node)
            node.name, node.bases = self.names[piece.definition], bases
            node.body = body or [ast.Pass()]
        for part in ast.walk(node):
            if isinstance(part, ast.FunctionDef):
                _shorten_docstring(part)
                if "bias" in self.gathering.facts.give_nothing:
                    _without_bias(part)
        renaming = self._renaming(module)
        if isinstance(node, ast.ClassDef):
            node.body = [
                Rename(renaming, local_names(member)).visit(member)
                if isinstance(member, ast.FunctionDef)
                else Rename(renaming, set()).visit(member)
                for member in node.body
            ]
        elif isinstance(node, ast.FunctionDef):
            node.name = self.names[piece.definition]
            node = Rename(renaming, local_names(node)).visit(node)
        else:
            node = Rename(renaming, set()).visit(node)
        return self._comment(piece) + unparsed(node)

    def _comment(self, piece: Piece) -> str:
        """What the lab says of a constant, or of a part in its module's docstring."""
        parsed = source(piece.definition.module)
        text = parsed.notes.get(piece.definition.name, "")
        is_part = piece.definition.name.lower() == parsed.module.rpartition(".")[2].replace("_", "")
        if is_part and piece.definition.module not in self.introduced:
            self.introduced.add(piece.definition.module)
            text = parsed.docstring.split("\n\n")[0]
        lines = textwrap.wrap(" ".join(text.split()), 98)
        return "".join(f"# {line}\n" for line in lines)

    def _base(self, module: str, base: ast.expr) -> list[ast.expr]:
        """A base class; for one of which nothing is left, its own bases."""
        stands_for = meaning(module, base.id) if isinstance(base, ast.Name) else None
        if not isinstance(stands_for, Definition):
            return [Rename(self._renaming(module), set()).visit(deepcopy(base))]
        piece = self.gathering.pieces[stands_for]
        assert isinstance(piece.node, ast.ClassDef)
        if self.gathering.live(piece) or self._is_mentioned(stands_for):
            return [ast.Name(self.names[stands_for], ast.Load())]
        return [inner for each in piece.node.bases for inner in self._base(stands_for.module, each)]

    @cache  # noqa: B019
    def _is_mentioned(self, definition: Definition) -> bool:
        """Whether a class is named elsewhere than as a base."""
        others = [each for each in self.gathering.pieces.values() if each.definition != definition]
        for piece in others:
            for statement in self.gathering.live(piece):
                names = {part.id for part in ast.walk(statement) if isinstance(part, ast.Name)}
                if any(meaning(piece.definition.module, name) == definition for name in names):
                    return True
        return False

    def _renaming(self, module: str) -> Renaming:
        """The names that a module's global names are written under."""

        def renamed(name: str, attribute: str) -> str | None:
            stands_for = meaning(module, name)
            if isinstance(stands_for, WholeModule) and attribute:
                stands_for = meaning(stands_for.module, attribute)
            elif attribute:
                return None
            if isinstance(stands_for, Outside):
                return plain_name(name)
            return self.names.get(stands_for) if isinstance(stands_for, Definition) else None

        return renamed

    def choice(self, choice: Choice, arguments: str) -> str:
        """The call that builds a part."""
        return f"{self._class(choice)}({self._options(choice)}, {arguments}{self._inner(choice)})"

    def _class(self, choice: Choice) -> str:
        return self.names[definition_of(choice.part)]

    def _options(self, choice: Choice) -> str:
        module = choice.part.__module__
        values = {**option_values(choice.options), **self.gathering.derived.get(module, {})}
        read = self.gathering.options_read(module)
        values = {key: value for key, value in values.items() if key in read}
        words = ", ".join(f"{key}={value!r}" for key, value in values.items())
        own = [self.names[each] for each in options_class(choice) if each in self.names]
        return f"{own[0] if own else 'SimpleNamespace'}({words})"

    def _inner(self, choice: Choice) -> str:
        text = ""
        for key, inner in choice.inner.items():
            text += (
                f", {key}=partial({self._class(inner)}, {self._options(inner)}{self._inner(inner)})"
            )
        return text


def option_values(options: Params) -> dict[str, Any]:
    """An options object's fields, and what its properties come to."""
    values = options.model_dump()
    for cls in type(options).__mro__:
        if cls.__module__.startswith("lmlab."):
            for name, member in vars(cls).items():
                if isinstance(member, property):
                    values[name] = getattr(options, name)
    return values


ONLY_IN_THE_LAB = re.compile(r"cache|watched|`pattern`|params\.yaml|by default")


def _first_paragraph(node: ast.ClassDef | ast.FunctionDef) -> ast.stmt | None:
    """The docstring's first paragraph, without clauses on what only the lab has."""
    text = (ast.get_docstring(node) or "").split("\n\n")[0]
    if isinstance(node, ast.FunctionDef) and re.match("[A-Z] [-+*/=] ", text):
        first = text[0].lower()  # a formula, whose first letter is a parameter's name
        if first in {argument.arg for argument in node.args.args}:
            text = first + text[1:]
    clauses = re.split(r"(?<=[.;,]) ", " ".join(text.split()))
    kept = [clause for clause in clauses if not ONLY_IN_THE_LAB.search(clause)]
    if not kept:
        return None
    words = " ".join(kept).rstrip(";, ")
    if not words:
        return None
    indent = 4 if isinstance(node, ast.ClassDef) else 8
    lines = textwrap.wrap(words if words.endswith(".") else f"{words}.", 96 - indent)
    return ast.Expr(ast.Constant(f"\n{' ' * indent}".join(lines)))


def _shorten_docstring(node: ast.FunctionDef) -> None:
    if ast.get_docstring(node):
        docstring = _first_paragraph(node)
        node.body = [*([docstring] if docstring else []), *node.body[1:]] or [ast.Pass()]


def _without_bias(node: ast.FunctionDef) -> None:
    """Take the bias of a position encoding that has none out of a docstring's formula."""
    text = node.body[0]
    if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
        text.value.value = str(text.value.value).replace(" + bias)", ")")


def formatted(code: str) -> str:
    """The code as ruff formats it, with the imports that it uses, sorted."""
    for command in (
        ["check", "--isolated", "--fix-only", "--quiet", "--select", "F401,I"],
        ["format", "--isolated", "--line-length", str(COLUMNS)],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "-"],
            input=code,
            capture_output=True,
            text=True,
            check=True,
        )
        code = done.stdout
    return code


def options_class(choice: Choice) -> list[Definition]:
    """The class that gives a part's options their methods, if there is one."""
    for base in type(choice.options).__mro__:
        if base is Params or not base.__module__.startswith("lmlab."):
            return []
        members = [member for name, member in vars(base).items() if not name.startswith("_")]
        if any(isinstance(member, FunctionType) for member in members):
            return [definition_of(base)]
    return []


def imports(statements: Iterable[str]) -> str:
    """The imports beyond those of the template, those from one module in one line."""
    plain: list[str] = []
    by_module: dict[str, list[str]] = {}
    for statement in sorted(statements):
        words = statement.split(maxsplit=3)
        if words[0] == "import" and statement not in ALREADY_IMPORTED:
            plain.append(statement)
        elif words[0] == "from" and statement not in ALREADY_IMPORTED:
            by_module.setdefault(words[1], []).append(words[3])
    lines = [f"from {module} import {', '.join(names)}" for module, names in by_module.items()]
    return "\n".join([*plain, *lines])


def definition_of(cls: type) -> Definition:
    """Where a class of the lab is defined."""
    return Definition(cls.__module__, cls.__name__)
