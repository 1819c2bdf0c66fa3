"""The parts there are, each with the first line of its module's docstring; read from the source, nothing is imported."""

import ast

from lmlab.core import registry as finder


def parts() -> dict[str, dict[str, str]]:
    """For each kind, its parts by name with one line each."""
    return {kind: {name: _first_line(kind, name) for name in finder.names(kind)} for kind in finder.kinds()}


def _first_line(kind: str, name: str) -> str:
    source = finder.file(kind, name).read_text(encoding="utf-8")
    try:
        text = ast.get_docstring(ast.parse(source))
    except SyntaxError as error:
        return f"(broken: line {error.lineno}: {error.msg})"
    return (text or "(no docstring)").splitlines()[0]
