"""params.yaml as frozen, strictly typed objects. This is the only module that reads the file.

Each section's class lives beside the code it configures (`TrainParams` in training/step.py, say)
and derives from `Params`. A typo, a missing key or a wrong type becomes a one-line error that names
the key and the nearest known one.
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
"""Values by dotted key, as `changed` takes them."""

LARGEST = 2**63 - 1
"""The largest integer allowed in params.yaml: torch, numpy and Parquet hold no larger one."""
LARGEST_FLOAT = 3.4e38
"""The largest other number allowed: float32 holds no larger one."""
LONGEST_SHOWN = 200
"""How many characters of a wrong value an error quotes."""
MOST_VALUES = 100_000
"""How many values a params file may hold, counting repetitions by YAML's aliases."""


class Params(BaseModel):
    """Base of every section and of every part's `Options`: refuses unknown keys and wrong types;
    nothing has a default.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=()
    )

    @field_validator("*", mode="before")
    @classmethod
    def _of_numbers_that_fit(cls, value: Any) -> Any:
        """Refuse numbers beyond LARGEST and LARGEST_FLOAT, inside lists and blocks too."""
        _check_numbers(value)
        return value


def _inner_values(value: Any) -> Iterable[Any]:
    """The values of a mapping or the items of a list; nothing for any other value."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _check_numbers(value: Any) -> None:
    if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
        raise ValueError(
            f"{shown(value)} is out of bounds: whole numbers lie between -{LARGEST} and {LARGEST}"
        )
    if isinstance(value, float) and LARGEST_FLOAT < abs(value) < inf:
        raise ValueError(
            f"{value} is out of bounds: numbers lie between -{LARGEST_FLOAT} and {LARGEST_FLOAT}"
        )
    for inner in _inner_values(value):
        _check_numbers(inner)


def _without_repeats(names: list[str]) -> list[str]:
    repeated = [name for name in names if names.count(name) > 1]
    if repeated:
        raise ValueError(f"{repeated[0]} is named twice")
    return names


Names = Annotated[list[str], AfterValidator(_without_repeats)]
"""Several parts of a kind, chosen by name, without repeats."""

P = TypeVar("P", bound=Params)


def read(path: Path = Path("params.yaml")) -> Tree:
    """Parse the file as YAML 1.2, the dialect that DVC uses: `3e-4` is a number and `on` is text.

    Raises UserError where it is missing, not YAML, or no mapping.
    """
    try:
        tree = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run from the project's top folder") from None
    except MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        problem = ", ".join(filter(None, [error.context, error.problem]))
        raise UserError(f"{path}{line}: {problem}") from None
    except RecursionError:
        raise UserError(
            f"{path} is nested too deeply to be read; it should hold sections such as `train:`"
        ) from None
    except (YAMLError, ValueError) as error:  # ValueError: not UTF-8, or a date that does not exist
        problem = " ".join(str(error).split())
        raise UserError(f"{path} is not valid YAML: {problem}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} should hold sections such as `train:`, but is empty or a list")
    _check_size(tree, path)
    return tree


def _check_size(tree: Any, path: Path) -> None:
    """Raise UserError where aliases that repeat each other, or themselves, blow the file up beyond
    MOST_VALUES.
    """
    pending = [tree]
    count = 0
    while pending:
        value = pending.pop()
        count += 1
        if count > MOST_VALUES:
            raise UserError(
                f"{path} holds more than {MOST_VALUES:,} values, counting those that its aliases"
                " (*) repeat"
            )
        pending.extend(_inner_values(value))


def block(tree: Tree, dotted: str) -> Tree:
    """The mapping at `a.b.c`, empty where the key is absent or has no value.

    Raises UserError where it, or what it lies in, is no mapping.
    """
    value: Any = tree
    keys = dotted.split(".")
    for depth, key in enumerate(keys):
        _check_block(value, ".".join(keys[:depth]))
        value = value.get(key)
        if value is None:
            return {}
    return _check_block(value, dotted)


def _check_block(value: Any, dotted: str) -> Tree:
    if not isinstance(value, dict):
        raise UserError(f"params.yaml: {dotted} should be a block of keys, not {shown(value)}")
    return value


def changed(tree: Tree, changes: Mapping[str, Any]) -> Tree:
    """params.yaml with the values at some dotted keys replaced; `key*` multiplies instead.

    Raises UserError for a key that it lacks.
    """
    copy = deepcopy(dict(tree))
    for dotted, value in changes.items():
        path, _, key = dotted.removesuffix("*").rpartition(".")
        keys = block(copy, path)
        if key not in keys or not isinstance(keys, dict):
            raise UserError(f"params.yaml has no {path}.{key}; {nearest(key, keys)}")
        keys[key] = keys[key] * value if dotted.endswith("*") else value
    return copy


def section(tree: Tree, dotted: str, kind: type[P]) -> P:
    """The block at `dotted` as a `kind`. Raises UserError naming the first key that is wrong."""
    values = {str(key): value for key, value in block(tree, dotted).items()}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(f"params.yaml: {_explain(error, dotted, kind)}") from None


def _keys(kind: type[Params]) -> list[str]:
    """A section's keys as params.yaml spells them."""
    return [info.alias or name for name, info in kind.model_fields.items()]


def shown(value: Any) -> str:
    """A value's `repr`, truncated where it is long."""
    if isinstance(value, int) and not -(10**LONGEST_SHOWN) < value < 10**LONGEST_SHOWN:
        return "a number of very many digits"
    text = repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def nearest(word: str, words: Iterable[str]) -> str:
    """A hint that names the known word closest to `word`, or all known words where none is."""
    known = sorted(words)
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known here: {', '.join(known) or 'none'}"


def _explain(error: ValidationError, dotted: str, kind: type[Params]) -> str:
    """The first fault in one line, and how many more there are."""
    # a mistyped key is also a missing one: the unknown key says what happened
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    fault = faults[0]
    key = ".".join([dotted, *map(str, fault["loc"])])
    if fault["type"] == "extra_forbidden":
        return f"{key} is not a known key; {nearest(str(fault['loc'][-1]), _keys(kind))}"
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    match fault["type"]:
        case "missing":
            return f"{key} is missing; add it under {dotted}{more}"
        case "value_error":
            return f"{key}: {fault['ctx']['error']}{more}"
        case _:
            expected = fault["msg"].replace("Input should be", "should be", 1)
            return f"{key} {expected}, not {shown(fault['input'])}{more}"
