"""Comments, which syntax trees leave out: noted on the statements they stand before or behind, and
written again with those that remain.
"""

import ast
import io
import re
import textwrap
import tokenize
from collections.abc import Iterator
from copy import copy
from typing import NamedTuple

FOR_TOOLS = re.compile(r"#\s*(type:|noqa|pragma|ruff:|mypy:|-{3})")
"""Comments that a type checker or a linter reads, and headings of a module's sections."""
OF_OTHER_RUNS = re.compile(r"compiler|meta device|\bGPU|autocast")
"""What comments speak of that concerns no run in an ejected file."""
COLUMNS = 100
BLOCKS = ("body", "orelse", "finalbody")


class Comment(NamedTuple):
    """What is said of a statement."""

    text: str
    is_behind: bool
    """Whether it stands behind its first line, not before it."""


def note_comments(tree: ast.Module, text: str) -> None:
    """Note on each statement of a module the comments that belong to it."""
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    by_first_line: dict[int, ast.stmt] = {}
    for each in statements:  # from the outside in
        by_first_line.setdefault(_first_line(each), each)
    for line, column, comment in _paragraphs(text):
        if OF_OTHER_RUNS.search(comment):
            continue
        owner = _owner(line, column, statements, by_first_line)
        if owner is not None:
            is_behind = column < 0 and _first_line(owner) == line
            noted = [*comments_of(owner), Comment(comment, is_behind)]
            owner.comments = noted  # type: ignore[attr-defined]


def comments_of(node: ast.stmt) -> list[Comment]:
    """The comments noted on a statement."""
    return list(getattr(node, "comments", []))


def hand_on(node: ast.stmt, comments: list[Comment]) -> None:
    """Add comments to those of a statement, in front."""
    if comments:
        node.comments = [*comments, *comments_of(node)]  # type: ignore[attr-defined]


def unparsed(node: ast.stmt) -> str:
    """A statement as source, with the comments noted on it and in it."""
    comments: list[Comment] = []
    marked = ast.Module([], [])
    marked.body = _marked([node], comments)
    code = _without_parentheses(ast.unparse(ast.fix_missing_locations(marked)))
    lines: list[str] = []
    behind: list[str] = []
    for line in code.splitlines():
        mark = re.fullmatch(r"( *)_comment_(\d+)_", line)
        if mark is None:
            lines += _with_behind(line, behind)
            behind = []
            continue
        comment, indent = comments[int(mark[2])], mark[1]
        if comment.is_behind:
            behind.append(comment.text)
        else:
            lines += _before(comment.text, indent)
    return "\n".join(lines)


def _first_line(node: ast.stmt) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([node.lineno, *(each.lineno for each in decorators)])


def _paragraphs(text: str) -> Iterator[tuple[int, int, str]]:
    """Each comment with its last line and its column, or -1 where it stands behind code.

    Lines of comments below each other are one.
    """
    pending: tuple[int, int, list[str]] | None = None
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT or FOR_TOOLS.match(token.string):
            continue
        line, column = token.start
        words = token.string.removeprefix("#").strip()
        if token.line[:column].strip():
            yield line, -1, words
        elif pending and pending[:2] == (line - 1, column):
            pending = line, column, [*pending[2], words]
        else:
            if pending:
                yield pending[0], pending[1], " ".join(pending[2])
            pending = line, column, [words]
    if pending:
        yield pending[0], pending[1], " ".join(pending[2])


def _owner(
    line: int, column: int, statements: list[ast.stmt], by_first_line: dict[int, ast.stmt]
) -> ast.stmt | None:
    """The statement that a comment belongs to; None for one at the end of a block."""
    around = [
        each
        for each in statements
        if _first_line(each) <= line <= (each.end_lineno or 0)
        and (column < 0 or not any(hasattr(each, block) for block in BLOCKS))
    ]
    if around:
        return around[-1]  # the innermost
    following = min((each for each in by_first_line if each > line), default=0)
    next_one = by_first_line.get(following)
    return next_one if next_one is not None and next_one.col_offset == column else None


def _marked(statements: list[ast.stmt], comments: list[Comment]) -> list[ast.stmt]:
    """Copies of statements with a mark before each that has a comment."""
    marked: list[ast.stmt] = []
    for statement in statements:
        for comment in comments_of(statement):
            marked.append(ast.Expr(ast.Name(f"_comment_{len(comments)}_", ast.Load())))
            comments.append(comment)
        marked.append(_with_marks_inside(statement, comments))
    return marked


def _with_marks_inside(statement: ast.stmt, comments: list[Comment]) -> ast.stmt:
    inside = copy(statement)
    for block in BLOCKS:
        body = getattr(statement, block, None)
        if not body:
            continue
        is_elif = block == "orelse" and len(body) == 1 and isinstance(body[0], ast.If)
        if is_elif and isinstance(statement, ast.If):  # a mark would make it an else
            setattr(inside, block, [_with_marks_inside(body[0], comments)])
        else:
            setattr(inside, block, _marked(body, comments))
    if isinstance(inside, ast.Try):
        inside.handlers = [copy(handler) for handler in inside.handlers]
        for handler in inside.handlers:
            handler.body = _marked(handler.body, comments)
    return inside


def _before(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in textwrap.wrap(text, COLUMNS - 2 - len(indent))]


def _with_behind(line: str, comments: list[str]) -> list[str]:
    """A line with what stands behind it; where that is too long, or it is a decorator, before."""
    if not comments:
        return [line]
    whole = f"{line}  # {'; '.join(comments)}"
    if len(whole) <= COLUMNS and not line.strip().startswith("@"):
        return [whole]
    indent = line[: len(line) - len(line.lstrip())]
    return [*(each for text in comments for each in _before(text, indent)), line]


def _without_parentheses(code: str) -> str:
    """`x, y = a, b` and `return a, b`, around which unparsing puts parentheses."""
    lines = []
    for line in code.splitlines():
        bare = re.sub(r"^(\s*(?:[\w., \[\]\"']+ = |return ))\((.*)\)$", r"\1\2", line)
        lines.append(bare if bare != line and _same(bare, line) else line)
    return "\n".join(lines)


def _same(one: str, other: str) -> bool:
    try:
        trees = [ast.parse(f"def f():\n    {line.strip()}") for line in (one, other)]
    except SyntaxError:
        return False
    return ast.dump(trees[0]) == ast.dump(trees[1])
