"""Chain the stages on Ray: the whole pipeline, and what each stage takes, on one screen.

    plan:      manifest rows -> Plan (CPU actors)                                   -> units
    annotate:  units -> Prepare (CPU actors) -> Generate (GPU actors) -> Commit -> Parquet

A stage's class does its costly set-up once per actor and then maps Arrow batches. Stages know
nothing of each other; the schemas in ``schemas/unit.py`` are the boundaries between them.
"""

import dataclasses
import functools
import hashlib
import logging
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.decode import decode_unit
from pipeline.parse import TASKS
from pipeline.plan import Planner
from pipeline.prompt import Prompter, Vision
from pipeline.storage import Storage
from pipeline.write import RunKey, annotation_row, write_part
from schemas.errors import ErrorRecord, ErrorType, ResourceError, UnitError
from schemas.job import Job
from schemas.manifest import MediaItem
from schemas.unit import (
    ANSWERED,
    PREPARED,
    UNIT,
    AnsweredUnit,
    PreparedUnit,
    Unit,
    UnitStatus,
    from_table,
    to_table,
)

logger = logging.getLogger(__name__)

PLAN_BATCH_ITEMS = 64
MAX_TASK_RETRIES = 3

COMMITTED = pa.schema(
    [
        pa.field("unit_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("predicted_cost", pa.float64(), nullable=False),
        pa.field("num_output_tokens", pa.int64(), nullable=False),
    ]
)
"""What comes back to the driver of each committed unit: enough to show progress."""


@dataclass(frozen=True, kw_only=True)
class Pools:
    """How many actors of each kind, and what each takes."""

    decoders: int
    cpus_per_decoder: float
    replicas: int
    cpus_per_replica: float
    gpus_per_replica: float


@functools.cache
def code_digest() -> str:
    """Hash of the code that runs in the actors; driver and workers must agree on it."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted([*root.glob("schemas/*.py"), *root.glob("pipeline/**/*.py")]):
        digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def check_code(expected: str) -> None:
    """Compare this worker's code with the driver's.

    Raises:
        ResourceError: they differ.
    """
    if code_digest() != expected:
        raise ResourceError(
            f"this worker runs other code ({code_digest()}) than the driver ({expected}): "
            "install the same version of reelscribe on every node"
        )


class Plan:
    """Stage: manifest rows in, units out."""

    def __init__(self, job: Job, max_model_len: int, storage: Storage, code: str) -> None:
        check_code(code)
        self._planner = Planner(job, max_model_len, storage)

    def __call__(self, batch: dict[str, Any]) -> pa.Table:
        """Plan a batch of media items."""
        items: list[MediaItem] = list(batch["item"])
        return to_table(self._planner.plan(items), UNIT)


class Prepare:
    """Stage: units in, frames and token ids out. Full-size frames stay inside."""

    def __init__(self, job: Job, storage: Storage, code: str) -> None:
        check_code(code)
        self._job = job
        self._storage = storage
        self._questions = {question.task: question for question in job.questions()}
        self._prompter = Prompter(job.model.source, job.model.revision)
        self._num_threads = max(1, int(job.resources.cpus_per_decoder))

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Decode unit by unit, so that memory holds one unit's frames."""
        for unit in from_table(batch):
            yield to_table([self.prepare(unit)], PREPARED)

    def prepare(self, unit: Unit) -> PreparedUnit:
        """Decode one unit and build its prompts; a unit that cannot be done says why."""
        fields = {field.name: getattr(unit, field.name) for field in dataclasses.fields(unit)}
        waiting = PreparedUnit(**fields)
        if unit.status == UnitStatus.FAILED:
            return waiting
        started = time.perf_counter()
        try:
            prepared = self._prepare(waiting)
        except UnitError as error:
            problem = error
        except Exception as error:  # the stage's boundary: hostile media costs its own row only
            logger.exception("decoding %s", unit.unit_id)
            problem = UnitError(
                ErrorType.MEDIA_UNREADABLE, f"decoding failed: {type(error).__name__}: {error}"
            )
        else:
            return dataclasses.replace(prepared, decode_seconds=time.perf_counter() - started)
        failed = waiting.failed(ErrorRecord.from_error("decode", problem))
        return dataclasses.replace(failed, decode_seconds=time.perf_counter() - started)

    def _prepare(self, unit: PreparedUnit) -> PreparedUnit:
        frames = decode_unit(
            unit, self._storage, decoder=self._job.sampling.decoder, num_threads=self._num_threads
        )
        assert unit.media is not None and unit.sampling is not None
        media_type = unit.media.media_type
        vision = Vision.of(media_type, unit.sampling, frames.pts_seconds)
        prompts = []
        for prompt in unit.prompts:
            text = TASKS[prompt.task].prompt(self._questions[prompt.task], media_type)
            ids = tuple(self._prompter.input_ids(vision, text))
            prompts.append(dataclasses.replace(prompt, input_ids=ids))
        return dataclasses.replace(
            unit,
            sampling=frames.sampling(unit.sampling),
            prompts=tuple(prompts),
            frame_data=frames.pixels.tobytes(),
            bytes_read=frames.bytes_read,
        )


class Generate:
    """Stage: frames and token ids in, raw answers out. Holds the model."""

    def __init__(self, job: Job, code: str) -> None:
        check_code(code)
        import torch

        from pipeline.engines.transformers import TransformersEngine

        on_cpu = not torch.cuda.is_available()
        threads = max(1, int(job.resources.cpus_per_replica)) if on_cpu else None
        self._broken = torch.AcceleratorError
        self._engine = TransformersEngine(job, num_threads=threads)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Answer a batch of units."""
        try:
            answered = self._engine.generate(from_table(batch, PreparedUnit))
        except self._broken:
            # The device's context is lost. Ray starts a new actor and gives it this batch again.
            logger.exception("the accelerator failed, this engine ends")
            os._exit(1)
        return to_table(answered, ANSWERED)


class Commit:
    """Stage: raw answers in, one committed Parquet file and a short account of it out."""

    def __init__(self, job: Job, key: RunKey, storage: Storage, code: str) -> None:
        check_code(code)
        self._output = job.output
        self._questions = {question.task: question for question in job.questions()}
        self._key = key
        self._storage = storage

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Parse, write one file, and tell the driver what is in it."""
        units: list[AnsweredUnit] = from_table(batch, AnsweredUnit)
        rows = [annotation_row(unit, self._questions, self._key) for unit in units]
        write_part(rows, self._output, self._key, self._storage)
        account = [
            {
                "unit_id": unit.unit_id,
                "status": row["status"],
                "predicted_cost": unit.predicted_cost,
                "num_output_tokens": sum(answer.num_output_tokens for answer in unit.answers),
            }
            for unit, row in zip(units, rows, strict=True)
        ]
        return pa.Table.from_pylist(account, schema=COMMITTED)


def build_plan(
    items: list[MediaItem], job: Job, max_model_len: int, storage: Storage, num_actors: int
) -> Any:
    """The plan's chain, as a lazy Ray Dataset of UNIT rows."""
    import ray

    blocks = max(num_actors, -(-len(items) // PLAN_BATCH_ITEMS))
    rows = ray.data.from_items([{"item": item} for item in items], override_num_blocks=blocks)
    args = (job, max_model_len, storage, code_digest())
    return stage(
        rows, Plan, args, num_actors, num_cpus=1, batch_size=PLAN_BATCH_ITEMS, batch_format="numpy"
    )


def build_annotate(
    blocks: list[pa.Table],
    job: Job,
    key: RunKey,
    storage: Storage,
    pools: Pools,
    units_per_file: int,
) -> Any:
    """The run's chain, as a lazy Ray Dataset of COMMITTED rows.

    blocks: the units to do, longest first, in pieces of about equal cost. A piece stays together
    up to the engine, which forms its batches out of it by tokens.
    """
    import ray

    code = code_digest()
    units = ray.data.from_arrow(blocks)
    prepared = stage(
        units, Prepare, (job, storage, code), pools.decoders, num_cpus=pools.cpus_per_decoder
    )
    answered = stage(
        prepared,
        Generate,
        (job, code),
        pools.replicas,
        num_cpus=pools.cpus_per_replica,
        num_gpus=pools.gpus_per_replica,
    )
    args = (job, key, storage, code)
    return stage(answered, Commit, args, 1, num_cpus=0, batch_size=units_per_file)


def stage(
    dataset: Any,
    cls: type[Any],
    args: tuple[Any, ...],
    num_actors: int,
    *,
    num_cpus: float,
    num_gpus: float = 0,
    batch_size: int | None = None,
    batch_format: str = "pyarrow",
) -> Any:
    """Map a dataset by a fixed pool of actors.

    batch_size: rows for each call; None: block by block, as they come.

    An actor that dies is started again, and its batch is tried again, a few times: Ray Data would
    try for ever. After that the run stops.
    """
    import ray

    with warnings.catch_warnings():
        # Ray means to take max_task_retries away, and has nothing in its place yet.
        warnings.simplefilter("ignore", DeprecationWarning)
        return dataset.map_batches(
            cls,
            fn_constructor_args=args,
            batch_size=batch_size,
            batch_format=batch_format,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            compute=ray.data.ActorPoolStrategy(size=num_actors),
            max_task_retries=MAX_TASK_RETRIES,
        )
