"""Cut the items of a large job into slices: one is planned while units of others are annotated."""

import bisect
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

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
from pipeline.plan.shards import SHARDS_PER_SLICE, with_shards
from pipeline.storage.storage import Storage
from schemas.shown import redact_uri
from schemas.tables.manifest import MediaItem, guess_media_type
from schemas.tables.unit import UNIT

SLICE_ITEMS = 4096
"""The most images of a slice, as many as a shard has; their units take a few MB of memory."""
_ITEMS_OF_VIDEO = 4
"""A video counts as this many images: it may have hundreds of units."""
_FIRST_ITEMS = 64
"""The first slices are small, each twice as large as the one before: engines start early."""


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
        StorageError: the storage refused or failed.
    """
    uri = slice_plan(settings.folder, items.number)
    try:
        plan = read_plan_file(uri, storage, items.items)
    except FileNotFoundError:
        units = probe(list(items.items)) if items.items else UNIT.empty_table()
        units = with_shards(units, first=items.number * SHARDS_PER_SLICE)
    else:
        again = media_to_plan_again(plan, items)
        if not again or attempt_of(uri, storage) == settings.attempt:
            return plan
        fresh = probe([item for item in items.items if item.media_id in again])
        if items.is_begun:
            units = with_fresh(plan, fresh)
        else:
            units = pa.concat_tables([without_media(plan, again), fresh])
            units = with_shards(units, first=items.number * SHARDS_PER_SLICE)
    units = in_order(units)
    check_distinct(units)
    write_plan_file(units, uri, storage, settings.attempt)
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
