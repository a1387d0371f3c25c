"""What ``annotate`` and ``retry`` share: hold the run's lease, annotate units, finish."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.text import Text

from jobs.cluster.engine_choice import check_vllm_here
from jobs.cluster.gpus import batch_tokens
from jobs.cluster.machines import machines
from jobs.cluster.session import check_fits, fit_job, fitted_pools, ray_session, tables_of
from jobs.cluster.small import why_ray
from jobs.console.progress import Progress
from jobs.cost.estimate import check_cost, estimate, money
from jobs.cost.rates import Rates, Work
from jobs.observe.log import RunLog
from jobs.observe.observer import Watch
from jobs.observe.prometheus import Metrics
from jobs.plan.open_job import JobContext
from jobs.plan.runs import Run
from jobs.run.finish import finish
from jobs.run.lease import Lease, leased
from jobs.run.sealing import Sealing
from pipeline.engines.vllm.prefix import planned_prefix
from pipeline.media.torchcodec import check_decoder
from pipeline.output.rows import RunKey
from pipeline.output.table import ids_in
from pipeline.plan.slices import SlicedItems
from pipeline.stages.blocks import in_blocks, limit_pools
from pipeline.stages.generate import Generate
from pipeline.stages.graph import build_annotate
from pipeline.stages.here import SmallChain
from pipeline.stages.pools import Pools
from pipeline.storage.storage import Storage
from pipeline.workers.engine_process import EngineProcess
from schemas.errors import ModelError
from schemas.job.job import Job
from schemas.tables.columns import from_one_row
from schemas.tables.unit import UnitStatus

_MIN_FILES_PER_RUN = 16
"""Number of files of a small run, so that its progress is visible."""


Chain = tuple[list[pa.Table] | SlicedItems, Job, RunKey, Storage, Pools, int]
"""The arguments of ``build_annotate``."""


@dataclass(frozen=True, kw_only=True)
class Driver:
    """State of the process that drives a run.

    engine: for a small job. why_ray: None if the items are few. started: ``time.monotonic()``.
    """

    context: JobContext
    lease: Lease
    console: Console
    engine: EngineProcess | None
    why_ray: str | None
    started: float


@contextmanager
def drive(
    context: JobContext, num_items: int, engine: EngineProcess | None, console: Console
) -> Iterator[Driver]:
    """Take the run's lease, start or join Ray unless the job is small, and check that it fits.

    engine: of ``early_engine``.

    Raises:
        ResourceError: another driver has the run, Ray does not start, the actors do not fit, or
            torchcodec does not load.
        StorageError: the storage refused or failed.
    """
    started = time.monotonic()
    check_decoder(context.job.sampling.decoder)
    _check_engine(context)
    folder = context.run.folder(context.job.output)
    with leased(folder, context.storage, console) as lease, ExitStack() as session:
        if reason := why_ray(context.job, num_items, "items"):
            if engine is not None:
                engine.close()
            session.enter_context(ray_session(console))
        check_fits(context.job)
        yield Driver(
            context=context,
            lease=lease,
            console=console,
            engine=engine,
            why_ray=reason,
            started=started,
        )


def annotate_and_finish(driver: Driver, plan: pa.Table, units: pa.Table, earlier: pa.Table) -> Run:
    """Commit one row for each unit, then finish the run.

    plan: all units of the run, UNIT rows. units: those to do. earlier: ``unit_id`` and ``file`` of
        rows that failed, whose units are done again.

    Raises:
        UserError: the predicted cost is over the job's limit, or the cluster or storage failed.
    """
    context, job = driver.context, driver.context.job
    if context.run.cost or job.cost.per_hour or job.limits.max_cost is not None:
        kept = planned_prefix(job.model)
        predicted = estimate(units, job, context.run.cost, kept)
        driver.console.print(Text(f"predicted: {money(predicted, job)}"), soft_wrap=True)
        check_cost(predicted, job)
    run = started(context)
    place = (job.output, run.key, context.storage)
    with Sealing(*place, units, earlier, driver.lease.confirm) as sealing:
        if units.num_rows:
            run = _annotate_units(driver, run, plan.num_rows, units, sealing)
    driver.lease.check()  # a driver that has lost the run must not settle its rows
    return finish(context, run, plan, time.monotonic() - driver.started, driver.console)


def started(context: JobContext) -> Run:
    """The context's run as it starts once more, saved.

    Raises:
        StorageError: the output cannot be written.
    """
    run = dataclasses.replace(
        context.run,
        status="running",
        starts=context.run.starts + 1,
        finished_at=None,
        num_units=0,
        num_output_tokens=0,
        left_out=list(context.left_out),
    )
    run.save(context.job, context.storage)
    return run


def _annotate_units(
    driver: Driver, run: Run, num_planned: int, units: pa.Table, sealing: Sealing
) -> Run:
    """Choose how the chain runs, and run it; returns the run with its measured costs."""
    job = driver.context.job
    reason = driver.why_ray
    if reason is None:
        reason = why_ray(job, units.num_rows, "units", fit_job(job).replicas)
    if reason is None and driver.engine is None:
        reason = "the engine's process was not started: Ray or vLLM was expected"
    run = dataclasses.replace(run, ray=reason)
    units_per_file = min(job.resources.units_per_file, -(-num_planned // _MIN_FILES_PER_RUN))
    if reason is None:
        return _annotate(driver, run, units, fit_job(job), units_per_file, sealing)
    if driver.engine is not None:
        driver.engine.close()  # its memory is for Ray's actors
    # As late as possible: on this a growing cluster adds GPU nodes, which cost money.
    with ray_session(driver.console), fitted_pools(job) as pools:
        return _annotate(driver, run, units, pools, units_per_file, sealing)


def _annotate(
    driver: Driver,
    run: Run,
    units: pa.Table,
    pools: Pools,
    units_per_file: int,
    sealing: Sealing,
) -> Run:
    """Cut the units into blocks, and run the chain; returns the run with its measured costs."""
    job, storage = driver.context.job, driver.context.storage
    work = Work(units, run.cost, planned_prefix(job.model))
    max_tokens = batch_tokens(job, driver.context.checkpoint.memory)
    blocks = in_blocks(units, work.costs, pools, max_tokens, Generate.calls_at_once(job))
    pools = limit_pools(pools, len(blocks))
    chain = (blocks, job, run.key, storage, pools, units_per_file)
    return run_chain(driver, run, chain, work, sealing)


def run_chain(
    driver: Driver,
    run: Run,
    chain: Chain,
    work: Work,
    sealing: Sealing,
    learn: Callable[[pa.Table, Progress, Watch], None] | None = None,
) -> Run:
    """Run the chain of stages; returns the run with its measured costs.

    chain: the arguments of ``build_annotate``. work: what is known of the units to do.
    learn: is called with COMMITTED tables before they are counted, where more units become known.
    """
    job, storage, began = driver.context.job, driver.context.storage, time.monotonic()
    source, _, _, _, pools, units_per_file = chain
    key = dataclasses.replace(run.key, started_at=datetime.now(UTC))
    chain = (source, job, key, storage, pools, units_per_file)
    with (
        _committed(driver, run, chain) as tables,
        RunLog(run.folder(job.output), run.run_id, run.starts, storage) as log,
    ):
        log.write("annotating", units=work.num_units, ray=run.ray, **dataclasses.asdict(pools))
        metrics = Metrics(job.name) if run.ray else None
        watch = Watch(metrics, pools, log, max(work.num_units, _num_items(source)))
        rates = _follow(_and_seal(tables, sealing, log), work, watch, driver, learn)
        run = dataclasses.replace(
            run,
            cost=rates,
            num_units=watch.num_units,
            num_output_tokens=watch.num_output_tokens,
            machines=machines(),
            actors={"decoders": pools.decoders, "engines": pools.replicas},
            engine_versions=sorted(watch.engines),
        )
        log.count()
        log.write("annotated", seconds=round(time.monotonic() - began, 3))
    return run


def _num_items(source: list[pa.Table] | SlicedItems) -> int:
    """The number of items that are not planned yet: each has a unit or more."""
    return sum(len(s.items) for s in source.slices) if isinstance(source, SlicedItems) else 0


@contextmanager
def _committed(driver: Driver, run: Run, chain: Chain) -> Iterator[Iterator[pa.Table]]:
    """Start the chain, in this process or on Ray; yields its COMMITTED tables."""
    if run.ray is None:
        assert driver.engine is not None
        try:
            blocks, job, key, storage, pools, units_per_file = chain
            assert isinstance(blocks, list)
            small = SmallChain(driver.engine)
            with small.annotate(blocks, job, key, storage, pools, units_per_file) as tables:
                yield tables
        finally:
            driver.engine.close()  # its memory is free for what follows
    else:
        with build_annotate(*chain) as dataset:
            yield map(from_one_row, tables_of(dataset))


def _and_seal(tables: Iterator[pa.Table], sealing: Sealing, log: RunLog) -> Iterator[pa.Table]:
    """Pass on COMMITTED tables, and seal the shards that are complete with them."""
    for rows in tables:
        yield rows
        for shard in sealing.committed(rows):
            log.write("shard_complete", shard=shard)


def _follow(
    tables: Iterator[pa.Table],
    work: Work,
    watch: Watch,
    driver: Driver,
    learn: Callable[[pa.Table, Progress, Watch], None] | None,
) -> Rates | None:
    """Consume the chain and show the progress of committed units; returns the measured costs."""
    progress = Progress(
        driver.console, "annotating", total_units=work.num_units, total_cost=work.total_cost
    )
    with progress:
        progress.status("starting decoders and engines")
        for rows in tables:
            driver.lease.check()
            if learn is not None:
                learn(rows, progress, watch)
            watch.committed(rows, progress.seconds_left())
            progress.advance(
                units=rows.num_rows,
                cost=work.count_done(rows),
                failed=ids_in(rows, "status").count(UnitStatus.FAILED.value),
                tokens=pc.sum(rows["num_output_tokens"]).as_py(),
            )
            if work.update_rates():
                progress.recost(done=work.done_cost, total=work.total_cost)
    return work.rates


def _check_engine(context: JobContext) -> None:
    """Check that this machine has the job's engine; a cluster's are checked there.

    Raises:
        ModelError: the engine is vLLM, which is not here.
    """
    try:
        check_vllm_here(context.job)
    except ModelError as error:
        run = context.run
        if not run.starts:
            raise
        raise ModelError(
            f"{run.run_id} has the engine {run.engine}; {error}; another engine answers every "
            "unit again"
        ) from None
