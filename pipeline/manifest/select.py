"""Select the media items of a run: ``since``, ``sample``, ``only_new`` and ``limit``."""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from pipeline.manifest.existing import ExistingMedia
from pipeline.manifest.kept import Kept
from pipeline.manifest.listing import LeftOut, as_items, media_pages, scope
from pipeline.manifest.read import ManifestDigest, manifest_digest, manifest_items
from pipeline.storage.storage import Storage
from pipeline.workers.free_memory import free_bytes
from schemas.errors import JobFileError
from schemas.job.job import Input
from schemas.tables.listing import LISTING
from schemas.tables.manifest import MediaItem

_BATCH_ITEMS = 50_000
_UNIT_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The selected items.

    digest: hash of the items; with ``only_new`` of all listed items, so that it is the same when an
        interrupted run is started again.
    num_known: items left out because the table has them.
    left_out: what the listing of a folder left out, a line for each reason.
    listing: LISTING rows of names whose content is known and new to them, and of names that are
        gone.
    """

    items: list[MediaItem]
    digest: str
    num_known: int = 0
    left_out: tuple[str, ...] = ()
    listing: pa.Table = field(default_factory=LISTING.empty_table)


def select(spec: Input, storage: Storage, open_existing: Callable[[], ExistingMedia]) -> Selection:
    """List the media items of a job, and select those of the run.

    open_existing: opens the media that the table has, for ``spec.only_new``.

    With ``only_new``, memory grows with the new items only.

    Raises:
        UserError: the manifest or listing is wrong, or the storage failed.
    """
    left_out = LeftOut()
    kept = Kept(free_bytes() // 2)
    listed = _sampled(_listed(spec, storage, left_out), spec.sample)
    if not spec.only_new:
        items = kept.added(itertools.islice(listed, spec.limit))
        if spec.manifest is not None:
            for _ in listed:  # what is after the limit is checked too
                pass
        lines = tuple(left_out.lines())
        return Selection(items=items, digest=manifest_digest(items), left_out=lines)
    items, digest, num_listed, num_new = [], ManifestDigest(), 0, 0
    changes = [LISTING.empty_table()]
    with open_existing() as existing:
        while batch := list(itertools.islice(listed, _BATCH_ITEMS)):
            for item in batch:
                digest.add(item)
            new, changed = existing.new_items(batch)
            num_listed, num_new = num_listed + len(batch), num_new + len(new)
            room = len(new) if spec.limit is None else spec.limit - len(items)
            items += kept.added(new[:room])
            changes.append(changed)
        if spec.marks_gone:  # the listing ended without an error
            changes.append(existing.gone(*_scope(spec, storage)))
    rule = f"{digest.hexdigest()} only_new {spec.limit}"
    return Selection(
        items=items,
        digest=hashlib.sha256(rule.encode()).hexdigest(),
        num_known=num_listed - num_new,
        left_out=tuple(left_out.lines()),
        listing=pa.concat_tables(changes),
    )


def _scope(spec: Input, storage: Storage) -> tuple[tuple[str, ...], Callable[[str, str], bool]]:
    """Which names a source has all of: those of the scan; of a manifest all of the output."""
    if spec.scan is not None:
        return scope(spec.scan, spec.glob, storage)
    return ("",), lambda media_id, uri: True


def _listed(spec: Input, storage: Storage, left_out: LeftOut) -> Iterator[MediaItem]:
    """Yield the items of the manifest, or of the listing page by page."""
    if spec.manifest is not None:
        yield from manifest_items(spec.manifest, storage)
        return
    assert spec.scan is not None
    since = since_time(spec.since, datetime.now(UTC)) if spec.since else None
    for page in media_pages(spec.scan, spec.glob, storage, left_out):
        yield from as_items(
            media for media in page if since is None or (media.modified or since) >= since
        )


def since_time(text: str, now: datetime) -> datetime:
    """Read a duration before ``now``, such as ``24h`` or ``7d``, or an ISO 8601 date or time.

    A time without a zone is UTC.

    Raises:
        JobFileError: the text is neither.
    """
    if found := re.fullmatch(r"(\d+)([mhdw])", text):
        return now - timedelta(seconds=int(found[1]) * _UNIT_SECONDS[found[2]])
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise JobFileError(
            "input.since must be a duration or a time, such as 24h, 7d, 2026-11-22 or "
            f"2026-11-22T18:00, got {text!r}"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _sampled(items: Iterable[MediaItem], share: float | None) -> Iterator[MediaItem]:
    """Yield a share of the items, by a hash of their ids: the same items in every run."""
    for item in items:
        if share is None or _unit_interval(item.media_id) < share:
            yield item


def _unit_interval(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48
