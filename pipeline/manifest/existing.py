"""Find the media that the output table has already, for ``input.only_new``.

A few columns of the table are read into DuckDB, which keeps to a memory limit and spills to disk,
so that a table of ten million media fits. Media items are then looked up in batches.

Media are identified by content. An etag that is an MD5, as S3 gives it (with the number of parts
for a multipart upload), identifies the bytes under any name. Other versions (size and time, a
generation) identify content only together with the media id, so a renamed object counts as new.

A name (``media_id``) whose content is known needs no new answer. If the table does not say yet that
this content is under this name, a row of the table ``listing`` says so: LISTING rows are returned
beside what is new.
"""

import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Self

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest.existing_rows import batches, flat, read_listing, read_rows
from pipeline.storage.storage import Storage
from schemas.errors import TRANSIENT
from schemas.shown import redact_uri
from schemas.tables.annotation import RecipeIds
from schemas.tables.listing import LISTING, MAX_AHEAD_SECONDS
from schemas.tables.manifest import MediaItem

MEMORY_LIMIT = "1GB"
_EPS_SECONDS = 0.01

# Names and contents are hashed to 16 bytes, since DuckDB holds millions of them.
_NAME = "md5_number(media_id)"
_KEY = r"""md5_number(CASE WHEN regexp_full_match(content_version, '[0-9a-f]{32}(-\d+)?')
    THEN content_version ELSE concat(media_id, chr(31), content_version) END)"""
# The unit_id of a manifest row without tasks, messages, intrinsics or frames of its own: only such
# rows answer the same questions under another name.
_IS_SIMPLE = """unit_id = left(sha256(concat_ws(chr(31), media_id, coalesce(media_version, ''),
    coalesce(format('{:.6f}', start_seconds), ''),
    coalesce(format('{:.6f}', end_seconds), ''))), 24)"""

_TIME = f"""CASE WHEN epoch_us({{0}}) <= epoch_us(now()) + {MAX_AHEAD_SECONDS * 1_000_000}
    THEN epoch_us({{0}}) ELSE 0 END"""

_CREATE = """
CREATE OR REPLACE TABLE span (key UHUGEINT, name UHUGEINT, unit UHUGEINT, recipe UTINYINT,
    start_seconds DOUBLE, end_seconds DOUBLE, first DOUBLE, last DOUBLE, is_whole BOOLEAN,
    is_simple BOOLEAN);
CREATE OR REPLACE TABLE seen (name UHUGEINT, media_id VARCHAR, uri VARCHAR, key UHUGEINT,
    is_mine BOOLEAN, source UHUGEINT, is_gone BOOLEAN, seen_at BIGINT);
CREATE OR REPLACE TABLE listed (name UHUGEINT);
"""

_INSERT_SPANS = f"""
INSERT INTO span
SELECT {_KEY}, {_NAME}, md5_number(unit_id), list_position($recipe_ids, recipe_id) - 1,
    round(start_seconds, 3), round(end_seconds, 3),
    begin_seconds, begin_seconds + duration_seconds, media_type IS NULL OR media_type = 'image'
        OR (start_seconds <= begin_seconds + {_EPS_SECONDS}
        AND end_seconds >= begin_seconds + duration_seconds - {_EPS_SECONDS}), {_IS_SIMPLE}
FROM batch WHERE list_contains($recipe_ids, recipe_id) AND content_version IS NOT NULL
    AND (error_type IS NULL OR NOT list_contains($transient, error_type))
"""

# A row says which content its name had when it was written. A row of media that could not be read
# does so only if the listing gave it a version, and not if the object was not there.
_INSERT_SEEN = f"""
INSERT INTO seen
SELECT {_NAME}, media_id, uri, {_KEY}, list_contains($recipe_ids, recipe_id) AS is_mine, {_NAME},
    false, CASE WHEN error_type IS NOT DISTINCT FROM 'media_missing'
            OR (content_version IS NULL AND media_type IS NULL) THEN -1
        ELSE {_TIME.format("finished_at")} END AS seen_at
FROM batch
QUALIFY row_number() OVER (PARTITION BY media_id, is_mine ORDER BY seen_at DESC) = 1
"""

_INSERT_LISTING = f"""
INSERT INTO seen
SELECT {_NAME}, media_id, uri, {_KEY}, list_contains($recipe_ids, recipe_id),
    md5_number(answers_of), is_gone, {_TIME.format("listed_at")} FROM batch
"""

