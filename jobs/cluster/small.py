"""Small jobs on one machine need no Ray: decide whether a job is one, and start its engine.

The stages are the same either way (``pipeline/stages/here.py``); Ray's start and that of its actors
takes longer than such a job.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from jobs.cluster.engine_choice import chosen_here
from jobs.cluster.machines import has_session
from jobs.cluster.start import on_this_machine, running_ray
from pipeline.workers.engine_process import EngineProcess
from schemas.job.job import Job
from schemas.shown import redact_uri

MAX_SMALL = 256
"""Items, and units, of a small job: as many as one planner takes, and one block of Ray Data."""


def why_ray(job: Job, num: int, what: str, num_engines: int = 1) -> str | None:
    """Why a job runs on Ray; None: it is small.

    num: of its items, units or videos. what: their name. num_engines: for which there is room.
    """
    if reason := _why_ray_at_any_size(job):
        return reason
    if num > MAX_SMALL:
        return f"{num:,} {what} are more than {MAX_SMALL}"
    return f"there is room for {num_engines} engines" if num_engines > 1 else None


def _why_ray_at_any_size(job: Job) -> str | None:
    if job.resources.ray == "always":
        return "resources.ray is always"
    if not on_this_machine():
        return f"RAY_ADDRESS is {redact_uri(os.environ['RAY_ADDRESS'])}"
    if has_session():
        return "this process has a Ray session"
    if address := running_ray():
        return f"a Ray runs on this machine, at {address}"
    if _engine_here(job) == "vllm":  # its start takes minutes, and it works on several blocks
        return "model.engine is vllm"
    return None


def _engine_here(job: Job) -> str:
    """The job's engine, or the one that ``auto`` means on this machine."""
    return chosen_here(job).engine if job.model.engine == "auto" else job.model.engine


@contextmanager
def early_engine(job: Job) -> Iterator[EngineProcess | None]:
    """Start the engine's process, in case the job is small; None: it will not be.

    It imports its libraries, which takes seconds, while the job is opened and planned.
    """
    if _why_ray_at_any_size(job):
        yield None
        return
    has_no_gpu = job.model.device == "cpu" or job.resources.gpus_per_replica == 0
    module = f"pipeline.engines.{_engine_here(job)}.engine"
    engine = EngineProcess(module, {"CUDA_VISIBLE_DEVICES": ""} if has_no_gpu else {})
    try:
        yield engine
    finally:
        engine.close()
