"""The slices of a large job: cut its items, plan them, and read their plans."""

import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

import numpy as np
import pyarrow as pa
from rich.console import Console

from jobs.plan.open_job import JobContext
from jobs.plan.plan_file import check_access, folder_of_plan, read_plan
from jobs.plan.probe import probe_slices
from pipeline.manifest.existing import is_matchable
from pipeline.plan.plan_file import plan_files
from pipeline.plan.slices import (
    Slice,
    SlicedItems,
    SliceSettings,
    bounds_of,
    cut_items,
    has_videos,
    in_slices,
)
from pipeline.storage.parquet import read_parquet, write_parquet
from pipeline.storage.storage import join
from schemas.errors import JobFileError, StorageError
from schemas.tables.manifest import MediaItem

_NUM_TRIED = 256


def cut_large(
    context: JobContext, items: Sequence[MediaItem], *, dry_run: bool = False
) -> list[list[MediaItem]] | None:
    """Cut the items of a large job into slices; None: they are few, and planned at once.

    An interrupted run keeps its slices, also if ``only_new`` has fewer items by then. All items are
    planned at once too where the whole plan is needed: where the listing does not tell which media
    are new, with a limit to their number, and for conversations with vLLM, whose media may be
    larger than the job's limits. dry_run: nothing is written, and all are planned at once.

    Raises:
        StorageError: the storage refused or failed.
    """
    written = plan_files(context.run.folder(context.job.output), context.storage)
    if dry_run:
        _check_whole(context, "run `reelscribe plan` without --dry-run to complete it")
    if dry_run or any(uri.endswith("/part-0.parquet") for uri in written):
        return None
    try:
        return in_slices(items, read_parquet(_bounds_uri(context), context.storage))
    except FileNotFoundError:
        slices = cut_items(items)
        if len(slices) <= 1 or (context.run.starts and not written) or _needs_all(context, items):
            return None
        write_parquet(bounds_of(slices), _bounds_uri(context), context.storage)
        return slices


def _needs_all(context: JobContext, items: Sequence[MediaItem]) -> bool:
    """Whether units can be annotated only when all items are planned."""
    given = context.job.input
    if given.only_new and (given.limit is not None or not all(map(is_matchable, items))):
        return True
    is_vllm = context.job.model.engine == "vllm"
    return is_vllm and any(item.messages is not None for item in items)


def slices_with_plan(context: JobContext) -> set[int]:
    """The numbers of the slices whose plans are written.

    Raises:
        StorageError: the storage refused or failed.
    """
    uris = plan_files(context.run.folder(context.job.output), context.storage)
    found = [re.search(r"/slice-(\d+)\.parquet$", uri) for uri in uris]
    return {int(match[1]) for match in found if match}


def check_planned(context: JobContext) -> None:
    """Check that an interrupted run is planned to its end, and has begun, if it has slices.

    Raises:
        JobFileError: it is not.
        StorageError: the storage refused or failed.
    """
    if context.run.status != "complete":  # of one that is, the plan may be gone
        then = "run `reelscribe annotate` with the same job, then retry what failed"
        _check_whole(context, then, has_begun=context.run.starts > 0)


def _check_whole(context: JobContext, then: str, *, has_begun: bool = True) -> None:
    uris = plan_files(context.run.folder(context.job.output), context.storage)
    if any(uri.endswith("/part-0.parquet") for uri in uris):
        return
    with suppress(FileNotFoundError):
        num_slices = read_parquet(_bounds_uri(context), context.storage).num_rows
        if len(slices_with_plan(context)) < num_slices or not has_begun:
            raise JobFileError(f"{context.run.run_id} is not planned to its end: {then}")


def check_some_access(
    plans: Iterable[pa.Table],
    slices: Sequence[Slice],
    probe: Callable[[list[MediaItem]], pa.Table],
) -> None:
    """Check that some media can be read, by the plans that there are, else by some of all items.

    Raises:
        StorageError: none of them.
    """
    for plan in plans:
        with suppress(StorageError):
            return check_access(plan)
    items = [item for some in slices for item in some.items]
    check_access(probe(items[:: max(1, len(items) // _NUM_TRIED)]))


def _bounds_uri(context: JobContext) -> str:
    return join(context.run.folder(context.job.output), "slices.parquet")


def slices_to_plan(
    context: JobContext,
    slices: Sequence[Sequence[MediaItem]],
    rows: Mapping[int, pa.Table | None],
    max_batch_tokens: int = 0,
) -> SlicedItems:
    """Some slices of a job, in the order in which they will be planned.

    slices: all, of ``cut_large``. rows: committed rows by the number of the slice, None: without.
    max_batch_tokens: of the engine for which blocks are cut.
    """
    counts = np.array([len(slices[number]) for number in rows], np.int64)
    later = (counts.sum() - np.cumsum(counts)).tolist()
    settings = SliceSettings(
        folder=folder_of_plan(context),
        run_id=context.run.run_id,
        max_model_len=context.checkpoint.max_model_len,
        max_batch_tokens=max_batch_tokens,
        attempt=uuid.uuid4().hex,
    )
    found = [
        Slice(
            number=number,
            items=tuple(slices[number]),
            num_items_later=num_items_later,
            rows=None if some is None else some.select(["unit_id", "run_id", "error"]),
            is_begun=context.run.starts > 0,
        )
        for (number, some), num_items_later in zip(rows.items(), later, strict=True)
    ]
    items = [item for number in rows for item in slices[number]]
    return SlicedItems(slices=found, settings=settings, has_videos=has_videos(items))


def plan_slices(
    context: JobContext, slices: Sequence[Sequence[MediaItem]], console: Console
) -> pa.Table:
    """Plan all slices of a job, and read their plan: UNIT rows.

    slices: of ``cut_large``.

    Raises:
        UserError: the storage or cluster failed, or none of the media can be read.
    """
    probe_slices(
        slices_to_plan(context, slices, dict.fromkeys(range(len(slices)))), context, console
    )
    plan = read_plan(context, ())
    if not context.num_known:
        check_access(plan)
    return plan
