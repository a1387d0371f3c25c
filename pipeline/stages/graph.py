"""Chain the stages on Ray: the whole pipeline, and what each stage takes, on one screen.

    plan      items, 0.3 KB each
                -> Plan (CPU)      -> UNIT,      0.6 KB a unit
    annotate  UNIT, in blocks of at most 256 units
                -> Prepare (CPU)   -> PREPARED,  12 MB a unit: 16 frames of 640 x 384
                -> Generate (GPU)  -> ANSWERED,  2 KB a unit
                -> Commit (no CPU) -> COMMITTED, 0.3 KB a unit, and pieces of shards
    items     captions of videos
                -> Summarise (GPU) -> SUMMARISED

A stage does its costly set-up once per actor, in ``__init__``, and then maps Arrow batches. Stages
share only the schemas in ``schemas/tables/unit.py``; ``Summarise`` holds a ``Generate``.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from pipeline.engines.largest import largest_media, largest_of_job
from pipeline.output.rows import RunKey
from pipeline.plan.slices import SlicedItems
from pipeline.stages.blocks import bytes_of_tokens, calls_within_memory, frame_bytes
from pipeline.stages.commit import Commit
from pipeline.stages.generate import Generate
from pipeline.stages.plan import Plan, PlanSlice
from pipeline.stages.pools import READER, Pool, Pools, on_nodes
from pipeline.stages.prepare import Prepare
from pipeline.stages.summarise import Summarise
from pipeline.storage.storage import Storage
from pipeline.workers.code_version import code_digest
from pipeline.workers.engine_guard import DeathsActor, running_deaths
from schemas.job.job import Job
from schemas.tables.columns import as_one_row, from_one_row
from schemas.tables.manifest import MediaItem

PLAN_BATCH_ITEMS = 64


def build_plan(
    items: Sequence[MediaItem], job: Job, max_model_len: int, storage: Storage, num_actors: int
) -> Any:
    """The chain of the plan, a lazy Ray Dataset of UNIT rows."""
    import ray

    blocks = max(num_actors, -(-len(items) // PLAN_BATCH_ITEMS))
    rows = ray.data.from_items([{"item": item} for item in items], override_num_blocks=blocks)
    args = (job, max_model_len, storage, code_digest())
    pool = Pool(num_actors=num_actors, num_cpus=1, resource=on_nodes(READER))
    return stage(rows, Plan, args, pool, batch_size=PLAN_BATCH_ITEMS, batch_format="numpy")


@contextmanager
def build_slices(source: SlicedItems, job: Job, storage: Storage, num_actors: int) -> Iterator[Any]:
    """The chain of a large plan: yields a lazy Dataset, each row of which holds a slice's UNIT."""
    pool = Pool(num_actors=num_actors, num_cpus=1, resource=on_nodes(READER))
    args = (job, storage, code_digest(), source.settings, None)
    with _rows_as_blocks():
        yield stage(_in_rows(source), PlanSlice, args, pool, batch_format="numpy")


@contextmanager
def build_annotate(
    source: list[pa.Table] | SlicedItems,
    job: Job,
    key: RunKey,
    storage: Storage,
    pools: Pools,
    units_per_file: int,
) -> Iterator[Any]:
    """The chain of a run: yields a lazy Ray Dataset, each row of which holds COMMITTED rows.

    source: UNIT rows, longest first, in blocks of about equal cost; or items that are planned while
        others are annotated. A block stays whole until the engine, which splits it into batches by
        tokens.
    """
    import ray

    code = code_digest()
    with running_deaths() as deaths, _rows_as_blocks():
        if isinstance(source, SlicedItems):
            largest = largest_of_job(job, has_videos=source.has_videos)
            num_bytes = bytes_of_tokens(max(largest.image_tokens, largest.video_tokens))
            units = _planned(source, job, storage, pools, code)
        else:
            largest = largest_media(source)
            num_bytes = max((float(frame_bytes(block).sum()) for block in source), default=0.0)
            # from_arrow would start workers only to count rows
            units = ray.data.from_blocks([as_one_row(block) for block in source])
        engines = pools.engine_pool(calls_within_memory(Generate.calls_at_once(job), num_bytes))
        prepared = stage(units, _whole(Prepare), (job, storage, code), pools.decoder_pool())
        args = (job, DeathsActor(deaths), code, engines.num_cpus, largest)
        answered = stage(prepared, _whole(Generate), args, engines)
        to_commit = (job, key, storage, code, units_per_file)
        yield stage(answered, _whole(Commit), to_commit, pools.committer_pool())


