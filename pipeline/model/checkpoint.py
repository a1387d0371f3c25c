"""Read what a run needs of a checkpoint before its weights: model type, context, identity."""

import importlib.util
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.model.checkpoint_files import check_weights, folder_digest, optional_json
from pipeline.model.family import (
    MODEL_TYPES,
    PROCESSOR_FILES,
    Processors,
    other_patches,
    quantised,
)
from pipeline.model.memory import ModelMemory
from pipeline.model.sizes import ModelSize
from schemas.errors import ModelError
from schemas.job.job import Job
from schemas.job.model import PUBLISHED_NAMES, Model, Yarn

GENERATION_KEYS = ("temperature", "top_p", "top_k", "repetition_penalty")
THINKING_TOKENS = 8192
"""Default ``max_new_tokens`` of a Thinking checkpoint. Its authors recommend up to 40,960, which
is too long for most contexts."""

_WRONG_VALUES = (TypeError, ValueError, AttributeError, ArithmeticError)
"""What sizes of a wrong kind raise where they are used."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Facts from a checkpoint's files.

    max_model_len: tokens; the job's, else the context of the checkpoint.
    identity: names the weights, wherever they are stored; part of the recipe.
    generation: the GENERATION_KEYS that its ``generation_config.json`` sets.
    quantization: how the weights are quantised, as ``quantization`` returns it.
    memory: what its model takes.
    processors: what its own processors take at most.
    """

    model_type: str
    max_model_len: int
    identity: str
    generation: dict[str, Any]
    quantization: str | None
    memory: ModelMemory
    processors: Processors = field(default_factory=Processors)


def inspect_checkpoint(model: Model) -> Checkpoint:
    """Read a checkpoint's configuration from a folder or the hub (if offline, from its cache).

    Raises:
        ModelError: there is no such checkpoint, Reelscribe does not run its type, its weights are
            missing, or it or this machine cannot do what the job requests.
    """
    folder = Path(model.source)
    if model.source.startswith(("/", ".", "~")) and not folder.is_dir():
        raise ModelError(f"model.source: there is no folder {model.source}")
    needs_flash = model.attn_implementation == "flash_attention_2"
    if needs_flash and importlib.util.find_spec("flash_attn") is None:
        raise ModelError(
            "model.attn_implementation is flash_attention_2, which needs the package flash_attn: "
            "install it, or set sdpa"
        )
    # It logs each attempt; the error below has the reason.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        config, commit = _read_json(model, "config.json")
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model.source {model.source!r} is neither a checkpoint folder nor a model that can be "
            f"loaded from the hub: {reason}"
        ) from None
    model_type = config.get("model_type")
    if model_type not in MODEL_TYPES:
        raise ModelError(
            f"model.source {model.source!r} is a {model_type!r} model; Reelscribe runs "
            f"{PUBLISHED_NAMES} (model_type {', '.join(MODEL_TYPES)})"
        )
    context, memory = _sizes(config, model)
    if model.max_model_len is not None and model.max_model_len > context:
        raise ModelError(
            f"model.max_model_len {model.max_model_len} is over the checkpoint's context of "
            f"{context}" + ("" if model.yarn else "; model.yarn can extend it")
        )
    processors = _processor_files(model)
    if others := "; ".join(other_patches(config, processors)):
        raise ModelError(
            f"model.source: {model.source} was trained with other patches: {others}; use a "
            "checkpoint with those of Qwen3-VL"
        )
    if folder.is_dir():
        if model.engine != "simulated":
            check_weights(folder)
        identity = folder_digest(folder)
    else:
        identity = f"{model.source}@{commit or model.revision or 'main'}"
    if model.adapter is not None:
        identity += f"+{_adapter_identity(model.adapter)}"
    return Checkpoint(
        model_type=model_type,
        max_model_len=model.max_model_len or context,
        identity=identity,
        generation=_recommended_generation(model),
        quantization=quantization(config),
        memory=memory,
        processors=Processors.of(processors),
    )


def quantization(config: Mapping[str, Any]) -> str | None:
    """The method that quantised a checkpoint's weights, such as ``fp8``; None: they are not.

    config: of its ``config.json``.
    """
    found = quantised(config)
    return found.method if found else None


def check_engine(checkpoint: Checkpoint, model: Model) -> None:
    """Check that the job's engine runs weights of this kind; ``auto`` counts as transformers.

    Raises:
        ModelError: they are quantised, and the engine is transformers.
    """
    if model.engine in ("auto", "transformers") and checkpoint.quantization is not None:
        raise ModelError(quantized_problem(model.source, checkpoint.quantization))


def quantized_problem(source: str, method: str) -> str:
    """Why quantised weights are not run by transformers, and what to do."""
    return (
        f"the weights of {source} are quantised ({method}), which transformers computes only with "
        "further packages and kernels, or by widening them: use the engine vllm on a GPU "
        "(model.engine), or the checkpoint with bfloat16 weights"
    )


