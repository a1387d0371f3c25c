"""Read the rows of an annotation table: those of one recipe, and of the latest content."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.metrics import METRICS
from pipeline.storage import Storage, join, shown
from pipeline.write import read_parquet
from schemas.errors import StorageError, UserError
from schemas.unit import UnitStatus

Row = dict[str, Any]

_KEYS = ("unit_id", "media_id", "uri", "run_id", "recipe_id", "status")
_COLUMNS = [
    *_KEYS,
    "media",
    "sampling",
    "responses.list.element.task",
    "responses.list.element.status",
    "attributes",
    *METRICS,
]
_RANKS = {UnitStatus.OK: 0, UnitStatus.PARTIAL: 1, UnitStatus.FAILED: 2}


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """The rows of one recipe: all, or those of named media.

    run_ids: those that wrote the rows of the recipe. chosen: how it was chosen, if there was a
    choice. num_rows: rows of the recipe, with or without gold. num_superseded: rows left out since
    another one is of the same unit, or of the media's later content.
    examples: some media of the table, (media_id, uri).
    """

    rows: list[Row]
    recipe_id: str
    run_ids: list[str]
    chosen: str | None
    num_rows: int
    num_superseded: int
    examples: list[tuple[str, str]]


@dataclass(frozen=True, kw_only=True)
class _Part:
    table: pa.Table
    counts: Counter[tuple[str, str]]
    examples: list[tuple[str, str]]


def read_annotations(
    uri: str,
    storage: Storage,
    *,
    named: tuple[Collection[str], Collection[str]] | None = None,
    recipe_id: str | None = None,
    run_id: str | None = None,
) -> Annotations:
    """Read the rows of one recipe.

    uri: an output folder, a run's folder in it, an annotations folder, or a Parquet file.
    named: ids and uris of the media that are wanted, and of these only the columns that gold is
        compared with; None: all rows, with all columns.
    recipe_id, run_id: which recipe, or whose; without them, that of the newest run.

    Raises:
        UserError: there is no such table, recipe or run, or no telling which is the newest.
    """
    uri, run_of_folder = output_and_run(uri)
    run_id = run_id or run_of_folder
    files = parquet_files(uri, storage)
    if not files:
        raise UserError(
            f"there are no annotations below {shown(uri)}: give the output folder of "
            "`reelscribe annotate`, or a Parquet file"
        )
    wanted = named and tuple(pa.array(sorted(names), pa.string()) for names in named)
    with ThreadPoolExecutor(16) as pool:
        parts = list(pool.map(lambda file: _read_part(file, wanted, storage), files))
    counts: Counter[tuple[str, str]] = Counter()
    for part in parts:
        counts.update(part.counts)
    if not counts:
        raise UserError(f"the annotations in {shown(uri)} have no rows yet")
    began = cache(partial(_began, file=files[0], storage=storage))
    recipe, chosen = _choose_recipe(counts, recipe_id, run_id, began)
    found = [
        row
        for part in parts
        for row in part.table.filter(pc.equal(part.table["recipe_id"], recipe)).to_pylist()
    ]
    rows = _latest(found, began)
    return Annotations(
        rows=rows,
        recipe_id=recipe,
        run_ids=sorted(run for run, of in counts if of == recipe),
        chosen=chosen,
        num_rows=sum(count for (_, of), count in counts.items() if of == recipe),
        num_superseded=len(found) - len(rows),
        examples=[example for part in parts for example in part.examples][:3],
    )


def output_and_run(uri: str) -> tuple[str, str | None]:
    """Split the uri of a run's folder into the output folder and the run's id."""
    found = re.fullmatch(r"(.+)/runs/([^/]+)/?", uri)
    return (found[1], found[2]) if found else (uri, None)


def parquet_files(uri: str, storage: Storage) -> list[str]:
    """List the Parquet files of a table: an output folder, a folder of Parquet, or one file."""
    for folder in (join(uri, "annotations"), uri):
        root = storage.filesystem(folder)[1].rstrip("/") + "/"
        found = [file["uri"] for file in storage.list_files(folder, "**/*.parquet")]
        files = [
            file
            for file in found
            # Nor is the plan in an output folder without rows its annotations.
            if not file.partition(root)[2].startswith("runs/")
            and not file.rpartition("/")[2].startswith((".", "_"))
        ]
        if files:
            return files
    return [uri] if uri.lower().endswith(".parquet") else []


def _read_part(file: str, wanted: tuple[pa.Array, ...] | None, storage: Storage) -> _Part:
    try:
        table = read_parquet(file, storage, _COLUMNS if wanted else None)
    except FileNotFoundError:
        raise UserError(f"there is no file {shown(file)}") from None
    missing = [name for name in _KEYS if name not in table.column_names]
    if missing:
        raise UserError(
            f"{shown(file)} is not an annotation table: it has no {' and no '.join(missing)}"
        )
    groups = table.group_by(["run_id", "recipe_id"]).aggregate([([], "count_all")]).to_pylist()
    first = table.select(["media_id", "uri"]).slice(0, 3).to_pylist()
    if wanted:
        ids, uris = (
            pc.is_in(table[name], value_set=names)
            for name, names in zip(("media_id", "uri"), wanted, strict=True)
        )
        table = table.filter(pc.or_(ids, uris))
    return _Part(
        table=table,
        counts=Counter({(g["run_id"], g["recipe_id"]): g["count_all"] for g in groups}),
        examples=[(row["media_id"], row["uri"]) for row in first],
    )


def _began(run_id: str, file: str, storage: Storage) -> str:
    """When a run began, as text that sorts: from its run.json, else the day in its id.

    file: one of the table's parts, ``<output>/annotations/run_date=.../part-*``.
    """
    output = file.rpartition("/annotations/")[0]
    try:
        content = json.loads(storage.read_bytes(join(output, "runs", run_id, "run.json")))
        return str(content["created_at"])
    except (FileNotFoundError, StorageError, ValueError, KeyError, TypeError):
        day = re.search(r"-(\d{4})(\d\d)(\d\d)-", run_id)
        return "-".join(day.groups()) if day else ""


def _choose_recipe(
    counts: Counter[tuple[str, str]],
    recipe_id: str | None,
    run_id: str | None,
    began: Callable[[str], str],
) -> tuple[str, str | None]:
    """Return the recipe, and how it was chosen if nobody asked for it and there are others."""
    recipe_of = dict(counts.keys())
    recipes = sorted(set(recipe_of.values()))
    if run_id is not None and run_id not in recipe_of:
        raise UserError(f"no row is of run {run_id!r}; the runs are {_some(sorted(recipe_of))}")
    if recipe_id is not None and recipe_id not in recipes:
        raise UserError(f"no row is of recipe {recipe_id!r}; the recipes are {_some(recipes)}")
    if run_id is not None:
        if recipe_id not in (None, recipe_of[run_id]):
            raise UserError(f"run {run_id!r} is of recipe {recipe_of[run_id]!r}, not {recipe_id!r}")
        return recipe_of[run_id], None
    if recipe_id is not None or len(recipes) == 1:
        return recipe_id or recipes[0], None
    last = max(map(began, recipe_of))
    newest = sorted(run for run in recipe_of if began(run) == last)
    if len({recipe_of[run] for run in newest}) > 1:
        raise UserError(
            f"the table has {len(recipes)} recipes, and no telling which run is the newest: choose "
            f"one with --run: {_some(newest)}"
        )
    others = _some([recipe for recipe in recipes if recipe != recipe_of[newest[0]]])
    return recipe_of[newest[0]], f"of the newest run, {newest[0]}; --recipe takes others: {others}"


def _latest(rows: list[Row], began: Callable[[str], str]) -> list[Row]:
    """Leave one row for each unit, the best, and of each media the units of its latest content."""
    best: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: (_RANKS.get(row["status"], 3), row["run_id"])):
        best.setdefault(row["unit_id"], row)
    by_media: dict[str, list[Row]] = defaultdict(list)
    for row in best.values():
        by_media[row["media_id"]].append(row)
    latest: list[Row] = []
    for found in by_media.values():
        # Media that could not be read had no version, so its unit had another id than it has now.
        read = [row for row in found if row["media"] or row.get("parts")] or found
        if len({_content(row) for row in read}) > 1:
            content = _content(max(read, key=lambda row: began(row["run_id"])))
            read = [row for row in read if _content(row) == content]
        latest += read
    return latest


def _content(row: Row) -> str | None:
    version: str | None = (row["media"] or {}).get("content_version")
    return version


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
