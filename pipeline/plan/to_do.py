"""Find the units of a plan that are left to do."""

import dataclasses

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.plan.plan_file import in_order
from schemas.errors import TRANSIENT, ErrorType
from schemas.tables.columns import from_table, to_table
from schemas.tables.unit import UNIT, Unit


def units_to_do(plan: pa.Table, rows: pa.Table, run_id: str) -> pa.Table:
    """The units of the plan without a row, or with a failed row that is worth another attempt.

    rows: the committed rows, one per unit. Rows that failed with a transient error are done again
        if an earlier run wrote them. Rows of this run that failed because of the storage are too:
        its outage may be what interrupted the run.
    """
    kinds = pc.struct_field(rows["error"], "type")
    is_transient = pc.is_in(kinds, pa.array(sorted(TRANSIENT), pa.string()))
    is_storage = pc.is_in(kinds, pa.array([ErrorType.STORAGE_FAILED], pa.string()))
    of_other_run = pc.not_equal(rows["run_id"], pa.scalar(run_id))
    is_done = pc.invert(pc.or_(is_storage, pc.and_(is_transient, of_other_run)))
    done = rows["unit_id"].filter(is_done)
    units = plan.filter(pc.invert(pc.is_in(plan["unit_id"], done))) if len(done) else plan
    return with_attempts(units, rows.filter(pc.invert(is_done)))


def with_attempts(units: pa.Table, failed: pa.Table) -> pa.Table:
    """Give units the attempts of their failed rows, so that the row of the next attempt stays.

    units: UNIT rows, in the plan's order. failed: ``unit_id`` and ``error`` of committed rows.
    """
    attempts = {
        row["unit_id"]: (row["error"] or {}).get("attempts") or 0
        for row in failed.select(["unit_id", "error"]).to_pylist()
    }
    is_again = pc.is_in(units["unit_id"], pa.array(list(attempts), pa.string()))
    again = []
    for unit in from_table(units.filter(is_again), Unit):
        unit = dataclasses.replace(unit, attempts=attempts[unit.unit_id])
        again.append(unit if unit.error is None else unit.failed(unit.error))
    if not again:
        return units
    return in_order(pa.concat_tables([units.filter(pc.invert(is_again)), to_table(again, UNIT)]))
