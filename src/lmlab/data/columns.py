"""The text of rows by the name of its column or key; a dotted name (`meta.text`) leads into what is
nested.

A name that stands there as it is, dots and all, goes before one that leads inside.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from lmlab.core.errors import UserError
from lmlab.data.globs import shown

MOST_NAMES = 20


class Missing(NamedTuple):
    """Why a row has no text."""

    reason: str
    """For what is counted, e.g. `null`."""
    message: str
    """For what is refused, to go on from the row's place, e.g. `'text' is null`."""


def text_of_row(row: Any, name: str) -> str | Missing:
    """The text in a row of JSON, or why there is none."""
    if not isinstance(row, Mapping):
        return Missing(
            "no JSON object", f"not a JSON object with the key {name!r}, but {_kind(row)}"
        )
    values = list(_values(row, name))
    if not values:
        return Missing("no such key", f"the object has no key {name!r}; it has {_listed(row)}")
    return text_of_value(values[0], name)


def text_of_value(value: Any, name: str) -> str | Missing:
    """A value, if it is text, or why it is not. Raises UnicodeDecodeError for bytes that are not
    UTF-8.
    """
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, str):
        return value
    kind = _kind(value)
    return Missing(
        kind, f"{name!r} is {kind}" if value is None else f"{name!r} is not text but {kind}"
    )


def path_to(name: str, schema: pa.Schema, where: str) -> list[str]:
    """The names that lead from a table to a column of text. Raises UserError where there is none of
    that name.
    """
    path = next(_paths(schema, name), None)
    texts = list(_names_of_text(schema))
    if path is None:
        nested = [text for text in texts if text not in schema.names]
        raise UserError(
            f"{where} has no column {name!r}; it has {_listed([*schema.names, *nested])}"
        )
    if schema.names.count(path[0]) > 1:
        raise UserError(
            f"{where} has {schema.names.count(path[0])} columns named {path[0]!r}; name them apart"
        )
    kind = _type_at(schema, path)
    if not _is_text(kind) and not pa.types.is_null(kind):
        instead = (
            f"set corpora.local.column to one that is: {_listed(texts)}"
            if texts
            else "no column of it is"
        )
        raise UserError(f"{where}: the column {name!r} is not text but {kind}; {instead}")
    return path


def text_of_batch(batch: pa.RecordBatch, path: list[str]) -> list[bytes | None]:
    """The values of the column that `path_to` found, as the bytes of their text; None for null."""
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
    """Whatever a dotted name leads to, the least nested first. Behind a null everything is null."""
    if name in row:
        yield row[name]
    for head, rest in _cuts(name):
        if head in row and row[head] is None:
            yield None
        elif head in row and isinstance(row[head], Mapping):
            yield from _values(row[head], rest)


def _paths(fields: Iterable[pa.Field], name: str) -> Iterator[list[str]]:
    """The same for the names of columns, from a schema or the type of a struct."""
    types = {field.name: field.type for field in fields}
    if name in types:
        yield [name]
    for head, rest in _cuts(name):
        if head in types and pa.types.is_struct(types[head]):
            yield from ([head, *path] for path in _paths(types[head], rest))


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """Every way to cut a dotted name in two, the longest beginning first."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        yield ".".join(parts[:length]), ".".join(parts[length:])


def _type_at(schema: pa.Schema, path: list[str]) -> pa.DataType:
    kind = schema.field(path[0]).type
    for name in path[1:]:
        kind = kind.field(name).type
    return kind


def _names_of_text(fields: Iterable[pa.Field]) -> Iterator[str]:
    """The dotted names of all columns that hold text."""
    for field in fields:
        if _is_text(field.type):
            yield field.name
        elif pa.types.is_struct(field.type):
            yield from (f"{field.name}.{name}" for name in _names_of_text(field.type))


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type may hold text: strings or, as some programs write them, bytes;
    also in a dictionary.
    """
    if isinstance(kind, pa.BaseExtensionType):
        kind = kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    checks = (
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_binary,
        pa.types.is_large_binary,
    )
    views = (pa.types.is_string_view, pa.types.is_binary_view)
    return any(check(kind) for check in (*checks, *views))


def _kind(value: Any) -> str:
    """What a value of JSON is, in words."""
    words = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        str: "text",
    }
    return "null" if value is None else words.get(type(value), type(value).__name__)


def _listed(names: Iterable[str]) -> str:
    names = list(map(shown, names))
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more or "none"
