"""One worker of ``reelscribe finetune``: transformers' Trainer inside Ray Train."""

import json
import math
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.same_code import check_code
from pipeline.storage import Storage, join
from schemas.finetune import FinetuneJob


def train_worker(config: dict[str, Any]) -> None:
    """One Ray Train worker: transformers' Trainer does the rest."""
    import ray
    import torch
    from transformers import TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint

    from pipeline.training.load import export
    from pipeline.training.train import make_trainer

    check_code(config["code"])
    job, train, validation, storage = ray.get(config["inputs"][0])
    queue, rank = config["queue"], ray.train.get_context().get_world_rank()
    torch.set_num_threads(config["num_threads"])

    with tempfile.TemporaryDirectory(prefix="reelscribe-") as scratch:
        folder = Path(job.output if is_plain(job.output) else scratch)
        checkpoints = Path(scratch) / "checkpoints"
        if not is_plain(job.output):
            logs = ("metrics.jsonl",) if rank == 0 else ()  # the others have none of their own
            _download((*logs, f"failed_samples-{rank}.jsonl"), folder, job, storage)

        def upload() -> None:
            if not is_plain(job.output):
                _upload(folder, job.output, storage)

        class _Report(TrainerCallback):
            """Hands checkpoints to Ray Train, which stores them whole or not at all."""

            def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                upload()
                # Of every worker: each has its own random state, and may have its own shards.
                found = get_last_checkpoint(args.output_dir)
                checkpoint = ray.train.Checkpoint.from_directory(found) if found else None
                ray.train.report({"step": state.global_step}, checkpoint=checkpoint)

        def tell(entry: dict[str, Any]) -> None:
            queue.put(entry)

        trainer = make_trainer(
            job,
            train=train,
            validation=validation,
            storage=storage,
            folder=folder,
            checkpoints=checkpoints,
            use_gpu=config["use_gpu"],
            callbacks=[_Report()],
            tell=tell,
        )
        start = ray.train.get_checkpoint()
        if start is None:
            trainer.train()
        else:
            resumed = _fetched(start, checkpoints / "resumed")
            # Trainer would make one more step of a training that is done.
            if _reached(resumed) >= (job.training.max_steps or math.inf):
                trainer._load_from_checkpoint(resumed)
            else:
                trainer.train(resume_from_checkpoint=resumed)
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            trainer.save_model(str(folder / "model"))  # all workers together gather the weights
        if trainer.is_world_process_zero():
            model = trainer.accelerator.unwrap_model(trainer.model)
            is_whole = not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
            source = job.model.source, job.model.revision
            export(model, *source, job.lora, folder / "model", has_weights=is_whole)
        upload()


def _fetched(checkpoint: Any, folder: Path) -> str:
    """Where a checkpoint is on this machine, which one of its workers fetches it to.

    Not Ray's `as_directory`: a worker that comes late fetches once more, into the folder that the
    others read (https://github.com/ray-project/ray/blob/ray-2.60.0/python/ray/train/_checkpoint.py).
    """
    import ray
    from torch import distributed

    context = ray.train.get_context()
    mine = None
    if _is_local(checkpoint.filesystem):
        mine = str(checkpoint.path)
    elif context.get_local_rank() == 0:
        mine = str(checkpoint.to_directory(str(folder)))
    places: list[Any] = [None] * context.get_world_size()
    # Also waits until all have fetched.
    distributed.all_gather_object(places, (context.get_node_rank(), mine))
    return str(next(path for node, path in places if node == context.get_node_rank() and path))


def _is_local(filesystem: Any) -> bool:
    from pyarrow.fs import LocalFileSystem

    return isinstance(filesystem, LocalFileSystem)


def _reached(checkpoint: str) -> int:
    """The step at which a checkpoint was saved."""
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text())
    return int(state["global_step"])


def is_plain(output: str) -> bool:
    """Whether the output is a folder, which may be a mounted one."""
    return "://" not in output


def _download(names: Sequence[str], folder: Path, job: FinetuneJob, storage: Storage) -> None:
    """Fetch the logs that an interrupted run left in the output, to go on with them."""
    for name in names:
        with suppress(FileNotFoundError):
            (folder / name).write_bytes(storage.read_bytes(join(job.output, name)))


def _upload(folder: Path, output: str, storage: Storage) -> None:
    """Copy what a worker wrote to the output: logs and the exported model."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and name.parts[0] != "checkpoints":
            fs, target = storage.filesystem(join(output, name.as_posix()))
            fs.put_file(str(path), target)
