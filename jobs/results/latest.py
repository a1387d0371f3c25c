"""Choose the rows of what each name has now: the same choice as the view ``latest``."""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from jobs.results.media_roots import MediaRoots
from pipeline.output.duplicates import STATUS_RANKS
from pipeline.output.listing import believed
from pipeline.output.table import read_files
from pipeline.storage.ids import digest
from pipeline.storage.storage import Storage, join
from schemas.errors import ErrorType
from schemas.tables.listing import LISTING

Row = dict[str, Any]

COPIED_FROM = pa.field(
    "copied_from", pa.struct([(name, pa.string()) for name in ("unit_id", "media_id", "uri")])
)
"""The column that the rows of ``latest`` have beside those of the table."""


def read_listed(output: str, storage: Storage) -> list[Row]:
    """Read the table ``listing`` of an output, in order of time; empty if there is none.

    Raises:
        StorageError: the storage refused or failed.
    """
    table = read_files(join(output, "listing"), None, storage, LISTING.names, LISTING)
    return sorted(table.to_pylist(), key=lambda row: believed(row["listed_at"]))


def listed_under(listed: Sequence[Row], recipe_ids: Collection[str]) -> dict[str, Row]:
    """Return the newest row of each name, by media_id.

    Rows of other recipes count only where they say that the media are gone, or there again.

    listed: in order of time.
    """
    own = {row["media_id"]: row for row in listed if row["recipe_id"] in recipe_ids}
    found = {media_id: row for media_id, row in own.items() if not row["is_gone"]}
    last = {row["media_id"]: row for row in listed}
    return found | {media_id: row for media_id, row in last.items() if row["is_gone"]}


def names_to_read(
    media: tuple[Collection[str], Collection[str]], listed: list[Row], roots: MediaRoots
) -> "tuple[pa.Array[Any], ...]":
    """Return the media_ids and uris to read: the wanted ones, and those that have their answers."""
    ids, uris = map(set, media)
    shared = {
        row["answers_of"]
        for row in listed
        if row["answers_of"] and (row["media_id"] in ids or roots.move(row["uri"]) in uris)
    }
    return tuple(pa.array(sorted(names), pa.string()) for names in ({*ids, *shared}, uris))


def latest_rows(
    rows: Collection[Row], listed: dict[str, Row], created: Callable[[str], str]
) -> list[Row]:
    """Return the best row of each unit, of each name only those of its newest content.

    rows: of one run's recipes, in order of their files. listed: as ``listed_under`` returns it.
    created: when a run was created.

    A row of another name with the same content is copied, with a ``unit_id`` of its own and the
    column ``copied_from``.
    """
    best: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: (STATUS_RANKS.get(row["status"], 3), -_attempts(row))):
        best.setdefault(row["unit_id"], row)
    by_media: dict[str, list[Row]] = defaultdict(list)
    for row in best.values():
        by_media[row["media_id"]].append(row)
    latest: list[Row] = []
    for media_id in dict.fromkeys([*by_media, *listed]):
        found, mark = by_media.get(media_id, []), listed.get(media_id)
        # A row of media that could not be read may have no version, or its object was not there.
        known = [row for row in found if _is_read(row) or _content(row)] or found
        telling = [row for row in known if not _is_missing(row)] or known
        newest = max(telling, key=lambda row: (_time(row), created(row["run_id"])), default=None)
        if mark is None or (newest is not None and _time(newest) > believed(mark["listed_at"])):
            content = _content(newest) if newest else None
            same = [row for row in known if _content(row) == content]
            latest += _newest_questions([row for row in same if _is_read(row)] or same)
        elif not mark["is_gone"]:
            answers = [
                row
                for row in by_media.get(mark["answers_of"], [])
                if _content(row) == mark["content_version"]
            ]
            latest += [_copy(row, mark) for row in _newest_questions(answers)]
    return latest


def _newest_questions(rows: list[Row]) -> list[Row]:
    """Of several rows about one time span of one content, the newest; all about conversations."""
    newest: dict[Any, Row] = {}
    for row in sorted(rows, key=_time):
        span = row.get("sampling")
        newest[(span["start_seconds"], span["end_seconds"]) if span else row["unit_id"]] = row
    return list(newest.values())


def _copy(row: Row, mark: Row) -> Row:
    """A row under the name of ``mark``; the same as the view's."""
    if row["media_id"] == mark["media_id"]:
        return row
    return row | {
        "unit_id": digest(mark["media_id"], row["unit_id"]),
        "media_id": mark["media_id"],
        "uri": mark["uri"],
        "copied_from": {name: row[name] for name in ("unit_id", "media_id", "uri")},
    }


def _attempts(row: Row) -> int:
    return (row["error"] or {}).get("attempts") or 0


def _is_read(row: Row) -> bool:
    return bool(row["media"] or row.get("parts"))


def _content(row: Row) -> str | None:
    version: str | None = row.get("content_version")
    return version or (row["media"] or {}).get("content_version")


def _is_missing(row: Row) -> bool:
    return (row.get("error") or {}).get("type") == ErrorType.MEDIA_MISSING


def _time(row: Row) -> datetime:
    return believed((row.get("timings") or {}).get("finished_at"))
