"""Python values of a Parquet column, also of those that Python's own types cannot hold.

Databases write dates that are infinite or after the year 9999, zones that this machine does not
know, and text in other encodings. One such value must not refuse a manifest.
"""

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_CANNOT = (ValueError, OverflowError, KeyError, pa.ArrowException)
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_MAX_TIME, _MAX_DATE = 2**63 - 1, 2**31 - 1
_INFINITY = {
    **{_MAX_TIME: "infinity", -_MAX_TIME: "-infinity"},
    **{_MAX_DATE: "infinity", -_MAX_DATE: "-infinity"},
}
"""DuckDB's and PostgreSQL's infinite times and dates; a time of 2**31 is read by Python."""


def column_values(
    column: "pa.ChunkedArray[Any]", undecodable: str = "backslashreplace"
) -> tuple[list[Any], list[int]]:
    """Return a column's values, and the rows in which one is not what ``to_pylist`` returns.

    There, dates and times become ISO 8601 text, or ``infinity``; a time whose zone is unknown is in
    UTC; durations become seconds, structs with repeated names and maps lists of pairs. What has no
    such form is None.

    undecodable: what happens to bytes that are not UTF-8, as in ``bytes.decode``.
    """
    if not _has_infinity(column):
        try:
            return column.to_pylist(), []
        except _CANNOT:
            pass
    values, changed = [], []
    for row, scalar in enumerate(column):
        try:
            if _is_infinite(scalar):
                raise OverflowError
            values.append(scalar.as_py())
        except _CANNOT:
            values.append(_nearest(scalar, undecodable))
            changed.append(row)
    return values, changed


def _nearest(scalar: Any, undecodable: str) -> Any:
    """The value in a form that JSON can hold; only the parts that need it are changed."""
    if _is_infinite(scalar):
        return _INFINITY[scalar.value]
    try:
        return scalar.as_py()
    except _CANNOT:
        pass
    kind: Any = type(scalar)  # Arrow's stubs know neither `value` nor elements by number
    if issubclass(kind, pa.DictionaryScalar | pa.ExtensionScalar):
        return _nearest(scalar.value, undecodable)
    if issubclass(kind, pa.MapScalar):
        return [[_nearest(pair[k], undecodable) for k in (0, 1)] for pair in scalar.values]
    if issubclass(kind, pa.ListScalar):
        return [_nearest(element, undecodable) for element in scalar.values]
    if issubclass(kind, pa.StructScalar):
        names = [field.name for field in scalar.type]
        children = [_nearest(scalar[k], undecodable) for k in range(len(names))]
        pairs = list(zip(names, children, strict=True))
        return dict(pairs) if len(set(names)) == len(names) else [list(pair) for pair in pairs]
    if issubclass(kind, pa.StringScalar):
        return scalar.as_buffer().to_pybytes().decode("utf-8", undecodable)
    if issubclass(kind, pa.DurationScalar):
        return scalar.value / _PER_SECOND[scalar.type.unit]
    if issubclass(kind, pa.TimestampScalar | pa.Date32Scalar | pa.Date64Scalar):
        return _time_text(scalar)
    return None


def _time_text(scalar: Any) -> str | None:
    """A time or date as text: ISO 8601, also with years of more than four digits or before 1."""
    is_date = isinstance(scalar, pa.Date32Scalar)
    unit: Any = "D" if is_date else getattr(scalar.type, "unit", "ms")
    found = re.match(r"(-?)(\d+)(-.*)", str(np.datetime64(scalar.value, unit)))
    if found is None:  # the smallest number is "not a time"
        return None
    sign, year, rest = found.groups()
    sign = "+" if not sign and int(year) > 9999 else sign
    zone = "+00:00" if getattr(scalar.type, "tz", None) else ""
    return f"{sign}{year:0>4}{rest}{zone}"


def _is_infinite(scalar: Any) -> bool:
    maximum = {pa.TimestampScalar: _MAX_TIME, pa.Date32Scalar: _MAX_DATE}.get(type(scalar))
    return maximum is not None and abs(scalar.value or 0) == maximum


def _has_infinity(column: "pa.ChunkedArray[Any]") -> bool:
    """Whether a column of times has an infinite one; in nanoseconds, Python reads it as 2262."""
    if not pa.types.is_timestamp(column.type):
        return False
    numbers = column.cast(pa.timestamp(column.type.unit)).cast(pa.int64())
    infinite = pa.array([_MAX_TIME, -_MAX_TIME], pa.int64())
    return bool(pc.any(pc.is_in(numbers, value_set=infinite)).as_py())
