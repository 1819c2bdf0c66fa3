"""Imports point one way: a room imports from rooms below it, and inside a room there is no
circle.
"""

import ast
import graphlib
import re
from pathlib import Path

import pytest

import lmlab

SOURCES = Path(__file__).resolve().parents[1] / "src" / "lmlab"
ROOMS = dict(re.findall(r"(?m)^    (\w+)/ +(.+)$", lmlab.__doc__ or ""))
"""From the ground up, with what each holds; the list stands in the docstring of lmlab."""
LADDER = [*ROOMS, "cli"]
"""A module may import from its own room and from those before it."""


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(SOURCES).with_suffix("").parts): path
        for path in SOURCES.rglob("*.py")
    }


def imported(path: Path) -> set[str]:
    """What of lmlab a file imports anywhere in it: modules, dotted, without the package's name."""
    known, found = modules(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: relative imports hide direction"
            package = node.module or ""
            for alias in node.names:
                whole = f"{package}.{alias.name}".removeprefix("lmlab.")
                found |= {name for name in (whole, package.removeprefix("lmlab.")) if name in known}
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("lmlab.") for alias in node.names} & set(known)
    return found


def room(module: str) -> str:
    return module.split(".")[0]


def test_every_module_is_in_a_room() -> None:
    assert {room(module) for module in modules()} - {"__init__"} == set(LADDER)


def test_there_is_one_list_of_rooms() -> None:
    """In lmlab's docstring, in those of the rooms, and in README's map."""
    assert len(ROOMS) == 8
    readme = (SOURCES.parents[1] / "README.md").read_text()
    for name, holds in ROOMS.items():
        docstring = ast.get_docstring(ast.parse((SOURCES / name / "__init__.py").read_text()))
        assert docstring == f"{holds[0].upper()}{holds[1:]}."
        lines = [line for line in readme.splitlines() if f"src/lmlab/{name}/" in line]
        assert any(docstring in line for line in lines), name


def test_imports_go_down_the_ladder() -> None:
    upward = [
        f"{module} imports {other}"
        for module, path in modules().items()
        for other in imported(path)
        if module != "__init__" and LADDER.index(room(other)) > LADDER.index(room(module))
    ]
    assert not upward


@pytest.mark.parametrize("own", ["explorer", "export"])
def test_what_looks_at_a_run_or_takes_it_away_is_known_to_no_other_room(own: str) -> None:
    users = {
        room(module)
        for module, path in modules().items()
        for other in imported(path)
        if room(other) == own
    }
    assert users == {own, "cli"}


def test_no_modules_import_each_other_in_a_circle() -> None:
    graphlib.TopologicalSorter(
        {module: imported(path) - {module} for module, path in modules().items()}
    ).prepare()


def test_nothing_reads_pickles() -> None:
    for path in SOURCES.rglob("*.py"):
        text = path.read_text()
        assert "pickle" not in text, path.name
        assert "torch.load" not in text, path.name
