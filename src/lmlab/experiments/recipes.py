"""Recipes: files of values for params.yaml, by dotted key, that go together; each begins with a
comment that says what for.

A recipe is taken for one experiment (`dvc exp run $(lmlab recipe fast)`) or written into
params.yaml.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from lmlab.core import params
from lmlab.core.errors import UserError
from lmlab.core.files import whole_file
from lmlab.core.params import Values

FOLDER = Path("recipes")


def names(folder: Path = FOLDER) -> list[str]:
    """All recipes by name. Raises UserError where there is no such folder."""
    if not folder.is_dir():
        raise UserError(f"the folder {folder} is missing; run from the project's top folder")
    return sorted(path.stem for path in folder.glob("*.yaml"))


def read(name: str, folder: Path = FOLDER) -> Values:
    """A recipe's values. Raises UserError for a name that there is not."""
    known = names(folder)
    if name not in known:
        raise UserError(f"there is no recipe {name!r}; {params.nearest(name, known)}")
    return dict(params.read(folder / f"{name}.yaml"))


def purpose(name: str, folder: Path = FOLDER) -> str:
    """The comment that a recipe begins with, in one line."""
    lines = (folder / f"{name}.yaml").read_text(encoding="utf-8", errors="replace").splitlines()
    comment = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    return " ".join(comment)


def as_options(values: Values) -> Iterator[str]:
    """The values as options of `dvc exp run`, `-S key=value`. Raises UserError for one that a shell
    would cut at a space.
    """
    for key, value in values.items():
        written = _written(value)
        if len(written.split()) != 1:
            raise UserError(
                f"{key} holds a space, so a shell would cut it; put the recipe into params.yaml"
                " with --write"
            )
        yield f"-S {key}={written}"


def write(values: Values, path: Path = Path("params.yaml")) -> list[str]:
    """Put the values into params.yaml, its comments left as they are; returns a line for each that
    was another one.

    Raises UserError, with nothing written, for a key that params.yaml lacks.
    """
    before = params.read(path)
    params.changed(before, values)
    yaml = YAML()
    yaml.width = 2**16  # lines stay as long as they are
    tree = yaml.load(path.read_text(encoding="utf-8"))
    lines = []
    for dotted, value in values.items():
        block, _, key = dotted.rpartition(".")
        held = params.block(before, block)[key]
        if held == value and type(held) is type(value):
            continue
        at: Any = tree
        for step in block.split("."):
            at = at[step]
        at[key] = value
        lines.append(f"{dotted}: {_written(held)} -> {_written(value)}")
    if lines:
        with whole_file(path) as there, open(there, "w", encoding="utf-8") as file:
            yaml.dump(tree, file)
    return lines


def _written(value: Any) -> str:
    """A value as both YAML and DVC's command line read it, without spaces."""
    return value if isinstance(value, str) and value else json.dumps(value, separators=(",", ":"))
