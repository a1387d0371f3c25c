"""Chain the stages on Ray: the whole pipeline, and what each stage takes, on one screen.

    plan:      manifest rows -> Plan (CPU actors)                                   -> units
    annotate:  units -> Prepare (CPU actors) -> Generate (GPU actors) -> Commit -> Parquet
    items:     captions of videos -> Summarise (GPU actors)                         -> summaries

A stage's class does its costly set-up once per actor and then maps Arrow batches. Stages know
nothing of each other; the schemas in ``schemas/unit.py`` are the boundaries between them.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.guard import remember_deaths
from pipeline.same_code import code_digest
from pipeline.stages import Commit, Generate, Plan, Prepare, Summarise
from pipeline.storage import Storage
from pipeline.write import RunKey
from schemas.job import Job
from schemas.manifest import MediaItem

PLAN_BATCH_ITEMS = 64
MAX_BLOCK_BYTES = 1 << 30
"""Ray Data would cut what the decoders make of a piece of work into blocks of 128 MB."""
MAX_TASK_RETRIES = 3


@dataclass(frozen=True, kw_only=True)
class Pools:
    """How many actors of each kind, and what each takes."""

    decoders: int
    cpus_per_decoder: float
    replicas: int
    cpus_per_replica: float
    gpus_per_replica: float


def build_plan(
    items: list[MediaItem], job: Job, max_model_len: int, storage: Storage, num_actors: int
) -> Any:
    """The plan's chain, as a lazy Ray Dataset of UNIT rows."""
    import ray

    blocks = max(num_actors, -(-len(items) // PLAN_BATCH_ITEMS))
    rows = ray.data.from_items([{"item": item} for item in items], override_num_blocks=blocks)
    args = (job, max_model_len, storage, code_digest())
    return stage(
        rows, Plan, args, num_actors, num_cpus=1, batch_size=PLAN_BATCH_ITEMS, batch_format="numpy"
    )


def build_annotate(
    blocks: list[pa.Table],
    job: Job,
    key: RunKey,
    storage: Storage,
    pools: Pools,
    units_per_file: int,
) -> Any:
    """The run's chain, as a lazy Ray Dataset of COMMITTED rows.

    blocks: the units to do, longest first, in pieces of about equal cost. A piece stays together
    up to the engine, which forms its batches out of it by tokens.
    """
    import ray

    code = code_digest()
    ray.data.DataContext.get_current().target_max_block_size = MAX_BLOCK_BYTES
    units = ray.data.from_blocks(blocks)  # from_arrow would start workers just to count rows
    prepared = stage(
        units, Prepare, (job, storage, code), pools.decoders, num_cpus=pools.cpus_per_decoder
    )
    answered = stage(
        prepared,
        Generate,
        (job, remember_deaths(), code, pools.cpus_per_replica),
        pools.replicas,
        num_cpus=pools.cpus_per_replica,
        num_gpus=pools.gpus_per_replica,
        max_task_retries=-1,
        calls_at_once=Generate.calls_at_once(job),
    )
    args = (job, key, storage, code)
    return stage(answered, Commit, args, 1, num_cpus=0, batch_size=units_per_file)


def build_summaries(blocks: list[pa.Table], job: Job, max_model_len: int, pools: Pools) -> Any:
    """The summaries' chain, as a lazy Ray Dataset of SUMMARISED rows, in pieces as they came."""
    import ray

    return stage(
        ray.data.from_blocks(blocks),
        Summarise,
        (job, max_model_len, remember_deaths(), code_digest(), pools.cpus_per_replica),
        pools.replicas,
        num_cpus=pools.cpus_per_replica,
        num_gpus=pools.gpus_per_replica,
        max_task_retries=-1,
    )


def stage(
    dataset: Any,
    cls: type[Any],
    args: tuple[Any, ...],
    num_actors: int,
    *,
    num_cpus: float,
    num_gpus: float = 0,
    batch_size: int | None = None,
    batch_format: str = "pyarrow",
    max_task_retries: int = MAX_TASK_RETRIES,
    calls_at_once: int = 1,
) -> Any:
    """Map a dataset by a fixed pool of actors.

    batch_size: rows for each call; None: block by block, as they come.

    max_task_retries: how often a batch is tried again whose actor died, before the run stops; -1:
        for ever, since the stage itself sees to an end, as ``Guard`` does.
    calls_at_once: more than 1: an actor is called in so many threads.
    """
    import ray

    pool: dict[str, Any] = {"size": num_actors}
    if calls_at_once > 1:
        pool |= {
            "max_concurrent_calls_per_actor": calls_at_once,
            "max_tasks_in_flight_per_actor": calls_at_once + 1,  # what waits has no other actor
            "enable_true_multi_threading": True,
        }

    with warnings.catch_warnings():
        # Ray means to take max_task_retries away, and has nothing in its place yet.
        warnings.simplefilter("ignore", DeprecationWarning)
        return dataset.map_batches(
            cls,
            fn_constructor_args=args,
            batch_size=batch_size,
            batch_format=batch_format,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            compute=ray.data.ActorPoolStrategy(**pool),
            max_task_retries=max_task_retries,
        )