# `whole`: content that a name has whole: the spans of a video leave no gap from the first frame to
# the last. `holder`: one of the names of a content. `state`: what each name has by its
# newest row. `mine`: the same by the rows that readers of this recipe use: its own, and gone marks.
_CREATE_WHOLE = f"""
CREATE TABLE whole AS SELECT key, name, min(recipe) AS recipe FROM (
    SELECT key, name, recipe FROM span WHERE is_simple AND is_whole
    UNION ALL
    SELECT key, name, min(recipe) FROM (
        SELECT *, max(end_seconds) OVER (PARTITION BY key, name ORDER BY start_seconds
            ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS reached
        FROM span WHERE is_simple AND NOT is_whole)
    GROUP BY key, name HAVING min(start_seconds) <= min(first) + {_EPS_SECONDS}
        AND max(end_seconds) >= max(last) - {_EPS_SECONDS}
        AND bool_and(reached IS NULL OR start_seconds <= reached + {_EPS_SECONDS})
    ) GROUP BY ALL;
CREATE TABLE holder AS
    SELECT key, min(name) AS source, arg_min(recipe, name) AS recipe FROM whole GROUP BY key;
CREATE TABLE state AS
    FROM seen QUALIFY row_number() OVER (PARTITION BY name ORDER BY seen_at DESC) = 1;
CREATE TABLE mine AS
    FROM seen WHERE is_mine OR is_gone
    QUALIFY row_number() OVER (PARTITION BY name ORDER BY seen_at DESC) = 1;
DROP TABLE seen;
"""

# Rows of `found` whose name has another content in `state` or `mine`, or one without answers; `id`
# names a row, `source` is the name that has the answers.
_CHANGED = """
SELECT id, origin.media_id, found.recipe FROM found LEFT JOIN state USING (name)
    LEFT JOIN mine ON mine.name = found.name
    LEFT JOIN whole AS shown ON shown.key = mine.key AND shown.name = mine.source
    LEFT JOIN state AS origin ON origin.name = found.source
WHERE state.name IS NULL OR state.is_gone OR state.key IS DISTINCT FROM found.key
    OR mine.name IS NULL OR mine.is_gone OR mine.key IS DISTINCT FROM found.key
    OR (mine.source <> found.source AND shown.key IS NULL)
"""


