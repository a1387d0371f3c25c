"""The recipe of a run: all settings that determine its answers, not paths, pools or credentials.

A row's recipe id is the hash of what concerns it: another ``sampling.fps`` asks no image again.
"""

import hashlib
import json
from typing import Any

from pipeline.model.prompter import PAIR_LAYOUT
from pipeline.tasks.registry import TASKS
from schemas.job.job import Job
from schemas.tables.annotation import RecipeIds


def recipe(job: Job, model_identity: str) -> dict[str, Any]:
    """The settings that determine the answers, as JSON values.

    job: with its engine chosen; ``auto`` counts as transformers.
    model_identity: identity of the weights, as ``inspect_checkpoint`` returns it.
    """
    return {
        "model": {
            "weights": model_identity,
            **job.model.model_dump(
                mode="json",
                include={"dtype", "attn_implementation", "max_model_len", "yarn"},
            ),
            "engine": "transformers" if job.model.engine == "auto" else job.model.engine,
            **_engine_settings(job),
        },
        "tasks": {
            question.name: {
                **({"task": question.task} if question.has_own_name else {}),
                "version": TASKS[question.task].version,
                "prompts": {
                    media_type: TASKS[question.task].prompt(question, media_type)
                    for media_type in sorted(TASKS[question.task].media_types)
                },
                "max_new_tokens": question.max_new_tokens,
                **({"tools": question.tools} if question.tools else {}),
                **({"strict_labels": True} if question.strict_labels else {}),
                **({"add_vision_id": True} if question.add_vision_id else {}),
                **({"json_schema": question.json_schema} if question.json_schema else {}),
                **({"instruction": question.instruction} if question.is_vector else {}),
                **({"dimensions": question.dimensions} if question.is_vector else {}),
            }
            for question in job.questions()
        },
        # Without the decoder: both give the same frames, and the row says which one ran.
        "sampling": job.sampling.model_dump(
            mode="json", exclude={"decoder"} | _unused_sampling(job)
        ),
        "budget": job.budget.model_dump(mode="json"),
        "generation": job.generation.model_dump(mode="json", exclude=_unused_generation(job)),
        "layout": PAIR_LAYOUT,
    }


def _engine_settings(job: Job) -> dict[str, Any]:
    """The settings of the engine that change answers, not those that change only its speed."""
    if job.model.engine == "simulated":
        kept = job.model.simulated.model_dump(mode="json", include={"output_tokens"})
    elif job.model.engine == "vllm":
        kept = job.model.vllm.model_dump(mode="json", include={"quantization", "engine_args"})
    else:
        return {}
    return {job.model.engine: kept}


def _unused_sampling(job: Job) -> set[str]:
    """Settings of ``sampling`` that another one overrides."""
    return {"fps", "min_frames", "max_frames"} if job.sampling.num_frames is not None else set()


def _unused_generation(job: Job) -> set[str]:
    """Settings of ``generation`` that do not apply: those of sampling tokens, if it is greedy."""
    unused = {"defaults"}  # their values are in the other settings
    if job.generation.reasoning != "on":  # the prompt is as it was before there was the setting
        unused.add("reasoning")
    if job.generation.temperature > 0:
        return unused
    retry = job.generation.retry
    retry_samples = retry is not None and retry.temperature > 0
    return unused | ({"top_p", "top_k"} if retry_samples else {"seed", "top_p", "top_k"})


def recipe_id(recipe: dict[str, Any]) -> str:
    """Hash of a recipe, 16 hexadecimal digits."""
    canonical = json.dumps(recipe, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def recipe_ids(recipe: dict[str, Any]) -> RecipeIds:
    """Hash what of a run's recipe concerns each kind of row."""
    kinds = {kind: recipe_id(_of_media(recipe, kind)) for kind in _NOT_OF}
    return RecipeIds(**kinds, unread=recipe_id(recipe))


_NOT_OF = {
    "image": {"sampling", "layout", "frame_tokens", "unit_tokens", "video_rule"},
    "video": {"image_tokens"},
    "messages": set[str](),
}
"""Sections of a recipe, and keys of ``budget``, that do not concern a kind of row."""


def _of_media(recipe: dict[str, Any], kind: str) -> dict[str, Any]:
    """What of a recipe concerns a kind of row: without other prompts, tasks and sizes."""
    kept = {name: part for name, part in recipe.items() if name not in _NOT_OF[kind]}
    budget = recipe.get("budget", {})
    return kept | {
        "budget": {name: size for name, size in budget.items() if name not in _NOT_OF[kind]},
        "tasks": {
            name: task | {"prompts": task["prompts"][kind]}
            for name, task in recipe.get("tasks", {}).items()
            if kind in task["prompts"]
        },
    }


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Dotted names of the values that differ between two recipes."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(set(old) | set(new))
        return [
            found
            for key in keys
            for found in differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if old == new else [name]
