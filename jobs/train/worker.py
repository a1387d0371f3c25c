"""One worker of ``reelscribe finetune``: transformers' Trainer inside Ray Train."""

import json
import math
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.storage.storage import Storage, join
from pipeline.workers.code_version import check_code
from schemas.job.finetune import FinetuneJob
from schemas.shown import log_shown


def train_worker(config: dict[str, Any]) -> None:
    """Train, report checkpoints and logs, and export the model on the first worker.

    config: inputs (a list of one object reference: job and TrainingData), code (digest of the
        driver's code), queue (for logs), num_threads, use_gpu, memory (StepMemory or
        None).
    """
    import ray
    import torch
    from transformers import TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint

    from pipeline.training.load import export
    from pipeline.training.memory import check_fits
    from pipeline.training.train import WorkerFolders, make_trainer

    log_shown()
    check_code(config["code"])
    job, data = ray.get(config["inputs"][0])
    queue, rank = config["queue"], ray.train.get_context().get_world_rank()
    torch.set_num_threads(config["num_threads"])
    if config["use_gpu"] and config["memory"] is not None:
        check_fits(config["memory"], torch.cuda.get_device_properties(0).total_memory)

    with tempfile.TemporaryDirectory(prefix="reelscribe-") as scratch:
        folder = Path(job.output if is_local(job.output) else scratch)
        checkpoints = Path(scratch) / "checkpoints"
        if not is_local(job.output):
            logs = ("metrics.jsonl",) if rank == 0 else ()  # only the first worker writes it
            _download((*logs, f"failed_samples-{rank}.jsonl"), folder, job, data.storage)

        def upload() -> None:
            if not is_local(job.output):
                _upload(folder, job.output, data.storage)

        class _Report(TrainerCallback):  # type: ignore[misc]  # transformers is untyped
            """Passes checkpoints to Ray Train, which records only those stored completely."""

            def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                upload()
                # From every worker: each has its own random state, and may have its own shards.
                found = get_last_checkpoint(args.output_dir)
                checkpoint = ray.train.Checkpoint.from_directory(found) if found else None
                ray.train.report({"step": state.global_step}, checkpoint=checkpoint)

        trainer = make_trainer(
            job,
            data,
            WorkerFolders(logs=folder, checkpoints=checkpoints),
            use_gpu=config["use_gpu"],
            callbacks=[_Report()],
            on_log=queue.put,
        )
        start = ray.train.get_checkpoint()
        if start is None:
            trainer.train()
        else:
            resumed = _fetch(start, checkpoints / "resumed")
            # Trainer would make one more step of a finished training.
            if _saved_step(resumed) >= (job.training.max_steps or math.inf):
                trainer._load_from_checkpoint(resumed)
            else:
                trainer.train(resume_from_checkpoint=resumed)
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            trainer.save_model(str(folder / "model"))  # a collective operation: gathers the weights
        if trainer.is_world_process_zero():
            model = trainer.accelerator.unwrap_model(trainer.model)
            is_whole = not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
            source = job.model.source, job.model.revision
            export(model, *source, job.lora, folder / "model", has_weights=is_whole)
        upload()


def _fetch(checkpoint: Any, folder: Path) -> str:
    """Fetch a checkpoint, once on each machine; returns the local folder.

    Not with Ray's `as_directory`: with it a late worker fetches again, into the folder that the
    others read already (https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/train/_checkpoint.py).
    """
    import ray
    from torch import distributed

    context = ray.train.get_context()
    mine = None
    if _is_local_filesystem(checkpoint.filesystem):
        mine = str(checkpoint.path)
    elif context.get_local_rank() == 0:
        mine = str(checkpoint.to_directory(str(folder)))
    places: list[Any] = [None] * context.get_world_size()
    # Also waits until all workers have fetched.
    distributed.all_gather_object(places, (context.get_node_rank(), mine))
    return str(next(path for node, path in places if node == context.get_node_rank() and path))


def _is_local_filesystem(filesystem: Any) -> bool:
    from pyarrow.fs import LocalFileSystem

    return isinstance(filesystem, LocalFileSystem)


def _saved_step(checkpoint: str) -> int:
    """The step at which a checkpoint was saved."""
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text())
    return int(state["global_step"])


def is_local(output: str) -> bool:
    """Whether the output is a local or mounted folder."""
    return "://" not in output


def _download(names: Sequence[str], folder: Path, job: FinetuneJob, storage: Storage) -> None:
    """Download the logs of an interrupted run, to continue them."""
    for name in names:
        with suppress(FileNotFoundError):
            (folder / name).write_bytes(storage.read_bytes(join(job.output, name)))


def _upload(folder: Path, output: str, storage: Storage) -> None:
    """Upload the logs and the exported model that a worker wrote."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] != "checkpoints":
            fs, target = storage.filesystem(join(output, name.as_posix()))
            fs.put_file(str(path), target)