def with_generation_defaults(job: Job, checkpoint: Checkpoint, *, is_thinking: bool) -> Job:
    """Return the job with its unset generation settings filled in, by ``generation.defaults``."""
    given = job.generation
    if given.defaults == "greedy" or (given.defaults == "auto" and not is_thinking):
        return job
    defaults = checkpoint.generation | ({"max_new_tokens": THINKING_TOKENS} if is_thinking else {})
    missing = {key: v for key, v in defaults.items() if key not in given.model_fields_set}
    return job.model_copy(update={"generation": given.model_copy(update=missing)})


def _recommended_generation(model: Model) -> dict[str, Any]:
    config = optional_json(model.source, model.revision, "generation_config.json")
    if not isinstance(config, dict) or not config.get("do_sample"):
        return {}
    return {key: config[key] for key in GENERATION_KEYS if config.get(key) is not None}


def _processor_files(model: Model) -> dict[str, Any]:
    """The configurations of a checkpoint's processors, of those that it has: as transformers."""
    source, revision = model.source, model.revision
    joined = optional_json(source, revision, "processor_config.json")
    joined = joined if isinstance(joined, dict) else {}
    found = {
        kind: joined.get(f"{kind}_processor") or optional_json(source, revision, name)
        for kind, name in PROCESSOR_FILES.items()
    }
    return {kind: config for kind, config in found.items() if config is not None}


def _read_json(model: Model, name: str) -> tuple[dict[str, Any], str | None]:
    """Read a JSON file of a checkpoint; returns it and the commit of the hub that it is from.

    transformers' configuration classes would import torch, which takes seconds.

    Raises:
        OSError, ValueError: there is no such file, or it is no JSON object.
    """
    from transformers.utils.hub import cached_file, extract_commit_hash

    file = cached_file(model.source, name, revision=model.revision)
    if file is None:
        raise OSError(f"{model.source} has no {name}")
    config = json.loads(Path(file).read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{file} is no JSON object")
    return config, extract_commit_hash(file, None)


def _sizes(config: dict[str, Any], model: Model) -> tuple[int, ModelMemory]:
    """The context in tokens, and what the model takes.

    Raises:
        ModelError: names a field of the configuration that is missing, or has no value of its kind.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        return _context(config, model), _memory(config, model)
    except KeyError as error:
        reason = f"it does not say {error.args[0]}"
    except (*_WRONG_VALUES, OSError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())
    raise ModelError(
        f"model.source: the config.json of {model.source} cannot be used: {reason}; copy the "
        "checkpoint again, or correct the file"
    )


def _context(config: dict[str, Any], model: Model) -> int:
    """The context in tokens, with what ``model.yarn`` adds."""
    text = config.get("text_config")
    context = text.get("max_position_embeddings") if isinstance(text, Mapping) else None
    # A default of the class, or computed by it, or wrong, which the class says.
    if not isinstance(context, int) or model.yarn is not None:
        loaded = load_config(model.source, model.revision, model.yarn)
        context = loaded.text_config.max_position_embeddings
    return int(context)


def _memory(config: dict[str, Any], model: Model) -> ModelMemory:
    try:
        found = ModelMemory.of(config, model)
        if _are_numbers(found.size):
            return found
    except (KeyError, *_WRONG_VALUES):
        pass
    # A default of the class, or a wrong value: the class says in which field.
    given = config.get("dtype") or config.get("torch_dtype")
    loaded = load_config(model.source, model.revision, model.yarn).to_dict()
    found = ModelMemory.of(loaded | {"dtype": given}, model)
    if not _are_numbers(found.size):
        raise ValueError(f"a size is not a number, or negative, in {found.size}")
    return found


def _are_numbers(size: ModelSize) -> bool:
    """Whether a model's sizes are numbers, as far down as their parts go."""
    parts = (size.vision, size.text, size.text.linear, size.text.streams)
    sizes = [pair for part in parts if part for pair in vars(part).items()]
    numbers = [value for name, value in sizes if name not in ("linear", "streams")]
    return all(isinstance(number, int) and number >= 0 for number in numbers)


def load_config(source: str, revision: str | None, yarn: Yarn | None) -> Any:
    """Load a checkpoint's configuration, with its context extended if ``yarn`` is given.

    Raises:
        OSError, ValueError: there is no such checkpoint.
    """
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    return config if yarn is None else extend_context(config, yarn)


def extend_context(config: Any, yarn: Yarn) -> Any:
    """Write YaRN's settings into a checkpoint's configuration, and return it."""
    text = getattr(config, "text_config", None)
    if text is None:  # vLLM calls this once before it has the model's configuration
        return config
    original = yarn.original_max_position_embeddings or text.max_position_embeddings
    text.rope_parameters = {  # keeps the M-RoPE settings
        **text.rope_parameters,
        "rope_type": "yarn",
        "factor": yarn.factor,
        "original_max_position_embeddings": original,
    }
    text.max_position_embeddings = int(original * yarn.factor)
    return config


def _adapter_identity(adapter: str) -> str:
    folder = Path(adapter)
    if not folder.is_dir():
        if adapter.startswith(("/", ".", "~")):
            raise ModelError(f"model.adapter: there is no folder {adapter}")
        return adapter
    if not (folder / "adapter_config.json").exists():
        raise ModelError(
            f"model.adapter: {folder} is not an adapter: it has no adapter_config.json"
        )
    return folder_digest(folder)
