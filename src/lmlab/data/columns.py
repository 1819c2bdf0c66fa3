"""Find the text of a row by the name of its column or key; a dotted name (`meta.text`) is nested.

A column or key whose own name has the dots takes precedence over a nested one.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from lmlab.core.errors import UserError, printable

MOST_NAMES = 20


class Missing(NamedTuple):
    """Why a row has no text."""

    reason: str
    """What such rows are counted under, e.g. `null`."""
    message: str
    """The end of an error message that begins with the row's place, e.g. `'text' is null`."""


def text_of_row(row: Any, name: str) -> str | Missing:
    """The text in a row of JSON, or why there is none."""
    if not isinstance(row, Mapping):
        message = f"not a JSON object with the key {name!r}, but {_kind(row)}"
        return Missing("no JSON object", message)
    values = list(_values(row, name))
    if not values:
        return Missing("no such key", f"the object has no key {name!r}; it has {_listed(row)}")
    return text_of_value(values[0], name)


def text_of_value(value: Any, name: str) -> str | Missing:
    """A value that is text, or why it is none. Raises UnicodeDecodeError for bytes that are not
    UTF-8.
    """
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, str):
        return value
    kind = _kind(value)
    if value is None:
        return Missing(kind, f"{name!r} is {kind}")
    return Missing(kind, f"{name!r} is not text but {kind}")


def path_to(name: str, schema: pa.Schema, where: str) -> list[str]:
    """The path of names from a table to a column of text. Raises UserError where `name` is none."""
    path = next(_paths(schema, name), None)
    texts = list(_names_of_text(schema))
    if path is None:
        nested = [text for text in texts if text not in schema.names]
        raise UserError(
            f"{where} has no column {name!r}; it has {_listed([*schema.names, *nested])}"
        )
    same_name = schema.names.count(path[0])
    if same_name > 1:
        raise UserError(
            f"{where} has {same_name} columns named {path[0]!r}; give them different names"
        )
    kind = _type_at(schema, path)
    if not _is_text(kind) and not pa.types.is_null(kind):
        advice = "no column of it is"
        if texts:
            advice = f"set corpora.local.column to one that is: {_listed(texts)}"
        raise UserError(f"{where}: the column {name!r} is not text but {kind}; {advice}")
    return path


def text_of_batch(batch: pa.RecordBatch, path: list[str]) -> list[bytes | None]:
    """The values of the column at a path from `path_to`, as bytes of text; None for null."""
    column = batch.column(batch.schema.get_field_index(path[0]))
    for name in path[1:]:
        column = pc.struct_field(column, column.type.get_field_index(name))
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    values: list[bytes | None] = column.cast(pa.large_binary()).to_pylist()
    return values


def _values(row: Mapping[str, Any], name: str) -> Iterator[Any]:
    """Every value that a dotted name may mean, least nested first. Inside a null all is null."""
    if name in row:
        yield row[name]
    for head, rest in _splits(name):
        if head not in row:
            continue
        inner = row[head]
        if inner is None:
            yield None
        elif isinstance(inner, Mapping):
            yield from _values(inner, rest)


def _paths(fields: Iterable[pa.Field], name: str) -> Iterator[list[str]]:
    """Every column that a dotted name may mean, from the fields of a schema or a struct type."""
    types = {field.name: field.type for field in fields}
    if name in types:
        yield [name]
    for head, rest in _splits(name):
        if head in types and pa.types.is_struct(types[head]):
            for path in _paths(types[head], rest):
                yield [head, *path]


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Every way to split a dotted name in two, the longest head first."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        yield ".".join(parts[:length]), ".".join(parts[length:])


def _type_at(schema: pa.Schema, path: list[str]) -> pa.DataType:
    kind = schema.field(path[0]).type
    for name in path[1:]:
        kind = kind.field(name).type
    return kind


def _names_of_text(fields: Iterable[pa.Field]) -> Iterator[str]:
    """The dotted names of all columns of text."""
    for field in fields:
        if _is_text(field.type):
            yield field.name
        elif pa.types.is_struct(field.type):
            for name in _names_of_text(field.type):
                yield f"{field.name}.{name}"


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold text: strings, or bytes as some programs write them,
    dictionary-encoded or not.
    """
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    checks = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_string_view,
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
    )
    return any(check(kind) for check in checks)


def _kind(value: Any) -> str:
    """The type of a JSON value in words."""
    if value is None:
        return "null"
    words = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "text",
    }
    return words.get(type(value), type(value).__name__)


def _listed(names: Iterable[str]) -> str:
    """The first MOST_NAMES names, and how many more there are."""
    names = list(map(printable, names))
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more or "none"
