"""Annotate a large job: one slice of its items is planned while units of others are annotated."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.text import Text

from jobs.cluster.gpus import batch_tokens
from jobs.cluster.session import fitted_pools, ray_session
from jobs.console.progress import Progress
from jobs.cost.estimate import Estimate, check_cost, estimate, money
from jobs.cost.rates import Work
from jobs.observe.observer import Watch
from jobs.plan.listing import record_done_media
from jobs.plan.open_job import JobContext
from jobs.plan.plan_file import check_access, folder_of_plan, read_plan
from jobs.plan.print_plan import print_plan
from jobs.plan.probe import probe_items
from jobs.plan.runs import Run
from jobs.plan.slices import slices_to_plan
from jobs.run.driver import Driver, run_chain, started
from jobs.run.finish import finish
from jobs.run.sealing import Sealing
from pipeline.engines.vllm.prefix import planned_prefix
from pipeline.output.seal import settle
from pipeline.output.table import COUNTED, ids_in, read_committed
from pipeline.plan.plan_file import read_plan_file, slice_plan
from pipeline.plan.shards import SHARDS_PER_SLICE
from pipeline.plan.slices import SLICE_ITEMS, plan_items
from pipeline.plan.to_do import units_to_do
from pipeline.storage.parquet import read_parquet
from schemas.errors import CostError, StorageError
from schemas.tables.manifest import MediaItem
from schemas.tables.unit import UNIT


def annotate_slices(driver: Driver, slices: Sequence[Sequence[MediaItem]]) -> Run:
    """Plan the slices, commit one row for each unit, and finish the run.

    slices: of the job's items, as ``cut_items`` returns them.

    Raises:
        UserError: the predicted cost is over the job's limit, or the cluster or storage failed.
    """
    context, job, console = driver.context, driver.context.job, driver.console
    planned = _Planned(context, slices, console)
    if planned.source.slices:
        planned.check_sample()
        run = dataclasses.replace(started(context), ray=driver.why_ray)
        with (
            Sealing.of_later_units(
                job.output, run.key, context.storage, driver.lease.confirm
            ) as sealing,
            ray_session(console),
            fitted_pools(job) as pools,
        ):
            work = Work(UNIT.empty_table(), run.cost, planned_prefix(job.model))
            source = planned.source
            chain = (source, job, run.key, context.storage, pools, job.resources.units_per_file)

            def learn(rows: pa.Table, progress: Progress, watch: Watch) -> None:
                for units, earlier in planned.seen_in(rows):
                    sealing.add(units, earlier)
                    work.add(units, planned.share_known)
                    watch.more(units.num_rows)
                is_about = planned.share_known < 1
                progress.expect(units=work.num_units, cost=work.total_cost, is_about=is_about)

            run = run_chain(driver, run, chain, work, sealing, learn)
    else:
        run = started(context)
    driver.lease.check()  # a driver that has lost the run must not settle its rows
    plan = read_plan(context, ())
    return finish(context, run, plan, time.monotonic() - driver.started, console)


class _Planned:
    """What is known of the slices of a run, by the units that come back committed."""

    def __init__(
        self, context: JobContext, slices: Sequence[Sequence[MediaItem]], console: Console
    ) -> None:
        self._context, self._console = context, console
        self._folder = folder_of_plan(context)
        self._recorded: set[int] = set()
        job, run = context.job, context.run
        of_slices = self._media(slices)
        media = pa.array([name for names in of_slices for name in names], pa.string())

        def read() -> pa.Table:
            return read_committed(job.output, run.recipe_ids, context.storage, COUNTED, media)

        rows = settle(read, job.output, context.storage)
        sizes = [len(names) for names in of_slices]
        self._rows = _by_slice(rows, media, sizes)
        left = [number for number in range(len(slices)) if not self._is_done(number)]
        if len(left) < len(slices):
            console.print(f"{len(slices) - len(left):,} of {len(slices):,} slices are done already")
        rows_left = {number: self._rows.get(number) for number in left}
        max_tokens = batch_tokens(job, context.checkpoint.memory)
        self.source = slices_to_plan(context, slices, rows_left, max_tokens)
        self._unseen = {number: len(slices[number]) for number in left}
        self._num_items = self._num_unseen = sum(self._unseen.values())
        self._is_readable = False
        self._seconds = 0.0

    @property
    def share_known(self) -> float:
        """The share of the items whose units are known, about."""
        return 1 - self._num_unseen / max(1, self._num_items)

    def check_sample(self) -> None:
        """Plan the first slice, and check what all will cost by it.

        Raises:
            CostError: it may cost more than the job's limit.
        """
        context, job, first = self._context, self._context.job, self.source.slices[0]
        units = plan_items(
            first,
            self._folder,
            context.storage,
            lambda items: probe_items(items, context, self._console),
        )
        num_first = max(1, len(first.items))
        print_plan(units, context, self._console, num_media=self._num_items)
        self.source = dataclasses.replace(self.source, sample=units)
        if not (context.run.cost or job.cost.per_hour or job.limits.max_cost is not None):
            return
        predicted = self._estimate(units)
        factor = self._num_items / num_first
        about = dataclasses.replace(predicted, seconds=predicted.seconds * factor)
        self._console.print(Text(f"predicted by them: about {money(about, job)}"), soft_wrap=True)
        upper = about.seconds * (1 + 2 * _relative_error(units, context))
        check_cost(dataclasses.replace(about, seconds=upper), job)

    def seen_in(self, rows: pa.Table) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Read the plans of slices whose first units were committed.

        rows: COMMITTED. Yields for each slice its UNIT rows to do, and ``unit_id`` and ``file`` of
        earlier rows of these.

        Raises:
            CostError: what is planned costs more than the job's limit.
            StorageError: the storage refused or failed, or no media can be read.
        """
        for number in np.unique(rows["shard"].to_numpy() // SHARDS_PER_SLICE).tolist():
            if number not in self._unseen:
                continue
            self._num_unseen -= self._unseen.pop(number)
            plan = self._read(number)
            self._check_access(plan)
            units, earlier = self._to_do(number, plan)
            self._check_cost(units)
            yield units, earlier

    def _media(self, slices: Sequence[Sequence[MediaItem]]) -> list[set[str]]:
        """The ids of the media of each slice, also of those that ``only_new`` does not list now."""

        def planned(number: int) -> list[str]:
            with suppress(FileNotFoundError):
                uri = slice_plan(self._folder, number)
                return ids_in(read_parquet(uri, self._context.storage, ["media_id"]), "media_id")
            return []

        found = [{item.media_id for item in items} for items in slices]
        if self._context.run.starts:
            with ThreadPoolExecutor(16) as pool:
                for names, more in zip(found, pool.map(planned, range(len(slices))), strict=True):
                    names.update(more)
        return found

    def _is_done(self, number: int) -> bool:
        """Whether all units of a slice have their rows, by its plan."""
        if number not in self._rows:
            return False
        try:
            plan = self._read(number)
        except FileNotFoundError:
            return False
        return not self._to_do(number, plan)[0].num_rows

    def _read(self, number: int) -> pa.Table:
        return read_plan_file(slice_plan(self._folder, number), self._context.storage, ())

    def _to_do(self, number: int, plan: pa.Table) -> tuple[pa.Table, pa.Table]:
        rows = self._rows.get(number)
        if rows is None:
            return plan, _NOTHING
        units = units_to_do(plan, rows, self._context.run.run_id)
        if number not in self._recorded:
            self._recorded.add(number)
            record_done_media(plan, rows, units, self._context, self._console)
        earlier = rows.select(["unit_id", "file"])
        return units, earlier.filter(pc.is_in(earlier["unit_id"], units["unit_id"]))

    def _estimate(self, units: pa.Table) -> Estimate:
        job = self._context.job
        return estimate(units, job, self._context.run.cost, planned_prefix(job.model))

    def _check_access(self, plan: pa.Table) -> None:
        try:
            check_access(plan)
            self._is_readable = True
        except StorageError:
            is_enough = self._num_items - self._num_unseen >= SLICE_ITEMS
            if not self._is_readable and (is_enough or not self._num_unseen):
                raise

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


def _by_slice(rows: pa.Table, media: "pa.Array[Any]", sizes: Sequence[int]) -> dict[int, pa.Table]:
    """Divide committed rows by slice. media: ids of all. sizes: how many each slice has."""
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    at = pc.index_in(rows["media_id"], value_set=media)
    rows, at = rows.filter(pc.is_valid(at)), at.drop_null()
    of_rows = numbers[at.to_numpy()]
    order: np.ndarray[Any, np.dtype[np.int64]] = np.argsort(of_rows, kind="stable")
    found, begins = np.unique(of_rows[order], return_index=True)
    rows = rows.take(pa.array(order, pa.int64()))
    ends = [*begins.tolist(), rows.num_rows][1:]
    return {
        number: rows.slice(begin, end - begin)
        for number, begin, end in zip(found.tolist(), begins.tolist(), ends, strict=True)
    }


def _relative_error(units: pa.Table, context: JobContext) -> float:
    """The standard error of the mean cost of a medium, over that mean."""
    costs = Work(units, context.run.cost, planned_prefix(context.job.model)).costs
    media = units["media_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    of_media = np.bincount(media, weights=costs)
    mean = of_media.mean()
    return float(of_media.std() / np.sqrt(len(of_media)) / mean) if mean else 0.0
