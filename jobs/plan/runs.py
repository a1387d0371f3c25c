"""Runs and their ``run.json``: find the run that a job continues, read and write its state.

<output>/runs/<run_id>/run.json      the job without secrets, fingerprint, versions, counts
<output>/runs/<run_id>/plan/         the plan, UNIT rows
"""

import dataclasses
import hashlib
import json
import platform
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from jobs.cost.calibration import read_calibration
from jobs.cost.rates import Rates
from pipeline.output.rows import RunKey
from pipeline.output.run_file import is_run_id, not_a_run_file, read_run_file, run_folder
from pipeline.plan.recipe import differences, recipe_id, recipe_ids
from pipeline.storage.parquet import write_json
from pipeline.storage.storage import Storage, join
from pipeline.workers.code_version import code_digest
from schemas.errors import JobFileError
from schemas.job.job import Job
from schemas.shown import redact_uri
from schemas.tables.annotation import SCHEMA_VERSION, RecipeIds

_OF_ENGINES = ("recipe.model.vllm", "recipe.model.simulated")
_PACKAGES = ("reelscribe", "ray", "torch", "transformers", "torchcodec", "av", "pillow", "pyarrow")


Short = Annotated[str, Field(max_length=256)]


@dataclass(frozen=True, kw_only=True)
class _Fingerprint:
    """The keys of ``Run.fingerprint``, for their check: the recipe's is in names of files."""

    manifest: str
    recipe: Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]
    schema_version: str


@dataclass(frozen=True, kw_only=True)
class _Counts:
    """The keys of ``Run.counts`` of a complete run, for their check."""

    units: int
    units_of_earlier_runs: int
    status: dict[str, int]
    errors: dict[str, int]
    answers: dict[str, int]
    decoders: dict[str, int]
    prompt_tokens: int
    output_tokens: int
    decode_seconds: float
    engine_seconds: float


@dataclass(frozen=True, kw_only=True)
class _Parts:
    fingerprint: _Fingerprint
    counts: _Counts | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One execution of a plan; it stays the same run when it is killed and resumed.

    status: ``running`` until every unit has its row, then ``complete``.
    starts: number of starts of the run. seconds: duration of the last start.
    num_units, num_output_tokens: what the last start did; rows of earlier starts do not count.
    machines: of the last start that had units to do, as ``jobs.cluster.machines`` lists them.
    actors: number of decoders and engines of that start.
    engine: of the run, and the reason for it at the first start.
    engine_versions: of that start's engines, and what they chose by themselves, as they report it.
    ray: why that start ran on Ray; null: it ran without.
    left_out: what the listing of a folder left out, a line for each reason.
    cost: engine seconds per token, if known: from a calibration, an earlier run of the same model,
        or this run.
    """

    run_id: str
    name: Short
    run_date: Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\d$")]
    status: Literal["running", "complete"]
    fingerprint: dict[str, Short]
    recipe: dict[str, Any]
    created_at: Short
    starts: int = 0
    finished_at: str | None = None
    seconds: float = 0.0
    num_units: int = 0
    num_output_tokens: int = 0
    machines: list[dict[str, Any]] = field(default_factory=list)
    actors: dict[str, int] = field(default_factory=dict)
    engine: str = ""
    engine_versions: list[Short] = field(default_factory=list)
    ray: str | None = None
    left_out: list[str] = field(default_factory=list)
    cost: Rates | None = None
    counts: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> RunKey:
        """The ids that the run's rows and files carry."""
        return RunKey(run_id=self.run_id, recipe_ids=self.recipe_ids, run_date=self.run_date)

    @property
    def recipe_ids(self) -> RecipeIds:
        """The recipe ids of the run's rows."""
        return recipe_ids(self.recipe)

    def folder(self, output: str) -> str:
        """The run's folder.

        Raises:
            StorageError: the run's id is no name of a folder.
        """
        return run_folder(output, self.run_id)

    def save(self, job: Job, storage: Storage) -> None:
        """Write ``run.json``.

        Raises:
            StorageError: the output cannot be written.
        """
        content = dataclasses.asdict(self) | {
            "recipe_ids": self.recipe_ids._asdict(),  # for readers of the table
            "job": redact_uris(job.public_dict()),
            "versions": _versions() | {"code": code_digest(), "python": platform.python_version()},
        }
        write_json(content, join(self.folder(job.output), "run.json"), storage)


