"""Choose which of the listed media a run takes: since when, a sample, what is new, how many."""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pipeline.known import Known
from pipeline.read_manifest import ManifestDigest, as_items, media_pages, read_manifest
from pipeline.storage import Storage
from schemas.errors import JobFileError
from schemas.job import Input
from schemas.manifest import MediaItem

_BATCH_ITEMS = 50_000
_UNIT_SECONDS = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The items that a run takes.

    digest: of what was chosen; with ``only_new`` of what it was chosen from, so that it is the same
        when an interrupted run is started again. num_known: items that were left out as known.
    """

    items: list[MediaItem]
    digest: str
    num_known: int = 0


def select(spec: Input, storage: Storage, open_known: Callable[[], Known]) -> Selection:
    """List the media of a job and choose.

    open_known: opens what the table has, for ``spec.only_new``. Of what is known nothing is held.

    Raises:
        UserError: the manifest or listing is wrong, or the storage failed.
    """
    chosen, digest = _sampled(_listed(spec, storage), spec.sample), ManifestDigest()
    if not spec.only_new:
        items = list(itertools.islice(chosen, spec.limit))
        for item in items:
            digest.add(item)
        return Selection(items=items, digest=digest.hexdigest())
    items, num_listed, num_new = [], 0, 0
    with open_known() as known:
        while batch := list(itertools.islice(chosen, _BATCH_ITEMS)):
            for item in batch:
                digest.add(item)
            new = known.new_items(batch)
            num_listed, num_new = num_listed + len(batch), num_new + len(new)
            room = len(new) if spec.limit is None else spec.limit - len(items)
            items += new[:room]
    rule = f"{digest.hexdigest()} only_new {spec.limit}"
    return Selection(
        items=items,
        digest=hashlib.sha256(rule.encode()).hexdigest(),
        num_known=num_listed - num_new,
    )


def _listed(spec: Input, storage: Storage) -> Iterator[MediaItem]:
    """The media of the manifest, or of the listing as it comes, piece by piece."""
    if spec.manifest is not None:
        yield from read_manifest(spec.manifest, storage)
        return
    assert spec.scan is not None
    since = since_time(spec.since, datetime.now(UTC)) if spec.since else None
    for page in media_pages(spec.scan, spec.glob, storage):
        yield from as_items(
            media for media in page if since is None or (media.modified or since) >= since
        )


def since_time(text: str, now: datetime) -> datetime:
    """Read ``24h``, ``7d``, or a date or time in ISO 8601 (UTC, unless it says otherwise).

    Raises:
        JobFileError: it is neither.
    """
    if found := re.fullmatch(r"(\d+)([mhdw])", text):
        return now - timedelta(seconds=int(found[1]) * _UNIT_SECONDS[found[2]])
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise JobFileError(
            f"input.since must be such as 24h, 7d, 2026-11-22 or 2026-11-22T18:00, got {text!r}"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _sampled(items: Iterable[MediaItem], share: float | None) -> Iterator[MediaItem]:
    """A share of the items, by a hash of their ids: the same ones on another day."""
    for item in items:
        if share is None or _unit_interval(item.media_id) < share:
            yield item


def _unit_interval(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6]) / 2**48
