"""Choose the recipes whose rows are meant: those of a run, or one."""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

from pipeline.output.run_file import read_run_file
from pipeline.storage.storage import Storage
from schemas.errors import StorageError, UserError
from schemas.tables.annotation import ANNOTATIONS, PIECES


def run_file_of(run_id: str, file: str, storage: Storage) -> dict[str, Any]:
    """Return the content of a run's run.json; empty if there is none that can be read.

    file: a file of the table or a piece, ``<output>/annotations/run_date=.../part-*``.
    """
    found = re.fullmatch(f"(.*)/(?:{ANNOTATIONS}|{PIECES})/.*", file)
    output = found[1] if found else ""
    try:
        return read_run_file(output, run_id, storage)
    except (FileNotFoundError, StorageError):
        return {}


def creation_time(run_id: str, run_file: dict[str, Any]) -> str:
    """Return when a run was created, as text that sorts: from run.json, else the date in its id."""
    day = re.search(r"-(\d{4})(\d\d)(\d\d)-", run_id)
    return str(run_file.get("created_at") or ("-".join(day.groups()) if day else ""))


def choose_recipes(
    counts: Counter[tuple[str, str]],
    recipe_id: str | None,
    run_id: str | None,
    run_file: Callable[[str], dict[str, Any]],
) -> tuple[list[str], str | None]:
    """Return the recipes; and why these, if others exist and none was selected."""
    written: dict[str, set[str]] = {}
    for run, recipe in counts:
        written.setdefault(run, set()).add(recipe)
    all_recipes = sorted(set[str]().union(*written.values()))

    def recipes_of(run: str) -> list[str]:
        # A run of the same settings wrote those rows of the run that it did not write itself.
        named = run_file(run).get("recipe_ids")
        wanted = [*written.get(run, ()), *(named.values() if isinstance(named, dict) else ())]
        return [recipe for recipe in all_recipes if recipe in wanted]

    if run_id is not None and not recipes_of(run_id):
        raise UserError(f"no row is of run {run_id!r}; the runs are {_brief(sorted(written))}")
    if recipe_id is not None and recipe_id not in all_recipes:
        raise UserError(f"no row is of recipe {recipe_id!r}; the recipes are {_brief(all_recipes)}")
    if run_id is not None:
        found = recipes_of(run_id)
        if recipe_id not in (None, *found):
            raise UserError(f"run {run_id!r} is of recipe {_brief(found)}, not {recipe_id!r}")
        return found if recipe_id is None else [recipe_id], None
    if recipe_id is not None:
        return [recipe_id], None
    times = {run: creation_time(run, run_file(run)) for run in written}
    newest = sorted(run for run in written if times[run] == max(times.values()))
    found = recipes_of(newest[0])
    if any(recipes_of(run) != found for run in newest):
        raise UserError(
            f"the table has {len(all_recipes)} recipes, and it is unclear which run is the newest: "
            f"choose one with --run: {_brief(newest)}"
        )
    others = [recipe for recipe in all_recipes if recipe not in found]
    if not others:
        return found, None
    return found, f"of the newest run, {newest[0]}; --recipe selects others: {_brief(others)}"


def _brief(names: list[str], max_names: int = 5) -> str:
    more = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return ", ".join(names[:max_names]) + more
