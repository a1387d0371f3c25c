"""What ``annotate`` and ``retry`` share: hold the run's lease, annotate units, finish."""

import dataclasses
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.text import Text

from jobs.cluster.blocks import in_blocks, limit_pools
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
from pipeline.media.torchcodec import torchcodec_problem
from pipeline.stages.generate import Generate
from pipeline.stages.graph import Pools, build_annotate
from pipeline.stages.here import SmallChain
from pipeline.workers.engine_process import EngineProcess
from schemas.errors import ModelError, ResourceError
from schemas.job.job import Job
from schemas.tables.unit import UnitStatus

_MIN_FILES_PER_RUN = 16
"""Number of files of a small run, so that its progress is visible."""


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
    _check_decoder(context.job)
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
    run = dataclasses.replace(
        context.run,
        status="running",
        starts=context.run.starts + 1,
        finished_at=None,
        num_units=0,
        num_output_tokens=0,
        left_out=list(context.left_out),
    )
    run.save(job, context.storage)
    place = (job.output, run.key, context.storage)
    with Sealing(*place, units, earlier, driver.lease.confirm) as sealing:
        if units.num_rows:
            run = _annotate_units(driver, run, plan.num_rows, units, sealing)
    driver.lease.check()  # a driver that has lost the run must not settle its rows
    return finish(context, run, plan, time.monotonic() - driver.started, driver.console)


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
    """Run the chain of stages; returns the run with its measured costs."""
    job, storage, started = driver.context.job, driver.context.storage, time.monotonic()
    work = Work(units, run.cost, planned_prefix(job.model))
    max_tokens = batch_tokens(job, driver.context.checkpoint.memory)
    key = dataclasses.replace(run.key, started_at=datetime.now(UTC))
    blocks = in_blocks(units, work.costs, pools, max_tokens, Generate.calls_at_once(job))
    pools = limit_pools(pools, len(blocks))
    chain = (blocks, job, key, storage, pools, units_per_file)
    with (
        _committed(driver, run, chain) as tables,
        RunLog(run.folder(job.output), run.run_id, run.starts, storage) as log,
    ):
        log.write("annotating", units=units.num_rows, ray=run.ray, **dataclasses.asdict(pools))
        metrics = Metrics(job.name) if run.ray else None
        watch = Watch(metrics, pools, log, units.num_rows)
        run = dataclasses.replace(
            run,
            cost=_follow(_and_seal(tables, sealing, log), work, watch, driver),
            num_units=watch.num_units,
            num_output_tokens=watch.num_output_tokens,
            machines=machines(),
            actors={"decoders": pools.decoders, "engines": pools.replicas},
            engine_versions=sorted(watch.engines),
        )
        log.count()
        log.write("annotated", seconds=round(time.monotonic() - started, 3))
    return run


@contextmanager
def _committed(driver: Driver, run: Run, chain: Any) -> Iterator[Iterator[pa.Table]]:
    """Start the chain, in this process or on Ray; yields its COMMITTED tables."""
    if run.ray is None:
        assert driver.engine is not None
        try:
            with SmallChain(driver.engine).annotate(*chain) as tables:
                yield tables
        finally:
            driver.engine.close()  # its memory is free for what follows
    else:
        with build_annotate(*chain) as dataset:
            yield tables_of(dataset)


def _and_seal(tables: Iterator[pa.Table], sealing: Sealing, log: RunLog) -> Iterator[pa.Table]:
    """Pass on COMMITTED tables, and seal the shards that are complete with them."""
    for rows in tables:
        yield rows
        for shard in sealing.committed(rows):
            log.write("shard_complete", shard=shard)


def _follow(tables: Iterator[Any], work: Work, watch: Watch, driver: Driver) -> Rates | None:
    """Consume the chain and show the progress of committed units; returns the measured costs."""
    progress = Progress(
        driver.console, "annotating", total_units=work.num_units, total_cost=work.total_cost
    )
    with progress:
        progress.status("starting decoders and engines")
        for rows in tables:
            driver.lease.check()
            watch.committed(rows, progress.seconds_left())
            progress.advance(
                units=rows.num_rows,
                cost=work.count_done(rows),
                failed=pc.sum(pc.equal(rows["status"], pa.scalar(UnitStatus.FAILED.value))).as_py(),
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


def _check_decoder(job: Job) -> None:
    """Check that torchcodec loads if the job requires it.

    Raises:
        ResourceError: torchcodec does not load on this machine.
    """
    if job.sampling.decoder == "torchcodec" and (problem := torchcodec_problem()):
        raise ResourceError(
            f"sampling.decoder is torchcodec, which does not load on this machine: {problem}; "
            "install FFmpeg's libraries (apt-get install ffmpeg), or set it to auto or pyav"
        )
