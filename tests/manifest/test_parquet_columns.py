"""Any further column that DuckDB or Arrow can write to Parquet is read, row by row."""

import datetime
import decimal
import json
import logging
import os
import re
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.manifest.read import read_manifest
from pipeline.manifest.write import write_manifest
from pipeline.storage.storage import Storage
from schemas.errors import ManifestError

STORAGE = Storage()
MAX = 2**63 - 1


def read(path):
    """The values of the column ``c`` in each row, after the manifest was written and read again."""
    items = read_manifest(str(path), STORAGE)
    write_manifest(items, f"{path}.jsonl", STORAGE)
    assert read_manifest(f"{path}.jsonl", STORAGE) == items
    return [json.loads(item.attributes)["c"] for item in items]


def read_arrow(path, *arrays, **options):
    """Read a manifest whose column ``c`` has the values of ``arrays``."""
    values = pa.chunked_array(arrays)
    uris = pa.chunked_array([[f"s3://b/{k}.mp4" for k in range(len(values))]])
    pq.write_table(pa.table({"uri": uris, "c": values}), path, **options)
    return read(path)


def duckdb_writes(path, *values):
    rows = ", ".join(f"('s3://b/{k}.mp4', {value})" for k, value in enumerate(values))
    duckdb.sql(f"COPY (SELECT * FROM (VALUES {rows}) AS t(uri, c)) TO '{path}' (FORMAT parquet)")


FAR = [
    ("'2026-01-02 03:04:05'::TIMESTAMP", "'290000-03-04 05:06:07.5'::TIMESTAMP"),
    ("'2026-01-02'::DATE", "'5000000-03-04'::DATE"),
    ("'2026-01-02'::DATE", "'0044-03-15 (BC)'::DATE"),
    ("'2026-01-02 03:04:05'::TIMESTAMP_MS", "'10000-01-01'::TIMESTAMP_MS"),
    ("'2026-01-02 03:04:05'::TIMESTAMP", "'0001-01-01 (BC)'::TIMESTAMP"),
    ("'2026-01-02 03:04:05+00'::TIMESTAMPTZ", "'12345-06-07 08:09:10+00'::TIMESTAMPTZ"),
]


@pytest.mark.parametrize(("usual", "far"), FAR)
def test_far_dates_are_iso_8601(tmp_path, usual, far):
    path = tmp_path / "m.parquet"
    duckdb_writes(path, usual, far, "NULL")
    ordinary, text, null = read(path)
    assert datetime.datetime.fromisoformat(ordinary).date() == datetime.date(2026, 1, 2)
    assert null is None
    found = re.fullmatch(r"([+-]?)(\d{4,})-(\d\d)-(\d\d)(T.*)?", text)
    year = int(found[1] + found[2])
    assert found[1] == ("+" if year > 9999 else "-" if year < 0 else "")
    (parts,) = duckdb.sql(
        f"SELECT extract(year FROM c), extract(month FROM c), extract(day FROM c) FROM '{path}' "
        "WHERE uri LIKE '%/1.mp4'"
    ).fetchall()
    # DuckDB counts 44 BC as -43, as ISO 8601 does: there is a year 0.
    assert (year, int(found[3]), int(found[4])) == parts


@pytest.mark.parametrize(
    "kind", ["TIMESTAMP", "TIMESTAMPTZ", "DATE", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"]
)
def test_infinite_dates(tmp_path, kind, caplog):
    path = tmp_path / "m.parquet"
    values = ("infinity", "2026-01-02", "-infinity")
    duckdb_writes(path, *(f"'{value}'::{kind}" for value in values))
    infinite = duckdb.sql(f"SELECT c::VARCHAR FROM '{path}' WHERE isinf(c) ORDER BY uri").fetchall()
    first, usual, last = read(path)
    assert [(first,), (last,)] == infinite == [("infinity",), ("-infinity",)]
    assert usual.startswith("2026-01-02")
    assert "column 'c' has 2 values that Python cannot hold" in caplog.text
    assert "such as row 1: 'infinity'" in caplog.text


def test_infinite_dates_inside_maps_lists_and_structs(tmp_path):
    path = tmp_path / "m.parquet"
    duckdb_writes(
        path,
        "{'a': [MAP {'x': 'infinity'::DATE, 'y': '2026-01-02'::DATE}], 'b': 1}",
        "{'a': [MAP {'x': '2026-01-02'::DATE}], 'b': 2}",
    )
    assert read(path) == [
        {"a": [[["x", "infinity"], ["y", "2026-01-02"]]], "b": 1},
        {"a": [[["x", "2026-01-02"]]], "b": 2},
    ]


def not_utf8(*texts):
    """An array of texts with these bytes, which Arrow does not check."""
    return pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts, pa.binary()).buffers())


