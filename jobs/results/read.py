"""Read an annotation table: one run's recipes, the best row of each unit, the latest content."""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.results.latest import latest_rows, listed_under, names_to_read, read_listed
from jobs.results.media_roots import MediaRoots
from jobs.results.recipes import choose_recipes, creation_time, run_file_of
from pipeline.output.file_names import a_file_of_each_recipe
from pipeline.output.rows import ANNOTATION
from pipeline.output.table import check_rows, ids_in
from pipeline.storage.parquet import read_parquet, read_schema
from pipeline.storage.storage import Storage, join
from pipeline.tasks.columns import named_columns, questions_by_name
from pipeline.tasks.registry import TASKS
from schemas.errors import UserError
from schemas.shown import redact_uri
from schemas.tables.annotation import ANNOTATIONS, PIECES
from schemas.task import Question

Row = dict[str, Any]

_KEYS = ("unit_id", "media_id", "uri", "run_id", "recipe_id", "status")
_GOLD_COLUMNS = [
    *_KEYS,
    "content_version",
    "timings.finished_at",
    "error.type",
    "error.attempts",
    "media",
    "sampling",
    "responses.list.element.task",
    "responses.list.element.status",
    "attributes",
    *(name for name, task in TASKS.items() if task.metric is not None),
]
"""The columns that a comparison with gold needs."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which rows to read.

    uri: an output folder, a run's folder in it, an annotations folder, or a Parquet file.
    recipe_id, run_id: one recipe, or a run whose recipes are meant: of images, of videos, and of
        conversations; with neither, those of the newest run.
    media_roots: where media are now, if they moved since.
    """

    uri: str
    recipe_id: str | None = None
    run_id: str | None = None
    media_roots: MediaRoots = field(default_factory=MediaRoots)


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """The rows of a run's recipes: all of them, or those of some media.

    recipe_ids: of which the table has rows. run_ids: the runs that wrote them.
    chosen: why these recipes, if the table has others and the selection names none.
    num_rows: number of all rows of the recipes, and of the answers that other names share.
    num_superseded: number of rows left out, because another row is of the same unit, or of later
        content of the same media, or because the media are gone.
    examples: (media_id, uri) of some media of the table.
    named: the columns of questions with names of their own, by name.
    """

    rows: list[Row]
    recipe_ids: list[str]
    run_ids: list[str]
    chosen: str | None
    num_rows: int
    num_superseded: int
    examples: list[tuple[str, str]]
    named: "dict[str, pa.Field[Any]]"

    @property
    def questions(self) -> dict[str, Question]:
        """The questions whose answers the rows may have, by name."""
        return questions_by_name(self.named.values())


@dataclass(frozen=True, kw_only=True)
class _Part:
    table: pa.Table
    counts: Counter[tuple[str, str]]
    examples: list[tuple[str, str]]


def read_annotations(
    selection: Selection,
    storage: Storage,
    *,
    media: tuple[Collection[str], Collection[str]] | None = None,
    judged: Collection[str] = (),
) -> Annotations:
    """Read the rows of a run's recipes, with all columns.

    media: (media_ids, uris); only the rows of these media are read, and only the columns that a
        comparison with gold needs. judged: further columns that it needs.

    Raises:
        UserError: there is no such table, recipe or run, or it is unclear which run is the newest.
    """
    uri, run_of_folder = output_and_run(selection.uri)
    run_id = selection.run_id or run_of_folder
    listed = read_listed(re.sub(r"(^|/)annotations/?$", "", uri) or ".", storage)
    roots = selection.media_roots
    wanted = media and names_to_read(media, listed, roots)
    columns = [*_GOLD_COLUMNS, *judged] if media else None
    read = partial(_read_part, columns=columns, wanted=wanted, roots=roots, storage=storage)
    files, parts = _read_parts(uri, read, storage)
    counts: Counter[tuple[str, str]] = Counter()
    for part in parts:
        counts.update(part.counts)
    if not counts:
        raise UserError(f"the annotations in {redact_uri(uri)} have no rows yet")
    run_file = cache(partial(run_file_of, file=files[0], storage=storage))
    created = cache(lambda run_id: creation_time(run_id, run_file(run_id)))
    recipes, chosen = choose_recipes(counts, selection.recipe_id, run_id, run_file)
    found = [
        row
        for part in parts
        for row in part.table.filter(
            pc.is_in(part.table["recipe_id"], pa.array(recipes, pa.string()))
        ).to_pylist()
    ]
    rows = latest_rows(found, listed_under(listed, recipes), created)
    if media is not None:  # without the names that only have the answers of the wanted ones
        ids, uris = map(set, media)
        found, rows = (
            [row for row in some if row["media_id"] in ids or roots.move(row["uri"]) in uris]
            for some in (found, rows)
        )
    num_copied = sum("copied_from" in row for row in rows)
    rows = roots.move_rows(rows, must_match=media is None)
    return Annotations(
        rows=rows,
        recipe_ids=recipes,
        run_ids=sorted({run for run, of in counts if of in recipes}),
        chosen=chosen,
        num_rows=sum(count for (_, of), count in counts.items() if of in recipes) + num_copied,
        num_superseded=len(found) - (len(rows) - num_copied),
        examples=[example for part in parts for example in part.examples][:3],
        named={
            field.name: field
            for part in parts
            if any(of in recipes for _, of in part.counts)
            for field in named_columns(part.table.schema)
        },
    )


