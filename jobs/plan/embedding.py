"""Checkpoints that embed: how they are recognised, and what a job takes from them.

Their ``config.json`` is that of a model that generates. What they are is written in the files of
the library Sentence Transformers: ``modules.json`` names a pooling module, and its configuration
says that the vector is the hidden state of the last token.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.model.checkpoint import Checkpoint
from pipeline.model.checkpoint_files import optional_json
from schemas.errors import ModelError
from schemas.job.job import Job
from schemas.task import EMBEDDING

_MODULES = "modules.json"
_COMPUTED = ("Transformer", "Pooling", "Normalize")
_FOLDER = re.compile(r"\w{1,64}")


@dataclass(frozen=True, kw_only=True)
class Embedding:
    """What a checkpoint says of its vectors.

    size: of a vector, that of the hidden states.
    instruction: the one that its files name as the default; None: they name none.
    """

    size: int
    instruction: str | None = None


def read_embedding(source: str, revision: str | None, size: int) -> Embedding | None:
    """Read whether a checkpoint embeds, from a folder or the hub; None: it generates.

    size: of its hidden states.

    Raises:
        ModelError: it embeds in a way that is not computed here, or the hub does not say.
    """
    modules = optional_json(source, revision, _MODULES)
    if not isinstance(modules, list):
        return None
    found = {_kind(module): module for module in modules}
    if "Pooling" not in found:
        return None
    if others := sorted(found.keys() - set(_COMPUTED)):
        raise ModelError(
            f"model.source: {source} is a checkpoint for embeddings with {', '.join(others)} in "
            f"its {_MODULES}; computed are {', '.join(_COMPUTED)}"
        )
    folder = str(found["Pooling"].get("path"))
    config = None
    if _FOLDER.fullmatch(folder):
        config = optional_json(source, revision, f"{folder}/config.json")
    modes = _pooling_modes(config) if isinstance(config, dict) else []
    if modes != ["lasttoken"]:
        raise ModelError(
            f"model.source: {source} is a checkpoint for embeddings whose pooling is "
            f"{' and '.join(modes) or 'not named in its files'}; computed is lasttoken, that of "
            "Qwen3-VL-Embedding"
        )
    return Embedding(size=size, instruction=_default_instruction(source, revision))


def with_embedding(job: Job, checkpoint: Checkpoint, folder: Path | None = None) -> Job:
    """Return the job with what its embeddings take from the checkpoint: size, instruction.

    folder: has the checkpoint's files; None: where ``model.source`` says.

    Raises:
        ModelError: the checkpoint does not fit the job's tasks, or embeds in a way that is not
            computed here.
    """
    source, revision = job.model.source, job.model.revision
    if folder is not None:
        source, revision = str(folder), None
    return filled_in(job, read_embedding(source, revision, checkpoint.memory.size.text.width))


def filled_in(job: Job, embedding: Embedding | None) -> Job:
    """Return the job with the size and the instruction of a checkpoint's vectors.

    embedding: None: the checkpoint generates.

    Raises:
        ModelError: the checkpoint embeds and a task needs text, or the other way round, or the
            vectors are smaller than a task's ``dimensions``.
    """
    source = job.model.source
    vectors = [task for task in job.tasks if task.task == EMBEDDING]
    if embedding is None:
        if vectors:
            raise ModelError(
                f"the task embedding needs a checkpoint for embeddings, such as "
                f"Qwen/Qwen3-VL-Embedding-2B, and model.source {source!r} is none: it has no "
                f"{_MODULES} that names its pooling. Early copies of such checkpoints lack that "
                "file and 1_Pooling: copy them from the hub"
            )
        return job
    if len(vectors) < len(job.tasks):
        names = ", ".join(task.name for task in job.tasks if task.task != EMBEDDING)
        raise ModelError(
            f"model.source {source!r} is a checkpoint for embeddings, which answers only the task "
            f"embedding, and the job asks for {names}: set `tasks: [embedding]`, or another "
            "checkpoint"
        )
    tasks = []
    for task in job.tasks:
        if task.dimensions is not None and task.dimensions > embedding.size:
            raise ModelError(
                f"{task.name}: dimensions is {task.dimensions}, and the vectors of {source} have "
                f"{embedding.size} numbers"
            )
        given = {
            "dimensions": task.dimensions or embedding.size,
            "instruction": task.instruction or embedding.instruction,
        }
        tasks.append(task.model_copy(update=given))
    return job.model_copy(update={"tasks": tuple(tasks)})


def _kind(module: Any) -> str:
    """The class of a module, without the name of its Python module."""
    return str(module.get("type")).rpartition(".")[2] if isinstance(module, Mapping) else "?"


def _pooling_modes(config: Mapping[str, Any]) -> list[str]:
    """The modes of a pooling module: one by name, or several by flags, as older files have them."""
    if isinstance(named := config.get("pooling_mode"), str):
        return [named]
    return [
        name.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
        for name, is_on in sorted(config.items())
        if name.startswith("pooling_mode_") and is_on
    ]


def _default_instruction(source: str, revision: str | None) -> str | None:
    config = optional_json(source, revision, "config_sentence_transformers.json")
    if not isinstance(config, dict) or not isinstance(prompts := config.get("prompts"), dict):
        return None
    text = prompts.get(config.get("default_prompt_name"))
    return text if isinstance(text, str) and text.strip() else None