def open_run(
    job: Job,
    manifest_digest: str,
    recipe: dict[str, Any],
    storage: Storage,
    runs: list[Run] | None = None,
) -> tuple[Run, list[str]]:
    """Find the run with this fingerprint, or begin a new one.

    runs: of the output, if they are read already.

    With ``only_new`` an interrupted run is continued with the items of its plan; after a complete
    run a new one begins, with the media that are new by then.

    Returns the run and, for a new one, what differs from the latest run of the same job name.

    Raises:
        StorageError: the output cannot be read.
    """
    fingerprint = {
        "manifest": manifest_digest,
        "recipe": recipe_id(recipe),
        "schema_version": str(SCHEMA_VERSION),
    }
    runs = all_runs(job.output, storage) if runs is None else runs
    earlier = [run for run in runs if run.name == job.name]
    same = [run for run in earlier if run.fingerprint == fingerprint]
    # One that was only planned must not take the place of one that may have rows.
    for run in sorted(same, key=lambda run: run.starts == 0):
        if run.status == "running" or not job.input.only_new:
            if run.starts == 0 or run.cost is None:
                run = dataclasses.replace(run, cost=_known_cost(job, recipe, runs, storage))
            return run, []
    now = datetime.now(UTC)
    named_by = json.dumps([fingerprint, len(same)], sort_keys=True)
    short = hashlib.sha256(named_by.encode()).hexdigest()[:6]
    fresh = Run(
        run_id=f"{job.name}-{now:%Y%m%d}-{short}",
        name=job.name,
        run_date=f"{now:%Y-%m-%d}",
        status="running",
        fingerprint=fingerprint,
        recipe=recipe,
        created_at=now.isoformat(timespec="seconds"),
        cost=_known_cost(job, recipe, runs, storage),
    )
    if not earlier:
        return fresh, []
    latest = max(earlier, key=lambda run: run.created_at)
    changed = ["manifest"] if latest.fingerprint["manifest"] != manifest_digest else []
    changed += differences(latest.recipe, recipe, "recipe")
    if "recipe.model.engine" in changed:  # and with it what an engine keeps under its name
        changed = [name for name in changed if name not in _OF_ENGINES]
    if latest.fingerprint["schema_version"] != str(SCHEMA_VERSION):
        changed.append("schema_version")
    return fresh, [f"{name} differs from {latest.run_id}" for name in changed]


def _known_cost(
    job: Job, recipe: dict[str, Any], runs: list[Run], storage: Storage
) -> Rates | None:
    """The latest measured costs of the same model, from a calibration or a run.

    A calibration that the job file names comes first.
    """
    calibrated = read_calibration(job, recipe["model"], storage)
    if calibrated and job.cost.calibration is not None:
        return calibrated.rates
    known = [(c.created_at, c.rates) for c in (calibrated,) if c is not None]
    for run in runs:
        if run.cost and not run.cost.origin and run.recipe.get("model") == recipe["model"]:
            rates = dataclasses.replace(run.cost, origin=f"measurements of the run {run.run_id}")
            known.append((run.created_at, rates))
    return max(known, key=lambda found: found[0])[1] if known else None


def find_run(job: Job, recipe: dict[str, Any], storage: Storage, run_id: str | None = None) -> Run:
    """Find a run of this job by its id, or the latest one; its manifest may differ.

    Raises:
        JobFileError: there is no such run, or it has another recipe.
        StorageError: the output cannot be read.
    """
    named = [run for run in all_runs(job.output, storage) if run.name == job.name]
    found = [run for run in named if run_id in (None, run.run_id)]
    if not found:
        which = f"the job `{job.name}`" if run_id is None else f"the job `{job.name}`, {run_id}"
        ids = ", ".join(run.run_id for run in named)
        raise JobFileError(
            f"{job.output} has no run of {which}: `reelscribe annotate` starts one"
            + (f"; there are {ids}" if named else "")
        )
    same = [run for run in found if run.fingerprint["recipe"] == recipe_id(recipe)]
    if not same:
        latest = max(found, key=lambda run: run.created_at)
        changed = ", ".join(differences(latest.recipe, recipe, "recipe"))
        raise JobFileError(
            f"{latest.run_id} ran with other settings than this job: {changed}; give the job with "
            "its earlier settings, or let `reelscribe annotate` begin a new run"
        )
    return max(same, key=lambda run: run.created_at)


def all_runs(output: str, storage: Storage) -> list[Run]:
    """Read the ``run.json`` of every run of an output.

    Raises:
        StorageError: the output cannot be read, or a file is not a run file of this version.
    """
    listed = storage.list_files(join(output, "runs"), "*/run.json")
    folders = [file["uri"].split("/")[-2] for file in listed]
    with ThreadPoolExecutor(16) as pool:  # a nightly job has hundreds
        return list(
            pool.map(lambda run_id: _read_run(output, run_id, storage), filter(is_run_id, folders))
        )


def _read_run(output: str, run_id: str, storage: Storage) -> Run:
    """Read and check one ``run.json``; the run's id is the name of its folder, whatever it says."""
    content = read_run_file(output, run_id, storage)
    rates = content.pop("cost", None)
    try:
        run: Run = TypeAdapter(Run).validate_python(content | {"run_id": run_id})
        parts = {"fingerprint": run.fingerprint, "counts": run.counts or None}
        TypeAdapter(_Parts).validate_json(json.dumps(parts), strict=True)
        _ = run.recipe_ids  # of a recipe of another form there are none
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        uri = join(run_folder(output, run_id), "run.json")
        raise not_a_run_file(uri, f"{where}: {problem['msg']}") from None
    except (TypeError, AttributeError, KeyError, ValueError) as error:
        uri = join(run_folder(output, run_id), "run.json")
        raise not_a_run_file(uri, f"recipe: {error}") from None
    # What `complete` means is written together with the counts: without them it is not finished.
    status = run.status if run.counts else "running"
    return dataclasses.replace(run, cost=Rates.read(rates), status=status)


def redact_uris(value: Any) -> Any:
    """Remove passwords and signatures from all uris in JSON values."""
    if isinstance(value, dict):
        return {key: redact_uris(part) for key, part in value.items()}
    if isinstance(value, list):
        return [redact_uris(part) for part in value]
    return redact_uri(value) if isinstance(value, str) else value


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