class ExistingMedia:
    """The media that the table has under a run's recipes, in a database; a context manager.

    Rows with a transient error do not count, so that their media are tried again.
    """

    def __init__(self, output: str, recipe_ids: RecipeIds, storage: Storage) -> None:
        """Read the table.

        Raises:
            StorageError: the storage refused or failed.
        """
        self._recipe_ids, self._began_at = recipe_ids, datetime.now(UTC)
        self._folder = tempfile.TemporaryDirectory(prefix="reelscribe-")
        self._db = duckdb.connect(
            config={
                "memory_limit": MEMORY_LIMIT,
                "temp_directory": self._folder.name,
                "preserve_insertion_order": False,
            }
        )
        recipe = {"recipe_ids": list(recipe_ids)}
        transient = recipe | {"transient": sorted(TRANSIENT)}
        for is_last_attempt in (False, False, True):
            self._db.execute(_CREATE)
            try:
                for batch in batches(read_rows(output, recipe_ids, storage)):
                    self._insert(batch, _INSERT_SPANS, transient)
                    self._insert(batch, _INSERT_SEEN, recipe)
                for batch in batches(read_listing(output, storage)):
                    self._insert(batch, _INSERT_LISTING, recipe)
                break
            except FileNotFoundError:  # `reelscribe compact` joined a file with others meanwhile
                if is_last_attempt:
                    raise
        self._db.execute(_CREATE_WHOLE)

    def __enter__(self) -> Self:
        """Return self."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Delete the database."""
        self._db.close()
        self._folder.cleanup()

    def _insert(self, batch: pa.Table, query: str, values: dict[str, Any] | None = None) -> None:
        self._db.register("batch", batch)
        self._db.execute(query, values)
        self._db.unregister("batch")

    def _query(self, batch: pa.Table, query: str) -> list[tuple[Any, ...]]:
        """Rows of a query of a batch."""
        self._db.register("batch", batch)
        found = self._db.execute(query).fetchall()
        self._db.unregister("batch")
        return found

    def new_items(self, items: list[MediaItem]) -> tuple[list[MediaItem], pa.Table]:
        """Return the items that are not in the table, or only in part; and LISTING rows of others.

        Items that only a probe can compare are returned too: ``new_units`` compares them.
        """
        ids = [item.media_id for item in items]
        versions = [item.content_version if is_matchable(item) else None for item in items]
        columns: dict[str, Any] = {
            "id": pa.array(range(len(items)), pa.int64()),
            "media_id": pa.array(ids, pa.string()),
            "content_version": pa.array(versions, pa.string()),
        }
        batch = pa.table(columns)
        self._insert(batch, f"INSERT INTO listed SELECT {_NAME} FROM batch")
        found = f"""WITH found AS (
            SELECT id, item.name, item.key, coalesce(own.name, holder.source) AS source,
                coalesce(own.recipe, holder.recipe) AS recipe
            FROM (SELECT id, {_NAME} AS name, {_KEY} AS key FROM batch
                WHERE content_version IS NOT NULL) AS item JOIN holder USING (key)
            LEFT JOIN whole AS own ON own.key = item.key AND own.name = item.name)"""
        known = {k for (k,) in self._query(batch, f"{found} SELECT id FROM found")}
        changes = [(items[k], of) for k, *of in self._query(batch, f"{found} {_CHANGED}")]
        rows = [self._listed(i.media_id, i.uri, i.content_version, *of) for i, of in changes]
        return [item for k, item in enumerate(items) if k not in known], _to_table(rows)

    def new_units(self, units: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return the planned units of media items that are not in the table, or only in part.

        All units of such an item are kept, since the row of a whole video needs its whole plan;
        the run does not annotate again the units that are in the table.

        Returns these units, and LISTING rows of the other items.
        """
        found = f"""WITH planned AS (
            SELECT media_id AS id, {_NAME} AS name, {_KEY} AS key, md5_number(unit_id) AS unit,
                round(start_seconds, 3) AS start_seconds, round(end_seconds, 3) AS end_seconds,
                {_IS_SIMPLE} AS is_simple FROM batch WHERE content_version IS NOT NULL
        ), own AS (
            SELECT DISTINCT id, planned.name, key, planned.name AS source, recipe, unit
            FROM planned JOIN span USING (unit, key)
        ), other AS (
            SELECT DISTINCT id, planned.name, key, source, span.recipe, planned.unit
            FROM planned JOIN holder USING (key) JOIN span USING (key)
            WHERE planned.is_simple AND span.is_simple AND span.name = holder.source
                AND planned.start_seconds IS NOT DISTINCT FROM span.start_seconds
                AND planned.end_seconds IS NOT DISTINCT FROM span.end_seconds
        ), num AS (
            SELECT media_id AS id, count(*) AS num_units FROM batch GROUP BY ALL
        ), num_held AS (
            SELECT key, name AS source, count(DISTINCT (start_seconds, end_seconds)) AS num_spans
            FROM span SEMI JOIN other USING (key) GROUP BY ALL
        ), found AS (
            SELECT id, name, key, source, min(recipe) AS recipe
            FROM (FROM own UNION ALL FROM other) AS known JOIN num USING (id)
            LEFT JOIN num_held USING (key, source)
            GROUP BY id, name, key, source HAVING count(DISTINCT unit) = any_value(num_units)
                AND (source = name OR any_value(num_spans) = any_value(num_units))
            QUALIFY row_number() OVER (PARTITION BY id ORDER BY source = name DESC) = 1)"""
        batch = flat(units)
        known = [media_id for (media_id,) in self._query(batch, f"{found} SELECT id FROM found")]
        is_known = pc.is_in(units["media_id"], pa.array(known, pa.string()))
        changed = {name: of for name, *of in self._query(batch, f"{found} {_CHANGED}")}
        first = units.filter(pc.is_in(units["media_id"], pa.array(list(changed), pa.string())))
        by_media = {row["media_id"]: row for row in first.select(_LISTED).to_pylist()}
        rows = [self._listed(*row.values(), *changed[name]) for name, row in by_media.items()]
        return units.filter(pc.invert(is_known)), _to_table(rows)

    def gone(self, begins: Sequence[str], is_in_scope: Callable[[str, str], bool]) -> pa.Table:
        """Return LISTING rows of the names that ``new_items`` did not get, and that are not gone.

        begins: only names whose uri begins with one of these. is_in_scope: whether the listing
        would have a name, by its media_id and uri.
        """
        self._db.execute(
            "SELECT media_id, uri FROM state ANTI JOIN listed USING (name) "
            "WHERE NOT is_gone AND list_bool_or([starts_with(uri, b) FOR b IN $begins])",
            {"begins": list(begins)},
        )
        rows = []
        while some := self._db.fetchmany(10_000):
            rows += [self._listed(m, uri, None) for m, uri in some if is_in_scope(m, uri)]
        return _to_table(rows)

    def _listed(
        self,
        media_id: str,
        uri: str,
        content_version: str | None,
        answers_of: str | None = None,
        recipe: int = 0,
    ) -> dict[str, Any]:
        """A row of LISTING; its run is known later. recipe: index of the answers' recipe."""
        return {
            "media_id": media_id,
            "uri": redact_uri(uri),
            "run_id": "",
            "recipe_id": self._recipe_ids[recipe],
            "content_version": content_version,
            "answers_of": answers_of,
            "is_gone": answers_of is None,
            "listed_at": self._began_at,
        }


_LISTED = ["media_id", "uri", "content_version"]


def is_matchable(item: MediaItem) -> bool:
    """Whether an item can be found in the table from its manifest row alone."""
    asks_more = item.messages is not None or item.frames or item.tasks or item.intrinsics
    is_whole = (item.start_seconds, item.end_seconds) == (None, None)
    return bool(item.content_version) and is_whole and not asks_more


def _to_table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=LISTING)
