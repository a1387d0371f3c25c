"""Of the rows of several attempts and several drivers the right one stays, without any clock."""

import dataclasses

import pyarrow as pa

from pipeline.output.duplicates import find_superfluous_rows
from pipeline.plan.to_do import units_to_do
from schemas.tables.columns import from_table, to_row, to_table
from schemas.tables.error import ErrorRecord
from schemas.tables.unit import UNIT, Unit


def planned(unit_id: str, cost: float, kind: str | None = None) -> Unit:
    fields = {"unit_id": unit_id, "unread_id": unit_id, "media_id": unit_id, "uri": unit_id}
    unit = Unit(**fields, predicted_cost=cost, prompts=())
    return unit.failed(error(kind)) if kind else unit


def error(kind: str, attempts: int = 1) -> ErrorRecord:
    return ErrorRecord(stage="decode", type=kind, message="", attempts=attempts)


def table_of(*rows: tuple[str, ErrorRecord | None, str]) -> pa.Table:
    """unit_id, error and file of each row."""
    return pa.table(
        {
            "unit_id": [unit_id for unit_id, _, _ in rows],
            "media_id": [unit_id for unit_id, _, _ in rows],
            "status": ["failed" if failure else "ok" for _, failure, _ in rows],
            "error": pa.array(
                [to_row(failure) if failure else None for _, failure, _ in rows],
                UNIT.field("error").type,
            ),
            "file": [file for _, _, file in rows],
            "run_id": ["r"] * len(rows),
        }
    )


def test_units_that_failed_are_done_again_with_their_attempts_counted():
    """So that the row of the next attempt stays, also if it fails in another way."""
    plan = to_table([planned("a", 3.0), planned("b", 2.0), planned("c", 1.0)], UNIT)
    rows = table_of(("b", error("storage_failed", 2), "f"), ("c", None, "f"))
    units = from_table(units_to_do(plan, rows, "r"), Unit)
    assert [(unit.unit_id, unit.attempts) for unit in units] == [("a", 0), ("b", 2)]
    again = units[1].failed(error("media_unreadable"))
    both = table_of(("b", error("storage_failed", 2), "a"), ("b", again.error, "z"))
    assert find_superfluous_rows(both).to_pylist() == [True, False]


def test_a_unit_that_planning_refuses_again_counts_too():
    plan = to_table([planned("a", 3.0, "storage_failed")], UNIT)
    rows = table_of(("a", error("storage_failed", 1), "f"))
    (unit,) = from_table(units_to_do(plan, rows, "r"), Unit)
    assert unit.error.attempts == 2


def test_a_stale_row_takes_no_other_row_of_its_unit_with_it():
    """Of media that could not be read before or now, with another content: more attempts, stale."""
    rows = table_of(("a", error("media_unreadable", 3), "a"), ("a", error("media_denied"), "b"))
    unread = {"media": pa.nulls(2, UNIT.field("media").type), "parts": [[], []]}
    for name, column in (unread | {"content_version": ["v1", "v2"]}).items():
        type_ = UNIT.field(name).type
        rows = rows.append_column(
            name, column if isinstance(column, pa.Array) else pa.array(column, type_)
        )
    plan = to_table([dataclasses.replace(planned("a", 0.0), content_version="v2")], UNIT)
    assert find_superfluous_rows(rows, plan).to_pylist() == [True, False]


def test_a_copy_stays_and_its_original_goes_whatever_their_names():
    token = "0" * 32
    original, copy = f"/o/part-a-abc-{token}-0.parquet", f"/o/part-compacted-abc-{token}-1.parquet"
    for first, second in ((original, copy), (copy, original)):
        rows = table_of(("a", None, first), ("a", None, second))
        kept = [
            file
            for file, goes in zip(
                rows["file"].to_pylist(), find_superfluous_rows(rows).to_pylist(), strict=True
            )
            if not goes
        ]
        assert kept == [copy]