def read_questions(selection: Selection, storage: Storage) -> dict[str, Question]:
    """Return the questions whose answers a table may have, by name; reads one file a recipe.

    Raises:
        StorageError: the storage refused or failed, or a file is damaged.
    """
    files = a_file_of_each_recipe(parquet_files(output_and_run(selection.uri)[0], storage))
    found: dict[str, Question] = {}
    for file in files:
        with suppress(FileNotFoundError):
            found |= questions_by_name(named_columns(read_schema(file, storage)))
    return found or questions_by_name()


def output_and_run(uri: str) -> tuple[str, str | None]:
    """Split the uri of a run's folder into the output folder and the run's id."""
    found = re.fullmatch(r"(.+)/runs/([^/]+)/?", uri)
    return (found[1], found[2]) if found else (uri, None)


def attributes_of(row: Row) -> dict[str, Any]:
    """Return the row's attributes; empty if the column is missing or holds no JSON object."""
    try:
        found = json.loads(row.get("attributes") or "{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def parquet_files(uri: str, storage: Storage) -> list[str]:
    """List the Parquet files of a table: an output folder, a folder of Parquet, or one file.

    Of an output also the pieces, before the table: see ``table_files``.
    """
    for folders in ((join(uri, PIECES), join(uri, ANNOTATIONS)), (uri,)):
        if files := [file for folder in folders for file in _tables_in(folder, storage)]:
            return files
    return [uri] if uri.lower().endswith(".parquet") else []


def _tables_in(folder: str, storage: Storage) -> list[str]:
    root = storage.filesystem(folder)[1].rstrip("/") + "/"
    return [
        file["uri"]
        for file in storage.list_files(folder, "**/*.parquet")
        # The plan is Parquet too: it is no table of annotations.
        if not file["uri"].partition(root)[2].startswith("runs/")
        and not file["uri"].rpartition("/")[2].startswith((".", "_"))
    ]


def _read_parts(
    uri: str, read: Callable[[str], _Part], storage: Storage
) -> tuple[list[str], list[_Part]]:
    """List the files of a table, and read each; again if one was replaced meanwhile."""
    for is_last_attempt in (False, False, True):
        files = parquet_files(uri, storage)
        if not files:
            raise UserError(
                f"there are no annotations in {redact_uri(uri)}: give the output folder of "
                "`reelscribe annotate`, or a Parquet file"
            )
        try:
            with ThreadPoolExecutor(16) as pool:
                return files, list(pool.map(read, files))
        except FileNotFoundError as error:
            if is_last_attempt:
                raise UserError(str(error)) from None
    raise AssertionError


def _read_part(
    file: str,
    columns: list[str] | None,
    wanted: "tuple[pa.Array[Any], ...] | None",
    roots: MediaRoots,
    storage: Storage,
) -> _Part:
    try:
        table = read_parquet(file, storage, columns)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {redact_uri(file)}") from None
    missing = [name for name in _KEYS if name not in table.column_names]
    if missing:
        raise UserError(
            f"{redact_uri(file)} is not an annotation table: it has no {' and no '.join(missing)}"
        )
    check_rows(table, ANNOTATION, file)
    groups = table.group_by(["run_id", "recipe_id"]).aggregate([([], "count_all")]).to_pylist()
    first = table.select(["media_id", "uri"]).slice(0, 3).to_pylist()
    if wanted:
        uris = pa.array([roots.move(uri) for uri in ids_in(table, "uri")], pa.string())
        is_wanted = pc.or_(
            pc.is_in(table["media_id"], value_set=wanted[0]), pc.is_in(uris, value_set=wanted[1])
        )
        table = table.filter(is_wanted)
    return _Part(
        table=table,
        counts=Counter({(g["run_id"], g["recipe_id"]): g["count_all"] for g in groups}),
        examples=[(row["media_id"], roots.move(row["uri"])) for row in first],
    )
