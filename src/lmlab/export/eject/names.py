"""Names in a definition: those of its own, and new ones for global names."""

import ast
from collections.abc import Callable, Collection


def local_names(node: ast.AST) -> set[str]:
    """The parameters and variables of a function, those of functions inside it too."""
    names: set[str] = set()
    declared: set[str] = set()
    for part in ast.walk(node):
        if isinstance(part, ast.arg):
            names.add(part.arg)
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            names.add(part.id)
        elif isinstance(part, ast.FunctionDef | ast.ClassDef) and part is not node:
            names.add(part.name)
        elif isinstance(part, ast.Global):
            declared |= set(part.names)
        elif isinstance(part, ast.ExceptHandler) and part.name:
            names.add(part.name)
    return names - declared


Renaming = Callable[[str, str], str | None]
"""The new name for a global name and the attribute taken of it; None to leave it."""


class Rename(ast.NodeTransformer):
    """Gives global names the names that they are written under."""

    def __init__(self, renaming: Renaming, local: Collection[str]) -> None:
        self.renaming, self.local = renaming, local

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        if isinstance(node.value, ast.Name) and node.value.id not in self.local:
            new = self.renaming(node.value.id, node.attr)
            if new:
                return ast.copy_location(ast.Name(new, node.ctx), node)
        node.value = self.visit(node.value)
        return node

    def visit_Name(self, node: ast.Name) -> ast.expr:
        new = None if node.id in self.local else self.renaming(node.id, "")
        return ast.copy_location(ast.Name(new, node.ctx), node) if new else node

    def visit_Global(self, node: ast.Global) -> ast.stmt:
        node.names = [self.renaming(name, "") or name for name in node.names]
        return node
