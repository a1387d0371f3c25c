"""Write what a listing changed without a new answer into the table ``listing``."""

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from jobs.plan.open_job import JobContext
from pipeline.manifest.existing import ExistingMedia
from pipeline.output.listing import write_listing


def record_listing(
    rows: pa.Table, context: JobContext, console: Console, *, dry_run: bool = False
) -> None:
    """Write LISTING rows, and print how many names they are about.

    dry_run: only print.

    Raises:
        StorageError: the storage refused or failed.
    """
    if not rows.num_rows:
        return
    if not dry_run:
        write_listing(rows, context.job.output, context.run.key, context.storage)
    num_gone = pc.sum(rows["is_gone"]).as_py()
    console.print(
        f"{rows.num_rows - num_gone:,} media have content that the table knows: their answers are "
        f"in the view `latest`; {num_gone:,} media are gone"
    )


def existing_media(context: JobContext) -> ExistingMedia:
    """Open the media that the table has under the run's recipes.

    Raises:
        StorageError: the storage refused or failed.
    """
    return ExistingMedia(context.job.output, context.run.key.recipe_ids, context.storage)


def record_done_media(
    plan: pa.Table, rows: pa.Table, units: pa.Table, context: JobContext, console: Console
) -> None:
    """Record the content of media of which earlier runs wrote all rows.

    plan: UNIT rows of the run. rows: the committed rows. units: those that are left to do.

    Raises:
        StorageError: the storage refused or failed.
    """
    is_earlier = pc.not_equal(rows["run_id"], pa.scalar(context.run.run_id))
    is_earlier = pc.and_(is_earlier, pc.is_in(rows["unit_id"], plan["unit_id"]))
    media_ids = pc.unique(rows["media_id"].filter(is_earlier))
    is_done = pc.invert(pc.is_in(plan["media_id"], units["media_id"]))
    done = plan.filter(pc.and_(pc.is_in(plan["media_id"], media_ids), is_done))
    if done.num_rows:
        with existing_media(context) as existing:
            record_listing(existing.new_units(done)[1], context, console)
