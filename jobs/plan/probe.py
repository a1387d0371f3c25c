"""Read the headers of media items, in this process or on Ray."""

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from jobs.cluster.session import plan_actors, ray_session, tables_of
from jobs.cluster.small import why_ray
from jobs.console.progress import Progress
from jobs.plan.open_job import JobContext
from pipeline.plan.planner import PROBE_THREADS, Planner
from pipeline.plan.slices import SlicedItems
from pipeline.stages.graph import build_plan, build_slices
from pipeline.workers.child_process import Isolated
from schemas.tables.columns import from_one_row, to_table
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import UNIT, Unit

_TABLES_PER_CHUNK = 256
"""Many small tables take several times the memory of one large one, so they are combined."""


def probe_items(items: list[MediaItem], context: JobContext, console: Console) -> pa.Table:
    """Plan items, those of a small job in this process, others on Ray.

    Returns UNIT rows, at least one per item.

    Raises:
        UserError: the storage or cluster failed.
    """
    if not items:
        return UNIT.empty_table()
    num_items = len(items)
    bar = Progress(console, "planning", total_units=num_items, total_cost=float(num_items))
    if why_ray(context.job, num_items, "items") is None:
        return _probe_in_this_process(items, context, bar)
    with ray_session(console):
        return _probe_on_ray(items, context, bar)


def probe_slices(source: SlicedItems, context: JobContext, console: Console) -> None:
    """Plan slices on Ray, which writes the plan of each.

    Raises:
        UserError: the storage or cluster failed.
    """
    num_items = sum(len(items.items) for items in source.slices)
    bar = Progress(console, "planning", total_units=num_items, total_cost=float(num_items))
    with ray_session(console):
        actors = plan_actors(num_items, context.job.resources)
        with build_slices(source, context.job, context.storage, actors) as dataset, bar:
            for rows in tables_of(dataset):
                num_media = pc.count_distinct(from_one_row(rows)["media_id"]).as_py()
                bar.advance(units=num_media, cost=float(num_media))


def _probe_in_this_process(items: list[MediaItem], context: JobContext, bar: Progress) -> pa.Table:
    isolated = Isolated("pipeline.plan.sampler", PROBE_THREADS, quiet=True)
    planner = Planner(context.job, context.checkpoint.max_model_len, context.storage, isolated)
    units: list[Unit] = []
    with bar:
        for item_units in planner.plan_each(items):
            units += item_units
            bar.advance(units=1, cost=1.0)
    isolated.close()
    return to_table(units, UNIT)


def _probe_on_ray(items: list[MediaItem], context: JobContext, bar: Progress) -> pa.Table:
    actors = plan_actors(len(items), context.job.resources)
    max_model_len = context.checkpoint.max_model_len
    dataset = build_plan(items, context.job, max_model_len, context.storage, actors)
    tables: list[pa.Table] = []
    chunks: list[pa.Table] = []
    with bar:
        for batch in tables_of(dataset):
            tables.append(batch.cast(UNIT))
            if len(tables) == _TABLES_PER_CHUNK:
                chunks.append(pa.concat_tables(tables).combine_chunks())
                tables.clear()
            num_media = len(set(batch["media_id"].to_pylist()))
            bar.advance(units=num_media, cost=float(num_media))
    return pa.concat_tables([*chunks, *tables])
