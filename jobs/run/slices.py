"""Annotate a large job: one slice of its items is planned while units of others are annotated."""

import dataclasses
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from jobs.cluster.gpus import batch_tokens
from jobs.cluster.session import fitted_pools, ray_session
from jobs.console.progress import Progress
from jobs.cost.estimate import Estimate, check_cost, estimate, money, relative_error
from jobs.cost.rates import Work
from jobs.observe.observer import Watch
from jobs.plan.listing import record_done_media
from jobs.plan.open_job import JobContext
from jobs.plan.plan_file import folder_of_plan, read_plan
from jobs.plan.print_plan import print_plan
from jobs.plan.probe import probe_items, probe_slices
from jobs.plan.runs import Run
from jobs.plan.slices import check_some_access, slices_to_plan, slices_with_plan
from jobs.run.driver import Driver, run_chain, started
from jobs.run.finish import finish
from jobs.run.sealing import Sealing
from pipeline.engines.vllm.prefix import planned_prefix
from pipeline.output.seal import settle
from pipeline.output.table import COUNTED, ids_in, read_committed
from pipeline.plan.plan_file import read_plan_file, slice_plan
from pipeline.plan.shards import SHARDS_PER_SLICE
from pipeline.plan.slices import Slice, media_to_plan_again, plan_items, rows_by_slice
from pipeline.plan.to_do import units_to_do
from pipeline.storage.parquet import read_parquet
from schemas.errors import CostError, ResourceError
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import UNIT


def annotate_slices(driver: Driver, slices: Sequence[Sequence[MediaItem]]) -> Run:
    """Plan the slices, commit one row for each unit, and finish the run.

    slices: of the job's items, as ``cut_large`` returns them.

    Raises:
        UserError: the predicted cost is over the job's limit, no media can be read, or the cluster
            or storage failed.
    """
    context, job, console = driver.context, driver.context.job, driver.console
    planned = _Planned(context, slices, console)
    planned.check_ahead()
    if driver.engine is not None:
        driver.engine.close()  # its memory is for Ray's actors
    run = dataclasses.replace(started(context), ray=driver.why_ray or "it is planned in slices")
    work = Work(UNIT.empty_table(), run.cost, planned_prefix(job.model))
    place = (job.output, run.key, context.storage)
    with Sealing.of_later_units(*place, driver.lease.confirm) as sealing:

        def learn(found: Iterable[tuple[pa.Table, pa.Table]]) -> None:
            for units, earlier in found:
                sealing.add(units, earlier)
                work.add(units, planned.share_known)

        def learn_by(rows: pa.Table, progress: Progress, watch: Watch) -> None:
            learn(planned.seen_in(rows))
            is_about = planned.share_known < 1
            progress.expect(units=work.num_units, cost=work.total_cost, is_about=is_about)
            watch.expect(work.num_units)

        learn(planned.known())
        if planned.source.slices:
            with ray_session(console), fitted_pools(job) as pools:
                others = (pools.with_planners(), job.resources.units_per_file)
                chain = (planned.source, job, run.key, context.storage, *others)
                run = run_chain(driver, run, chain, work, sealing, learn_by)
    driver.lease.check()  # a driver that has lost the run must not settle its rows
    plan = planned.whole()
    return finish(context, run, plan, time.monotonic() - driver.started, console)


