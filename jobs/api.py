"""The commands as functions, for notebooks and other programs: plan, annotate, read.

    from jobs.api import annotate, plan, read

A job is the path of a job file, a mapping with the same keys, or a ``Job``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich.console import Console

from jobs.results.latest import COPIED_FROM
from jobs.results.read import Selection, read_annotations
from pipeline.output.rows import table_schema
from pipeline.storage.storage import Storage
from schemas.job.job import Job, check_job, load_job

if TYPE_CHECKING:
    import pandas as pd
    import ray.data

JobLike = Job | str | Path | Mapping[str, Any]
StorageOptions = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Results:
    """The rows of one run's recipes, one for each unit. docs/output-schema.md has their columns.

    recipe_ids: of the rows. run_ids: the runs that wrote them.
    """

    table: pa.Table
    recipe_ids: list[str]
    run_ids: list[str]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def to_arrow(self) -> pa.Table:
        """The rows, in the output table's schema."""
        return self.table

    def to_pandas(self) -> "pd.DataFrame":
        """The rows; lists and structs are lists and dicts."""
        frame: pd.DataFrame = self.table.to_pandas(maps_as_pydicts="lossy")
        return frame

    def to_ray(self) -> "ray.data.Dataset":
        """The rows as a Ray Dataset; starts Ray if it does not run."""
        import ray.data

        from jobs.cluster.start import start_ray

        if not ray.is_initialized():
            start_ray()
        return ray.data.from_arrow(self.table)


def plan(job: JobLike, overrides: Mapping[str, Any] | None = None) -> pa.Table:
    """Count a job's units and tokens from media headers; returns UNIT rows.

    overrides: values that replace the job's, by dotted name: ``{"sampling.fps": 1}``.

    Raises:
        UserError: the job is wrong, or the storage or cluster does not work.
    """
    from jobs.plan import plan as command

    return command.run(_job(job, overrides), Console(quiet=True))


def annotate(
    job: JobLike, overrides: Mapping[str, Any] | None = None, *, progress: bool = False
) -> Results:
    """Run a job, or continue it where it was interrupted, and return its rows.

    progress: print what ``reelscribe annotate`` prints.

    Raises:
        UserError: the job is wrong, or the storage or cluster does not work.
    """
    from jobs.run import annotate as command

    checked = _job(job, overrides)
    finished = command.run(checked, Console(quiet=not progress))
    return read(checked.output, run_id=finished.run_id, storage_options=checked.storage_options)


def read(
    output: str | Path,
    *,
    recipe_id: str | None = None,
    run_id: str | None = None,
    storage_options: StorageOptions | None = None,
) -> Results:
    """Read results: an output folder, a run's folder in it, or a Parquet file.

    recipe_id, run_id: one recipe, or a run whose recipes are meant; default: the newest run.

    Raises:
        UserError: there is no such table, recipe or run.
    """
    selection = Selection(uri=str(output), recipe_id=recipe_id, run_id=run_id)
    found = read_annotations(selection, Storage(storage_options))
    rows = sorted(
        found.rows,
        key=lambda row: (row["uri"], (row.get("sampling") or {}).get("start_seconds") or 0.0),
    )
    schema = table_schema(found.named.values()).append(COPIED_FROM)
    table = pa.Table.from_pylist(rows, schema=schema)
    return Results(table=table, recipe_ids=found.recipe_ids, run_ids=found.run_ids)


def _job(job: JobLike, overrides: Mapping[str, Any] | None) -> Job:
    if isinstance(job, Job):
        if overrides:
            raise TypeError("overrides replace values of a job file or a mapping, not of a Job")
        return job
    if isinstance(job, Mapping):
        if overrides:
            return load_job(None, {**job, **overrides})
        return check_job(dict(job), "the job")
    return load_job(Path(job), dict(overrides or {}))
