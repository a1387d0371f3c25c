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
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline.engines.largest import largest_media
from pipeline.output.rows import RunKey
from pipeline.stages.block_bytes import calls_within_memory
from pipeline.stages.commit import Commit
from pipeline.stages.generate import Generate
from pipeline.stages.plan import Plan
from pipeline.stages.prepare import Prepare
from pipeline.stages.summarise import Summarise
from pipeline.storage.storage import Storage
from pipeline.workers.code_version import code_digest
from pipeline.workers.engine_guard import DeathsActor, running_deaths
from schemas.job.job import Job
from schemas.tables.manifest import MediaItem

PLAN_BATCH_ITEMS = 64
MAX_BLOCK_BYTES = 1 << 30
"""Ray Data's default of 128 MB would split the output of ``Prepare`` for one block of units."""
RETRY_FOREVER = -1
_REPLICAS_PER_COMMITTER = 16
_FILES_AT_ONCE = 4
"""Of a committer: one is written while the rows of the next are made."""
WRITER = "reelscribe_writer"
"""Ray's name for the resource of nodes with keys to write the output (``ray start --resources``).

Committers run on them; where no node has it, anywhere.
"""
READER = "reelscribe_reader"
"""The same of nodes that can read the media: planners and decoders run there."""


@dataclass(frozen=True, kw_only=True)
class Pools:
    """How many decoder and engine actors a run has, and the resources of each.

    max_decoders: on a cluster that is not whole yet, how many decoders there will be.
    """

    decoders: int
    cpus_per_decoder: float
    replicas: int
    cpus_per_replica: float
    gpus_per_replica: float
    max_decoders: int | None = None

    def decoder_pool(self) -> "Pool":
        """The actors of ``Prepare``."""
        return Pool(
            num_actors=self.decoders,
            max_actors=self.max_decoders,
            num_cpus=self.cpus_per_decoder,
            resource=_on_nodes(READER),
        )

    def engine_pool(self, calls_at_once: int = 1) -> "Pool":
        """The actors that hold the model; ``Guard`` limits their retries, not Ray."""
        return Pool(
            num_actors=self.replicas,
            num_cpus=self.cpus_per_replica,
            num_gpus=self.gpus_per_replica,
            max_task_retries=RETRY_FOREVER,
            calls_at_once=calls_at_once,
        )

    def committer_pool(self) -> "Pool":
        """The actors of ``Commit``: one writes about 800 rows with five answers a second."""
        return Pool(
            num_actors=1 + self.replicas // _REPLICAS_PER_COMMITTER,
            num_cpus=0,
            resource=_on_nodes(WRITER),
            calls_at_once=_FILES_AT_ONCE,
        )


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The actors of one stage, and the resources of each.

    num_actors: whose nodes are not there yet, they are used as soon as they are.
    max_actors: as many may Ray Data start while all are busy; None: not more.
    resource: name of a resource of Ray that an actor's node must have.
    max_task_retries: how often a batch is repeated after its actor died; then the run stops.
    calls_at_once: batches that an actor works on at a time, each in a thread.
    """

    num_actors: int
    num_cpus: float
    num_gpus: float = 0.0
    resource: str | None = None
    max_task_retries: int = 3
    calls_at_once: int = 1
    max_actors: int | None = None


def _on_nodes(resource: str) -> str | None:
    """The resource, if a node has it."""
    import ray

    return resource if resource in ray.cluster_resources() else None


def build_plan(
    items: Sequence[MediaItem], job: Job, max_model_len: int, storage: Storage, num_actors: int
) -> Any:
    """The chain of the plan, a lazy Ray Dataset of UNIT rows."""
    import ray

    blocks = max(num_actors, -(-len(items) // PLAN_BATCH_ITEMS))
    rows = ray.data.from_items([{"item": item} for item in items], override_num_blocks=blocks)
    args = (job, max_model_len, storage, code_digest())
    pool = Pool(num_actors=num_actors, num_cpus=1, resource=_on_nodes(READER))
    return stage(rows, Plan, args, pool, batch_size=PLAN_BATCH_ITEMS, batch_format="numpy")


@contextmanager
def build_annotate(
    blocks: list[pa.Table],
    job: Job,
    key: RunKey,
    storage: Storage,
    pools: Pools,
    units_per_file: int,
) -> Iterator[Any]:
    """The chain of a run: yields a lazy Ray Dataset of COMMITTED rows.

    blocks: UNIT rows, longest first, in blocks of about equal cost. A block stays whole until
        the engine, which splits it into batches by tokens.
    """
    import ray

    code = code_digest()
    engines = pools.engine_pool(calls_within_memory(Generate.calls_at_once(job), blocks))
    ray.data.DataContext.get_current().target_max_block_size = MAX_BLOCK_BYTES
    units = ray.data.from_blocks(blocks)  # from_arrow would start workers only to count rows
    prepared = stage(units, Prepare, (job, storage, code), pools.decoder_pool())
    committers = pools.committer_pool()
    with running_deaths() as deaths:
        args = (job, DeathsActor(deaths), code, engines.num_cpus, largest_media(blocks))
        answered = stage(prepared, Generate, args, engines)
        yield stage(
            answered, Commit, (job, key, storage, code), committers, batch_size=units_per_file
        )


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
