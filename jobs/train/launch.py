"""Start the workers of a training on Ray, start them again after a failure, and show their logs."""

import threading
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console

from jobs.console.progress import duration
from jobs.train.placement import describe
from jobs.train.worker import is_local, train_worker
from pipeline.training.sample import TrainingData
from pipeline.workers.code_version import code_digest
from schemas.errors import ResourceError, UserError
from schemas.job.finetune import FinetuneJob
from schemas.shown import one_line, printable, redact_text

if TYPE_CHECKING:
    from pipeline.training.memory import StepMemory

MAX_FAILURES = 3
"""Failures of workers, such as a lost machine, after which one command continues the training."""
MAX_STARTS = 10
"""Attempts to place the workers, a minute each; Ray Train alone would wait for ever."""


def train_on_ray(
    job: FinetuneJob, data: TrainingData, memory: "StepMemory | None", console: Console
) -> None:
    """Train on Ray, which must be running, and print the logs.

    job: with numbers in place of ``auto``; see ``placed``.
    memory: what a step takes on a GPU, if that is known.

    Raises:
        ResourceError: the workers could not be started, or their GPUs are too small.
        UserError: as raised in a worker.
    """
    import ray
    from ray.train import (
        CheckpointConfig,
        ControllerError,
        FailureConfig,
        RunConfig,
        ScalingConfig,
        TrainingFailedError,
    )
    from ray.train.torch import TorchTrainer
    from ray.util.queue import Queue

    num_workers, cpus = job.resources.num_workers, job.resources.cpus_per_worker
    use_gpu = job.resources.use_gpu
    assert num_workers != "auto" and cpus != "auto" and use_gpu != "auto"
    workers = describe(num_workers, cpus, use_gpu=use_gpu)
    fs, path = data.storage.filesystem(job.output)
    inputs = ray.put((job, data))
    queue = Queue(actor_options={"num_cpus": 0})
    trainer = partial(
        TorchTrainer,
        train_worker,
        train_loop_config={
            "inputs": [inputs],
            "code": code_digest(),
            "queue": queue,
            "num_threads": max(1, int(cpus)),
            "use_gpu": use_gpu,
            "memory": memory,
        },
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if use_gpu else {})},
        ),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=path,
            storage_filesystem=None if is_local(job.output) else _arrow_filesystem(fs),
            checkpoint_config=CheckpointConfig(num_to_keep=job.training.save_total_limit),
            failure_config=FailureConfig(controller_failure_limit=MAX_STARTS - 1),
        ),
    )
    printer = threading.Thread(target=_print_logs, args=(queue, console), daemon=True)
    printer.start()
    try:
        # Not Ray's own retries: they would repeat errors that only the user can correct.
        for num_left in reversed(range(MAX_FAILURES + 1)):
            try:
                trainer().fit()
                break
            except ControllerError as error:
                raise ResourceError(
                    f"{workers} could not be started. If another job uses the cluster, wait until "
                    "it ends; then run this again, and it resumes from its last checkpoint. "
                    f"Ray's message: {printable(redact_text(str(error)))}"
                ) from None
            except TrainingFailedError as error:
                cause = _cause(error)
                if isinstance(cause, UserError) or not num_left:
                    raise cause from None
                reason = one_line(redact_text((str(cause).strip() or repr(cause)).splitlines()[-1]))
                message = f"a worker failed; continuing from the last checkpoint: {reason}"
                console.print(message, markup=False)
    finally:
        queue.put(None)
        printer.join(timeout=10)


def _cause(error: Exception) -> Exception:
    """The worker's UserError, or Ray's error if there is none."""
    failures = getattr(error, "worker_failures", {}) or {}
    causes = [getattr(failure, "cause", failure) for failure in failures.values()]
    return next((cause for cause in causes if isinstance(cause, UserError)), error)


def _arrow_filesystem(fs: Any) -> Any:
    from pyarrow.fs import FSSpecHandler, PyFileSystem

    return PyFileSystem(FSSpecHandler(fs))  # type: ignore[abstract]  # the stubs are wrong


def _print_logs(queue: Any, console: Console) -> None:
    """Print the first worker's logs until the queue returns None."""
    recent: deque[tuple[float, int]] = deque(maxlen=20)  # (time, step)
    while (entry := queue.get()) is not None:
        step, last = entry["step"], entry["max_steps"]
        recent.append((time.monotonic(), step))
        (started, first), left = recent[0], ""
        if step > first:
            seconds_per_step = (recent[-1][0] - started) / (step - first)
            left = f", {duration(seconds_per_step * (last - step))} left"
        shown = {k: v for k, v in entry.items() if k in ("loss", "eval_loss", "learning_rate")}
        values = ", ".join(f"{key.replace('_', ' ')} {value:.4g}" for key, value in shown.items())
        if values:
            console.print(printable(f"step {step:,} of {last:,}: {values}{left}"))