class _Planned:
    """What is known of the slices of a run: by their plans, and by units that come back committed.

    source: the slices that have units to do, or may have.
    """

    def __init__(
        self, context: JobContext, slices: Sequence[Sequence[MediaItem]], console: Console
    ) -> None:
        self._context, self._console = context, console
        self._folder = folder_of_plan(context)
        job, run = context.job, context.run
        self._with_plan = slices_with_plan(context)
        media = self._media(slices)
        self._sizes = [len(names) for names in media]
        names = pa.array([name for some in media for name in some], pa.string())

        def read() -> pa.Table:
            return read_committed(job.output, run.recipe_ids, context.storage, COUNTED, names)

        rows = settle(read, job.output, context.storage)
        self._rows = rows_by_slice(rows, names, self._sizes)
        self._plan_covered(slices)
        with ThreadPoolExecutor(16) as pool:
            is_done = list(pool.map(self._is_done, range(len(slices))))
        left = [number for number in range(len(slices)) if not is_done[number]]
        if len(left) < len(slices):
            console.print(f"{len(slices) - len(left):,} of {len(slices):,} slices are done already")
        rows_left = {number: self._rows.get(number) for number in left}
        max_tokens = batch_tokens(job, context.checkpoint.memory)
        self.source = slices_to_plan(context, slices, rows_left, max_tokens)
        self._unseen = set(left)
        self._num_media = sum(self._sizes[number] for number in left)
        self._seconds = 0.0

    @property
    def share_known(self) -> float:
        """The share of the media whose units are known."""
        unseen = sum(self._sizes[number] for number in self._unseen)
        return 1 - unseen / max(1, self._num_media)

    def check_ahead(self) -> None:
        """Check that media can be read, and what the run will cost: by its plan, or a sample of it.

        Raises:
            CostError: it may cost more than the job's limit.
            StorageError: no media can be read.
        """
        context, job, numbers = self._context, self._context.job, sorted(self._with_plan)
        slices = self.source.slices
        unplanned = [items for items in slices if items.number not in self._with_plan]
        if unplanned:
            plan_items(unplanned[0], self.source.settings, context.storage, self._probe)
            numbers.insert(0, unplanned[0].number)
        # With rows or `only_new`, what is left may be what was never readable.
        if not (context.num_known or context.run.starts or self._rows):
            check_some_access(map(self._read, numbers), slices, self._probe)
        has_price = context.run.cost or job.cost.per_hour or job.limits.max_cost is not None
        if unplanned:
            units, _ = self._to_do(numbers[0], self._read(numbers[0]))
            print_plan(units, context, self._console, num_media=self._num_media)
            if has_price:
                error = relative_error(units, job, context.run.cost)
                factor = self._num_media / max(1, self._sizes[numbers[0]])
                self._check_sum(self._estimate(units), factor, error)
        elif has_price and slices:
            estimates = [self._estimate(self._to_do_of(items)) for items in slices]
            total = sum(found.seconds for found in estimates)
            self._check_sum(dataclasses.replace(estimates[0], seconds=total))

    def _check_sum(self, predicted: Estimate, factor: float = 1.0, error: float = 0.0) -> None:
        """Print a prediction times ``factor``, and check it with twice its relative error."""
        job = self._context.job
        predicted = dataclasses.replace(predicted, seconds=predicted.seconds * factor)
        about = "by them: about " if factor > 1 else ""
        self._console.print(f"predicted {about}{money(predicted, job)}", markup=False)
        check_cost(dataclasses.replace(predicted, seconds=predicted.seconds * (1 + 2 * error)), job)

    def _to_do_of(self, items: Slice) -> pa.Table:
        return self._to_do(items.number, self._read(items.number))[0]

    def known(self) -> Iterator[tuple[pa.Table, pa.Table]]:
        """As ``seen_in``, of the slices whose plans stay as they are."""
        for items in self.source.slices:
            if items.number in self._with_plan:
                plan = self._read(items.number)
                if not media_to_plan_again(plan, items):
                    yield self._seen(items.number, plan)

    def seen_in(self, rows: pa.Table) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Read the plans of slices whose first units were committed.

        rows: COMMITTED. Yields for each slice its UNIT rows to do, and ``unit_id`` and ``file`` of
        earlier rows of these.

        Raises:
            CostError: what is planned costs more than the job's limit.
            StorageError: the storage refused or failed.
        """
        for number in np.unique(rows["shard"].to_numpy() // SHARDS_PER_SLICE).tolist():
            if number in self._unseen:
                yield self._seen(number, self._read(number))

    def whole(self) -> pa.Table:
        """Read the plan of all slices, and record media of which earlier runs wrote all rows.

        Raises:
            ResourceError: a slice is not planned.
            StorageError: the storage refused or failed.
        """
        context = self._context
        if missing := len(self._sizes) - len(slices_with_plan(context)):
            raise ResourceError(
                f"{context.run.run_id}: {missing} slices are not planned yet; run the same command "
                "again"
            )
        plan = read_plan(context, ())
        if self._rows:
            rows = pa.concat_tables(self._rows.values())
            units = units_to_do(plan, rows, context.run.run_id)
            record_done_media(plan, rows, units, context, self._console)
        return plan

    def _seen(self, number: int, plan: pa.Table) -> tuple[pa.Table, pa.Table]:
        self._unseen.discard(number)
        units, earlier = self._to_do(number, plan)
        self._check_cost(units)
        return units, earlier

    def _media(self, slices: Sequence[Sequence[MediaItem]]) -> list[set[str]]:
        """The ids of the media of each slice, also of those that ``only_new`` does not list now."""

        def planned(number: int) -> list[str]:
            if number not in self._with_plan:
                return []
            uri = slice_plan(self._folder, number)
            return ids_in(read_parquet(uri, self._context.storage, ["media_id"]), "media_id")

        with ThreadPoolExecutor(16) as pool:
            of_plans = pool.map(planned, range(len(slices)))
            return [
                {item.media_id for item in items}.union(names)
                for items, names in zip(slices, of_plans, strict=True)
            ]

    def _plan_covered(self, slices: Sequence[Sequence[MediaItem]]) -> None:
        """Plan slices of whose media all have rows, of earlier runs, before engines start.

        They seldom have units to do, and engines would wait for the next ones.
        """
        covered = [
            number
            for number, rows in self._rows.items()
            if number not in self._with_plan
            and pc.count_distinct(rows["media_id"]).as_py() == self._sizes[number]
        ]
        if covered:
            source = slices_to_plan(self._context, slices, dict.fromkeys(covered))
            probe_slices(source, self._context, self._console)
            self._with_plan |= set(covered)

    def _is_done(self, number: int) -> bool:
        """Whether all units of a slice have their rows, by its plan."""
        if number not in self._with_plan:
            return False
        plan = self._read(number)
        return not plan.num_rows or not self._to_do(number, plan)[0].num_rows

    def _read(self, number: int) -> pa.Table:
        return read_plan_file(slice_plan(self._folder, number), self._context.storage, ())

    def _to_do(self, number: int, plan: pa.Table) -> tuple[pa.Table, pa.Table]:
        rows = self._rows.get(number)
        if rows is None:
            return plan, _NOTHING
        units = units_to_do(plan, rows, self._context.run.run_id)
        earlier = rows.select(["unit_id", "file"])
        return units, earlier.filter(pc.is_in(earlier["unit_id"], units["unit_id"]))

    def _probe(self, items: list[MediaItem]) -> pa.Table:
        return probe_items(items, self._context, self._console)

    def _estimate(self, units: pa.Table) -> Estimate:
        job = self._context.job
        return estimate(units, job, self._context.run.cost, planned_prefix(job.model))

    def _check_cost(self, units: pa.Table) -> None:
        job = self._context.job
        if job.limits.max_cost is None:
            return
        predicted = self._estimate(units)
        self._seconds += predicted.seconds
        predicted = dataclasses.replace(predicted, seconds=self._seconds)
        try:
            check_cost(predicted, job)
        except CostError:
            raise CostError(
                f"the units that are planned by now cost {money(predicted, job)}, over "
                f"limits.max_cost {job.limits.max_cost:g}: the run stops here, and keeps what it "
                "has; with a higher --max-cost the same command goes on"
            ) from None


_NOTHING = pa.table({"unit_id": pa.array([], pa.string()), "file": pa.array([], pa.string())})
