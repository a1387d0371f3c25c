"""Cut the items of a large job into slices: one is planned while units of others are annotated."""

import bisect
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.table import ids_in
from pipeline.plan.plan_file import (
    attempt_of,
    check_distinct,
    failed_media,
    in_order,
    media_without_storage,
    read_plan_file,
    slice_plan,
    with_fresh,
    without_media,
    write_plan_file,
)
from pipeline.plan.shards import with_shards
from pipeline.storage.storage import Storage
from schemas.errors import StorageError
from schemas.shown import redact_uri
from schemas.tables.manifest import MediaItem, guess_media_type
from schemas.tables.unit import UNIT

SLICE_ITEMS = 4096
"""The most images of a slice, as many as a shard has; their units take a few MB of memory."""
_ITEMS_OF_VIDEO = 4
"""A video counts as this many images: it may have hundreds of units."""
_FIRST_ITEMS = 64
"""The first slices are small, each twice as large as the one before: engines start early."""

OUTAGE_ITEMS = 32
"""When this many items of one call all fail because of the storage, it is an outage."""


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Some items that are planned together.

    items: neighbours by uri; all spans of a medium are in one slice.
    num_items_later: number of items of the slices that are planned after this one.
    rows: ``unit_id``, ``run_id`` and ``error`` of committed rows; None: there are none.
    is_begun: units of it may have been annotated by the run before.
    """

    number: int
    items: tuple[MediaItem, ...]
    num_items_later: int
    rows: pa.Table | None = field(default=None, repr=False)
    is_begun: bool = False


@dataclass(frozen=True, kw_only=True)
class SliceSettings:
    """What all slices of a run are planned with.

    folder: of the plan. max_batch_tokens: of the engine. attempt: a name of its own for each start,
    which the files have that it writes.
    """

    folder: str
    run_id: str
    max_model_len: int
    max_batch_tokens: int
    attempt: str


@dataclass(frozen=True, kw_only=True)
class SlicedItems:
    """The slices of a run that have units to do, in the order in which they are planned.

    has_videos: whether some items are videos, or may be.
    """

    slices: list[Slice]
    settings: SliceSettings
    has_videos: bool = True


def cut_items(items: Sequence[MediaItem]) -> list[list[MediaItem]]:
    """Cut items into slices, in the order in which they are planned; a few items are one slice.

    The order is random, always the same for the same items: what is planned first tells about the
    rest. The first slices are small.
    """
    ordered = sorted(items, key=_place)
    weight = sum(map(_weight, ordered))
    number = -(-weight // SLICE_ITEMS)
    if number <= 1:
        return [ordered] if ordered else []
    slices = _cut(ordered, lambda k: -(-weight // number))
    random.Random(0).shuffle(slices)
    return _cut(slices[0], lambda k: _FIRST_ITEMS << k) + slices[1:]


def _cut(items: Sequence[MediaItem], size_of: Callable[[int], int]) -> list[list[MediaItem]]:
    """Cut items where the k-th slice has the weight ``size_of(k)``; media stay whole."""
    slices: list[list[MediaItem]] = []
    weight = 0
    for k, item in enumerate(items):
        is_full = not slices or weight >= size_of(len(slices) - 1)
        if is_full and (k == 0 or item.media_id != items[k - 1].media_id):
            slices.append([])
            weight = 0
        slices[-1].append(item)
        weight += _weight(item)
    return slices


def bounds_of(slices: Sequence[Sequence[MediaItem]]) -> pa.Table:
    """Where each slice begins: ``place`` and ``media_id`` of its first item, without secrets."""
    first = [_place(items[0]) for items in slices]
    return pa.table(
        {"place": [place for place, _ in first], "media_id": [name for _, name in first]}
    )


def in_slices(items: Iterable[MediaItem], bounds: pa.Table) -> list[list[MediaItem]]:
    """Put items into the slices of an earlier cut; some may get none. bounds: of ``bounds_of``."""
    first = list(zip(*(bounds[name].to_pylist() for name in ("place", "media_id")), strict=True))
    numbers = sorted(range(len(first)), key=first.__getitem__)
    begins = [first[number] for number in numbers]
    slices: list[list[MediaItem]] = [[] for _ in first]
    for item in sorted(items, key=_place):
        slices[numbers[max(0, bisect.bisect_right(begins, _place(item)) - 1)]].append(item)
    return slices


def _place(item: MediaItem) -> tuple[str, str]:
    """By what items are in order."""
    return redact_uri(item.uri), item.media_id


def _weight(item: MediaItem) -> int:
    kind = item.media_type or guess_media_type(item.uri)
    return _ITEMS_OF_VIDEO if kind == "video" else 1


def plan_items(
    items: Slice,
    settings: SliceSettings,
    storage: Storage,
    probe: Callable[[list[MediaItem]], pa.Table],
) -> pa.Table:
    """Plan a slice, or read its plan, and write it if it has changed.

    probe: makes UNIT rows of items.

    Called again in one start, as Ray repeats a task, it returns the same.

    Returns UNIT rows, highest predicted cost first.

    Raises:
        ManifestError: two units are the same.
        StorageError: the storage refused or failed, that of the media too.
    """
    uri = slice_plan(settings.folder, items.number)
    try:
        plan = read_plan_file(uri, storage, items.items)
    except FileNotFoundError:
        units = _read_by(probe, items.items) if items.items else UNIT.empty_table()
        units = with_shards(units, items.number)
    else:
        again = media_to_plan_again(plan, items)
        if not again or attempt_of(uri, storage) == settings.attempt:
            return plan
        fresh = _read_by(probe, [item for item in items.items if item.media_id in again])
        if items.is_begun:
            units = with_fresh(plan, fresh)
        else:
            units = pa.concat_tables([without_media(plan, again), fresh])
            units = with_shards(units, items.number)
    units = in_order(units)
    check_distinct(units)
    write_plan_file(units, uri, storage, settings.attempt)
    return units


def _read_by(probe: Callable[[list[MediaItem]], pa.Table], items: Sequence[MediaItem]) -> pa.Table:
    """Probe items. Many of which none is reached are an outage: they would become error rows."""
    units = probe(list(items))
    if len(items) >= OUTAGE_ITEMS and media_without_storage(units) >= set(
        ids_in(units, "media_id")
    ):
        raise StorageError(
            f"the storage of the media fails, {len(items)} times in a row, the last time with: "
            f"{units['error'][-1].as_py()['message']}. Run the same command again when the storage "
            "answers"
        )
    return units


def media_to_plan_again(plan: pa.Table, items: Slice) -> set[str]:
    """Ids of the slice's items that the next start plans again.

    Those that could not be read, until the run has begun; then only those whose storage failed.
    """
    again = media_without_storage(plan) if items.is_begun else failed_media(plan)
    return again & {item.media_id for item in items.items}


def has_videos(items: Iterable[MediaItem]) -> bool:
    """Whether some items are videos, or may be: a conversation, or an unknown kind."""
    return any((item.media_type or guess_media_type(item.uri)) != "image" for item in items)


def rows_by_slice(
    rows: pa.Table, media: "pa.Array[Any]", sizes: Sequence[int]
) -> dict[int, pa.Table]:
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
