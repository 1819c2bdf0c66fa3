"""The parts there are, each with its module's first sentences; nothing is imported."""

import ast

from lmlab.core import registry


def parts() -> dict[str, dict[str, str]]:
    """For each kind, its parts by name with one line each."""
    return {
        kind: {name: _summary(kind, name) for name in registry.names(kind)}
        for kind in registry.kinds()
    }


def _summary(kind: str, name: str) -> str:
    """The first paragraph of the docstring, as one line."""
    source = registry.file(kind, name).read_text(encoding="utf-8")
    try:
        text = ast.get_docstring(ast.parse(source))
    except SyntaxError as error:
        return f"(broken: line {error.lineno}: {error.msg})"
    first_paragraph = (text or "(no docstring)").split("\n\n")[0]
    return " ".join(first_paragraph.split())
