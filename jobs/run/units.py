"""Find the units of a plan that are left to do. Nothing here writes."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from jobs.plan.open_job import JobContext
from jobs.plan.runs import Run
from pipeline.output.table import COUNTED, ids_in, read_committed
from schemas.errors import TRANSIENT, ErrorType


def read_rows(context: JobContext, plan: pa.Table, columns: Sequence[str] = COUNTED) -> pa.Table:
    """Read the committed rows of the plan's media under the run's recipes, from all runs.

    Returns the columns and ``file``; a unit may have several rows until ``remove_duplicates``.

    Raises:
        StorageError: the storage refused or failed.
    """
    media_ids = plan["media_id"].combine_chunks().unique()
    recipe_ids = context.run.recipe_ids
    return read_committed(context.job.output, recipe_ids, context.storage, columns, media_ids)


def units_to_do(plan: pa.Table, rows: pa.Table, run: Run) -> pa.Table:
    """The units of the plan without a row, or with a failed row that is worth another attempt.

    rows: the committed rows, one per unit. Rows that failed with a transient error are done again
        if an earlier run wrote them. Rows of this run that failed because of the storage are too:
        its outage may be what interrupted the run.
    """
    kinds = pc.struct_field(rows["error"], "type")
    is_transient = pc.is_in(kinds, pa.array(sorted(TRANSIENT), pa.string()))
    is_storage = pc.is_in(kinds, pa.array([ErrorType.STORAGE_FAILED], pa.string()))
    of_other_run = pc.not_equal(rows["run_id"], pa.scalar(run.run_id))
    is_done = pc.invert(pc.or_(is_storage, pc.and_(is_transient, of_other_run)))
    done = rows["unit_id"].filter(is_done)
    return plan.filter(pc.invert(pc.is_in(plan["unit_id"], done))) if len(done) else plan


def media_without_storage(plan: pa.Table) -> set[str]:
    """Ids of the media that could not be planned because their storage failed."""
    kinds = pc.struct_field(plan["error"], "type")
    is_storage = pc.equal(kinds, pa.scalar(ErrorType.STORAGE_FAILED.value))
    return set(ids_in(plan.filter(is_storage), "media_id"))