def _planned(source: SlicedItems, job: Job, storage: Storage, pools: Pools, code: str) -> Any:
    """A lazy Dataset of the blocks of slices; how far it runs ahead, Ray Data decides."""
    args = (job, storage, code, source.settings, pools)
    return stage(_in_rows(source), PlanSlice, args, pools.planner_pool(), batch_format="numpy")


def _in_rows(source: SlicedItems) -> Any:
    import ray

    rows = [{"slice": items} for items in source.slices]
    return ray.data.from_items(rows, override_num_blocks=len(rows))


@contextmanager
def _rows_as_blocks() -> Iterator[None]:
    """Let Ray Data pass on each row as a block.

    It joins and splits blocks by their bytes: by the default of 128 MB it would split what
    ``Prepare`` makes of one block of units, and join all blocks of a slice.
    """
    import ray

    context = ray.data.DataContext.get_current()
    usual = context.target_max_block_size
    context.target_max_block_size = 1
    try:
        yield
    finally:
        context.target_max_block_size = usual


def _whole(stage_class: type[Any]) -> type[Any]:
    """A stage as it is on Ray: it takes and returns one row, which holds all rows of a block."""

    class Whole:
        def __init__(self, *args: Any) -> None:
            self._stage = stage_class(*args)

        def __call__(self, batch: pa.Table) -> pa.Table:
            made = self._stage(from_one_row(batch))
            return as_one_row(made if isinstance(made, pa.Table) else pa.concat_tables(made))

    Whole.__name__ = Whole.__qualname__ = stage_class.__name__  # Ray names the actors by it
    return Whole


@contextmanager
def build_summaries(
    blocks: list[pa.Table], job: Job, max_model_len: int, pools: Pools
) -> Iterator[Any]:
    """The chain of the summaries: yields a lazy Dataset of SUMMARISED rows, one call a block."""
    import ray

    engines = pools.engine_pool()
    with running_deaths() as deaths:
        args = (job, max_model_len, DeathsActor(deaths), code_digest(), engines.num_cpus)
        yield stage(ray.data.from_blocks(blocks), Summarise, args, engines)


@contextmanager
def running_engine(job: Job, pools: Pools) -> Iterator[Any]:
    """Start one actor of ``Generate`` alone; yields its handle."""
    import ray

    options = {"num_cpus": pools.cpus_per_replica, "num_gpus": pools.gpus_per_replica}
    with running_deaths() as deaths:
        args = (job, DeathsActor(deaths), code_digest(), pools.cpus_per_replica)
        engine = ray.remote(Generate).options(**options).remote(*args)
        try:
            yield engine
        finally:
            ray.kill(engine)


def stage(
    dataset: Any,
    stage_class: type[Any],
    args: tuple[Any, ...],
    pool: Pool,
    *,
    batch_size: int | None = None,
    batch_format: str = "pyarrow",
) -> Any:
    """Map a Ray Dataset by a pool of actors.

    stage_class, args: what each actor constructs.
    batch_size: rows per call; None: one block per call.
    """
    import ray

    sizes: dict[str, Any] = {"size": pool.num_actors}
    if pool.max_actors is not None and pool.max_actors > pool.num_actors:
        sizes = {"min_size": pool.num_actors, "max_size": pool.max_actors}
    place = {"resources": {pool.resource: 0.001}} if pool.resource else {}
    if pool.calls_at_once > 1:
        sizes |= {
            "max_concurrent_calls_per_actor": pool.calls_at_once,
            # Not more: other actors cannot take a block that waits for this one.
            "max_tasks_in_flight_per_actor": pool.calls_at_once + 1,
            "enable_true_multi_threading": True,
        }
    with warnings.catch_warnings():
        # Ray has deprecated max_task_retries without a replacement.
        warnings.simplefilter("ignore", DeprecationWarning)
        return dataset.map_batches(
            stage_class,
            fn_constructor_args=args,
            batch_size=batch_size,
            batch_format=batch_format,
            num_cpus=pool.num_cpus,
            num_gpus=pool.num_gpus,
            compute=ray.data.ActorPoolStrategy(**sizes),
            max_task_retries=pool.max_task_retries,
            **place,
        )
