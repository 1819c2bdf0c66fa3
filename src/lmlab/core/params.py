"""params.yaml as frozen, typed, strict objects. This is the only module that reads the file.

Each section's class lives beside the code it steers (`TrainParams` in training.py, say) and derives
from `Params`. A typo, a missing key or a wrong type ends in one line that names the key and the
nearest right one.
"""

import difflib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from math import inf
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, field_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from lmlab.core.errors import UserError

Tree = Mapping[str, Any]
"""The whole of params.yaml as nested mappings."""

Values = dict[str, Any]
"""Values by dotted key, as for `changed`."""


LARGEST = 2**63 - 1
"""The largest whole number in params.yaml, as torch, numpy and Parquet can hold no larger one."""
LARGEST_FLOAT = 3.4e38
"""The largest of the other numbers, as float32 can hold no larger one."""
LONGEST_SHOWN = 200
"""Characters of a wrong value that an error quotes."""
MOST_VALUES = 100_000
"""In a file of params, counted with what YAML's aliases repeat."""


class Params(BaseModel):
    """Base of every section and of every part's `Options`: unknown keys and wrong types are
    refused, nothing is hidden.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _of_numbers_that_fit(cls, value: Any) -> Any:
        """Refuse numbers beyond LARGEST and LARGEST_FLOAT, also inside lists and blocks."""
        _check_numbers(value)
        return value


def _check_numbers(value: Any) -> None:
    if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
        raise ValueError(
            f"{shown(value)} is out of bounds: whole numbers lie between -{LARGEST} and {LARGEST}"
        )
    if isinstance(value, float) and LARGEST_FLOAT < abs(value) < inf:
        raise ValueError(
            f"{value} is out of bounds: numbers lie between -{LARGEST_FLOAT} and {LARGEST_FLOAT}"
        )
    for inner in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        _check_numbers(inner)


def _once(names: list[str]) -> list[str]:
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]} stands there twice")
    return names


Names = Annotated[list[str], AfterValidator(_once)]
"""Several parts of a kind, chosen by name, each once."""

P = TypeVar("P", bound=Params)


def read(path: Path = Path("params.yaml")) -> Tree:
    """Parse the file in YAML 1.2, the dialect DVC itself uses (so `3e-4` is a number and `on` is
    text).
    """
    try:
        tree = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run from the project's top folder") from None
    except MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(
            f"{path}{line}: {', '.join(filter(None, [error.context, error.problem]))}"
        ) from None
    except RecursionError:
        raise UserError(
            f"{path} is nested too deeply to be read; it should hold sections such as `train:`"
        ) from None
    except (YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that does not exist
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} should hold sections such as `train:`, but is empty or a list")
    _check_size(tree, path)
    return tree


def _check_size(tree: Any, path: Path) -> None:
    """Raise UserError where aliases that repeat each other, or themselves, make more of a file than
    anything could read.
    """
    pending, values = [tree], 0
    while pending:
        value = pending.pop()
        values += 1
        if values > MOST_VALUES:
            raise UserError(
                f"{path} holds more than {MOST_VALUES:,} values, counting those that its aliases"
                " (*) repeat"
            )
        pending.extend(
            value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        )


def block(tree: Tree, dotted: str) -> Tree:
    """The mapping at `a.b.c`, empty where the key is absent or has no value."""
    at: Any = tree
    for depth, key in enumerate(dotted.split(".")):
        if not isinstance(at, dict):
            where = ".".join(dotted.split(".")[:depth])
            raise UserError(f"params.yaml: {where} should be a block of keys, not {shown(at)}")
        at = at.get(key)
        if at is None:
            return {}
    if not isinstance(at, dict):
        raise UserError(f"params.yaml: {dotted} should be a block of keys, not {shown(at)}")
    return at


def changed(tree: Tree, changes: Mapping[str, Any]) -> Tree:
    """params.yaml with some values replaced, by dotted keys; `key*` multiplies. Raises UserError
    for a key it lacks.
    """
    copy = deepcopy(dict(tree))
    for dotted, value in changes.items():
        path, _, key = dotted.removesuffix("*").rpartition(".")
        at = block(copy, path)
        if key not in at or not isinstance(at, dict):
            raise UserError(f"params.yaml has no {path}.{key}; {nearest(key, at)}")
        at[key] = at[key] * value if dotted.endswith("*") else value
    return copy


def section(tree: Tree, dotted: str, kind: type[P]) -> P:
    """The block at `dotted` as a `kind`; raises UserError naming the first key that is wrong."""
    try:
        return kind.model_validate({str(key): value for key, value in block(tree, dotted).items()})
    except ValidationError as error:
        raise UserError(f"params.yaml: {_explain(error, dotted, kind)}") from None


def _keys(kind: type[Params]) -> list[str]:
    """A section's keys as they stand in params.yaml."""
    return [info.alias or name for name, info in kind.model_fields.items()]


def shown(value: Any) -> str:
    """A value as Python writes it, cut where it is long."""
    if isinstance(value, int) and not -(10**LONGEST_SHOWN) < value < 10**LONGEST_SHOWN:
        return "a number of very many digits"
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def nearest(word: str, words: Iterable[str]) -> str:
    """A hint that names the known word closest to `word`, or all there are."""
    known = sorted(words)
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(known) or 'none'}"


def _explain(error: ValidationError, dotted: str, kind: type[Params]) -> str:
    # A mistyped key is also a missing one: the unknown key is the one that says what happened.
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    fault = faults[0]
    key = ".".join([dotted, *(str(step) for step in fault["loc"])])
    more = (
        f" (and {len(faults) - 1} more)"
        if len(faults) > 1 and fault["type"] != "extra_forbidden"
        else ""
    )
    match fault["type"]:
        case "extra_forbidden":
            return f"{key} is not a known key; {nearest(str(fault['loc'][-1]), _keys(kind))}"
        case "missing":
            return f"{key} is missing; add it under {dotted}{more}"
        case "value_error":
            return f"{key}: {fault['msg'].removeprefix('Value error, ')}{more}"
        case _:
            asked = fault["msg"].replace("Input should be", "should be", 1)
            return f"{key} {asked}, not {shown(fault['input'])}{more}"
