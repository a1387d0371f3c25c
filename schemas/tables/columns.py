"""Declare a table's row once: a frozen dataclass whose annotations describe its Arrow columns.

    @dataclass(frozen=True, kw_only=True)
    class Word:
        text: Annotated[str, Column("the word as printed")]
        score: Annotated[float | None, Column("confidence, 0 to 1")] = None

``schema_of(Word)`` and ``struct_of(Word)`` are its Arrow schema and struct type. ``to_table`` and
``from_table`` write and read rows, nested dataclasses and tuples of them included.
"""

import dataclasses
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import pyarrow as pa

T = TypeVar("T")

_ROWS_AT_ONCE = 16
_ARROW_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int32(),
    float: pa.float64(),
    bool: pa.bool_(),
    bytes: pa.large_binary(),
}


@dataclass(frozen=True)
class Column:
    """The description of an Arrow column, in the annotation of a dataclass field.

    type: None: it follows from the Python type; an ``int`` is int32.
    unit: unit of measure.
    nullable: None: if the annotation allows None.
    """

    description: str
    type: pa.DataType | None = None
    unit: str = dataclasses.field(default="", kw_only=True)
    nullable: bool | None = dataclasses.field(default=None, kw_only=True)


def described(
    name: str, type_: pa.DataType, description: str, *, unit: str = "", nullable: bool = True
) -> "pa.Field[Any]":
    """Make an Arrow field that carries its meaning, and its unit of measure if it has one."""
    metadata = {"description": description} | ({"unit": unit} if unit else {})
    return pa.field(name, type_, nullable=nullable, metadata=metadata)


def schema_of(row_class: type[Any]) -> pa.Schema:
    """Return the Arrow schema of a row class: one column for each field, in their order."""
    return pa.schema(_fields(row_class))


def struct_of(row_class: type[Any]) -> pa.StructType:
    """Return the Arrow struct type of a row class."""
    return pa.struct(_fields(row_class))


def to_table(rows: Iterable[Any], schema: pa.Schema) -> pa.Table:
    """Write dataclass rows as an Arrow table with exactly ``schema``; other fields are dropped."""
    return pa.Table.from_pylist([to_row(row) for row in rows], schema=schema)


def from_table(table: pa.Table, row_class: type[T]) -> list[T]:
    """Read the rows of an Arrow table as instances of ``row_class``."""
    batches = table.to_batches(max_chunksize=_ROWS_AT_ONCE)  # dicts of few rows in memory
    return [from_row(row, row_class) for batch in batches for row in batch.to_pylist()]


def to_row(row: Any) -> dict[str, Any]:
    """Return a dataclass instance as a dict, nested ones as dicts too."""
    values = {}
    for name, write in _writers(type(row)):
        value = getattr(row, name)
        values[name] = value if write is None or value is None else write(value)
    return values


def from_row(row: Mapping[str, Any], row_class: type[T]) -> T:
    """Read a dict as an instance of ``row_class``; other keys are ignored.

    Null in a field that cannot be None becomes the field's default: files written before the
    field existed have null there.

    Raises:
        TypeError: a field without a default is missing.
    """
    values = {}
    for name, keeps_none, read in _readers(row_class):
        value = row.get(name)
        if value is not None:
            values[name] = value if read is None else read(value)
        elif keeps_none:
            values[name] = None
    return row_class(**values)


@dataclass(frozen=True)
class _RowField:
    """A field of a row class. value_type: of the value, or of the elements if it is a tuple."""

    name: str
    default: Any
    column: Column | None
    value_type: Any
    allows_none: bool
    is_tuple: bool

    @property
    def is_row(self) -> bool:
        return dataclasses.is_dataclass(self.value_type)


def _row_fields(row_class: type[Any]) -> tuple[_RowField, ...]:
    hints = get_type_hints(row_class, include_extras=True)
    return tuple(_row_field(field, hints[field.name]) for field in dataclasses.fields(row_class))


def _row_field(field: "dataclasses.Field[Any]", hint: Any) -> _RowField:
    column = None
    if get_origin(hint) is Annotated:
        hint, column = get_args(hint)
    allows_none = isinstance(hint, types.UnionType)
    if allows_none:
        (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
    is_tuple = get_origin(hint) is tuple
    return _RowField(
        name=field.name,
        default=field.default,
        column=column,
        value_type=get_args(hint)[0] if is_tuple else hint,
        allows_none=allows_none,
        is_tuple=is_tuple,
    )


_Convert = Callable[[Any], Any] | None

_WRITERS: dict[type[Any], list[tuple[str, _Convert]]] = {}
_READERS: dict[type[Any], list[tuple[str, bool, _Convert]]] = {}


def _writers(row_class: type[Any]) -> list[tuple[str, _Convert]]:
    """For each field: its name, and the function that writes a value that is not plain."""

    def writer(field: _RowField) -> _Convert:
        if not field.is_row:
            return None
        return (lambda rows: [to_row(row) for row in rows]) if field.is_tuple else to_row

    if row_class not in _WRITERS:
        _WRITERS[row_class] = [(field.name, writer(field)) for field in _row_fields(row_class)]
    return _WRITERS[row_class]


def _readers(row_class: type[Any]) -> list[tuple[str, bool, _Convert]]:
    """For each field: its name, whether None must be passed on, and what reads other values."""

    def reader(field: _RowField) -> _Convert:
        kind = field.value_type
        if not field.is_row:
            return tuple if field.is_tuple else None
        if field.is_tuple:
            return lambda rows: tuple([from_row(row, kind) for row in rows])
        return lambda row: from_row(row, kind)

    if row_class not in _READERS:
        _READERS[row_class] = [
            (field.name, field.allows_none and field.default is not None, reader(field))
            for field in _row_fields(row_class)
        ]
    return _READERS[row_class]


def _fields(row_class: type[Any]) -> "list[pa.Field[Any]]":
    return [_arrow_field(field) for field in _row_fields(row_class)]


def _arrow_field(field: _RowField) -> "pa.Field[Any]":
    column = field.column
    assert column is not None, f"{field.name} has no Column"
    nullable = field.allows_none if column.nullable is None else column.nullable
    type_ = column.type or _arrow_type(field)
    return described(field.name, type_, column.description, unit=column.unit, nullable=nullable)


def _arrow_type(field: _RowField) -> pa.DataType:
    kind = field.value_type
    type_: pa.DataType = struct_of(kind) if field.is_row else _ARROW_TYPES[kind]
    return pa.list_(type_) if field.is_tuple else type_


def as_one_row(table: pa.Table) -> pa.Table:
    """Put all rows of a table into one: a list of structs in the column ``rows``."""
    offsets = pa.array([0, table.num_rows], pa.int32())
    rows = _in_one(table.to_struct_array())
    return pa.table({"rows": pa.ListArray.from_arrays(offsets, rows)})


def from_one_row(table: pa.Table) -> pa.Table:
    """Take the rows out of what ``as_one_row`` made; of several, one after the other."""
    return pa.Table.from_struct_array(_in_one(table["rows"]).flatten())


def _in_one(found: Any) -> Any:
    """A chunked array as one; `combine_chunks` copies a single chunk too, with all its frames."""
    return found.chunk(0) if found.num_chunks == 1 else found.combine_chunks()