TEXT = not_utf8(b"Z\xfcrich", "Zürich".encode(), b"\xff")
LATIN = ["Z\\xfcrich", "Zürich", "\\xff"]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (TEXT, LATIN),
        (TEXT.dictionary_encode(), LATIN),
        (pa.ListArray.from_arrays([0, 1, 3], TEXT), [LATIN[:1], LATIN[1:]]),
        (pa.StructArray.from_arrays([TEXT], ["a"]), [{"a": text} for text in LATIN]),
        (TEXT.cast(pa.large_string()), LATIN),
    ],
    ids=["text", "dictionary", "list", "struct", "large"],
)
def test_text_that_is_not_utf8(tmp_path, array, expected, caplog):
    assert read_arrow(tmp_path / "m.parquet", array) == expected
    assert "text that is not UTF-8" in caplog.text


@pytest.mark.parametrize("zone", ["Mars/Phobos", "+25:00", "local"])
def test_a_zone_that_is_not_known(tmp_path, zone):
    times = pa.array([1_767_323_045_000_000, None, MAX], pa.timestamp("us", zone))
    first, null, last = read_arrow(tmp_path / "m.parquet", times)
    expected = datetime.datetime.fromtimestamp(1_767_323_045, datetime.UTC)
    assert datetime.datetime.fromisoformat(first) == expected
    assert (null, last) == (None, "infinity")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_long_durations_are_seconds(tmp_path, unit):
    times = pa.array([MAX, None, 3], pa.duration(unit))
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    found = read_arrow(tmp_path / "m.parquet", times)
    assert found[1] is None
    assert found[0] == pytest.approx(MAX / per_second, rel=1e-6)
    assert found[2] == pytest.approx(3 / per_second, abs=1e-6)


def test_a_struct_with_two_fields_of_one_name(tmp_path):
    struct = pa.StructArray.from_arrays([pa.array([1, 2]), pa.array(["x", "y"])], ["a", "a"])
    expected = [[["a", 1], ["a", "x"]], [["a", 2], ["a", "y"]]]
    assert read_arrow(tmp_path / "m.parquet", struct) == expected


def test_decimals_keep_their_digits(tmp_path):
    values = ["0.1", "2.50", "99999999999999999999999999999999.5", "12345678901234567890.125"]
    numbers = pa.array([decimal.Decimal(v) for v in values], pa.decimal256(60, 3))
    found = read_arrow(tmp_path / "m.parquet", numbers)
    assert found[:2] == [0.1, 2.5]
    assert [decimal.Decimal(text) for text in found[2:]] == [decimal.Decimal(v) for v in values[2:]]


def test_old_times_of_spark(tmp_path):
    """INT96, which Arrow reads as nanoseconds; DuckDB says what is in the file."""
    path = tmp_path / "m.parquet"
    times = pa.array([datetime.datetime(9000, 12, 31, 23, 59)], pa.timestamp("us"))
    (found,) = read_arrow(path, times, use_deprecated_int96_timestamps=True)
    ((expected,),) = duckdb.sql(f"SELECT c::TIMESTAMP FROM '{path}'").fetchall()
    assert datetime.datetime.fromisoformat(found) == expected


def test_usual_columns_are_read_as_before_and_without_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        path = tmp_path / "m.parquet"
        duckdb_writes(
            path, "{'a': 1.5, 'b': ['x'], 'c': '2026-01-02'::DATE, 'd': MAP {'k': 1}, 'e': true}"
        )
        assert read(path) == [{"a": 1.5, "b": ["x"], "c": "2026-01-02", "d": [["k", 1]], "e": True}]
        assert read_arrow(path, pa.array(np.arange(3, dtype=np.float16))) == [0.0, 1.0, 2.0]
    assert caplog.text == ""


def test_a_uri_that_is_not_utf8_is_the_name_of_a_local_file(tmp_path):
    name = os.fsencode(tmp_path) + b"/Z\xfcrich.mp4"
    with open(name, "wb") as file:
        file.write(b"123")
    expected = Path(os.fsdecode(name)).as_uri()
    for uri in (name, b"Z\xfcrich.mp4"):
        pq.write_table(pa.table({"uri": not_utf8(uri)}), tmp_path / "m.parquet")
        (item,) = read_manifest(f"{tmp_path}/m.parquet", STORAGE)
        assert item.uri == expected
        with STORAGE.open_media(item.uri) as media:
            assert media.file.read() == b"123"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"uri": not_utf8(b"/a.mp4", b"s3://b/\xff.mp4")}, "row 2: uri must be UTF-8"),
        ({"uri": ["/a.mp4"], "media_id": not_utf8(b"\xff")}, "row 1: media_id must be UTF-8"),
    ],
)
def test_other_known_columns_must_be_utf8(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    with pytest.raises(ManifestError, match=message):
        read_manifest(f"{tmp_path}/m.parquet", STORAGE)
