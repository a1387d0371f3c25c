"""What determines a run's answers, and nothing else: not paths, pool sizes or credentials."""

import hashlib
import json
from typing import Any

from pipeline.parse import TASKS
from pipeline.prompt import PAIR_LAYOUT
from schemas.job import Job


def recipe(job: Job, model_identity: str) -> dict[str, Any]:
    """Everything that the answers follow from, as JSON values.

    model_identity: names the weights, as ``inspect_checkpoint`` gives it.
    """
    return {
        "model": {
            "weights": model_identity,
            **job.model.model_dump(
                mode="json",
                include={"engine", "dtype", "attn_implementation", "max_model_len", "yarn"},
            ),
            **_of_engine(job),
        },
        "tasks": {
            question.task: {
                "version": TASKS[question.task].version,
                "prompts": {
                    media_type: TASKS[question.task].prompt(question, media_type)
                    for media_type in sorted(TASKS[question.task].media_types)
                },
                "max_new_tokens": question.max_new_tokens,
                **({"tools": question.tools} if question.tools else {}),
                **({"add_vision_id": True} if question.add_vision_id else {}),
                **({"json_schema": question.json_schema} if question.json_schema else {}),
            }
            for question in job.questions()
        },
        # Both decoders give the same frames: which one ran is in the row, not in the recipe.
        "sampling": job.sampling.model_dump(mode="json", exclude={"decoder"} | _idle_sampling(job)),
        "budget": job.budget.model_dump(mode="json"),
        "generation": job.generation.model_dump(mode="json", exclude=_idle_generation(job)),
        "layout": PAIR_LAYOUT,
    }


def _of_engine(job: Job) -> dict[str, Any]:
    """Of an engine's own settings what its answers follow from: not how long they take."""
    if job.model.engine == "simulated":
        kept = job.model.simulated.model_dump(mode="json", include={"output_tokens"})
    elif job.model.engine == "vllm":
        kept = job.model.vllm.model_dump(mode="json", include={"quantization", "engine_args"})
    else:
        return {}
    return {job.model.engine: kept}


def _idle_sampling(job: Job) -> set[str]:
    """Settings that another one puts out of force."""
    return {"fps", "min_frames", "max_frames"} if job.sampling.num_frames is not None else set()


def _idle_generation(job: Job) -> set[str]:
    idle = {"defaults"}  # they are in the other settings
    if job.generation.temperature > 0:
        return idle
    retry = job.generation.retry
    has_chance = retry is not None and retry.temperature > 0
    return idle | ({"top_p", "top_k"} if has_chance else {"seed", "top_p", "top_k"})


def recipe_id(recipe: dict[str, Any]) -> str:
    """Hash of a recipe."""
    canonical = json.dumps(recipe, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Dotted names of the values in which two recipes differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        return [
            found
            for key in keys
            for found in differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if old == new else [name]
