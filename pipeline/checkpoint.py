"""What a run must know of a checkpoint before it loads its weights: kind, context, identity."""

import hashlib
import importlib.util
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import ModelError
from schemas.job import Job
from schemas.model import Model, Yarn

GENERATION_KEYS = ("temperature", "top_p", "top_k", "repetition_penalty")
THINKING_TOKENS = 8192
"""Of a Thinking checkpoint's reasoning and answer, where the job does not say. Its makers advise up
to 40,960, for which few contexts and nights are long enough."""

MODEL_TYPES = ("qwen3_vl", "qwen3_vl_moe")

_SAMPLES, _SAMPLE_BYTES = 1024, 1 << 16
"""Of weights over 64 MB so many pieces are hashed, evenly spread: a change of a layer shows."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """What its files say.

    identity: names the weights, not their place: part of the recipe.
    generation: of GENERATION_KEYS those that its ``generation_config.json`` advises.
    """

    model_type: str
    max_model_len: int
    identity: str
    generation: dict[str, Any]


def inspect_checkpoint(model: Model) -> Checkpoint:
    """Read a checkpoint's configuration, from a folder or the hub (its cache, if offline).

    Raises:
        ModelError: there is none, it is no Qwen3-VL, or its weights are missing.
    """
    folder = Path(model.source)
    if model.source.startswith(("/", ".", "~")) and not folder.is_dir():
        raise ModelError(f"model.source: there is no folder {model.source}")
    flash = model.attn_implementation == "flash_attention_2"
    if flash and importlib.util.find_spec("flash_attn") is None:
        raise ModelError(
            "model.attn_implementation is flash_attention_2, which needs the package flash_attn: "
            "install it, or set sdpa"
        )
    # It tells of each of its attempts, twice; what came of them is in the error.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        config = load_config(model.source, model.revision, model.yarn)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model.source {model.source!r} is neither a checkpoint folder nor a model that the "
            f"hub gives here: {reason}"
        ) from None
    if config.model_type not in MODEL_TYPES:
        raise ModelError(
            f"model.source {model.source!r} is a {config.model_type!r} model; Reelscribe runs "
            f"Qwen3-VL ({', '.join(MODEL_TYPES)})"
        )
    context = int(config.text_config.max_position_embeddings)
    if model.max_model_len is not None and model.max_model_len > context:
        raise ModelError(
            f"model.max_model_len {model.max_model_len} is over the checkpoint's context of "
            f"{context}" + ("" if model.yarn else "; model.yarn stretches it")
        )
    if folder.is_dir():
        if model.engine != "simulated":
            _check_weights(folder)
        identity = _folder_digest(folder)
    else:
        commit = getattr(config, "_commit_hash", None) or model.revision or "main"
        identity = f"{model.source}@{commit}"
    if model.adapter is not None:
        identity += f"+{_adapter_identity(model.adapter)}"
    return Checkpoint(
        model_type=config.model_type,
        max_model_len=model.max_model_len or context,
        identity=identity,
        generation=_advised(model),
    )


def with_advice(job: Job, checkpoint: Checkpoint, *, reasons: bool) -> Job:
    """The job, its generation settings completed as ``generation.defaults`` says.

    reasons: a Thinking checkpoint, whose template opens ``<think>``.
    """
    asked = job.generation
    if asked.defaults == "greedy" or (asked.defaults == "auto" and not reasons):
        return job
    advised = checkpoint.generation | ({"max_new_tokens": THINKING_TOKENS} if reasons else {})
    missing = {key: v for key, v in advised.items() if key not in asked.model_fields_set}
    return job.model_copy(update={"generation": asked.model_copy(update=missing)})


def _advised(model: Model) -> dict[str, Any]:
    from transformers import GenerationConfig

    try:
        advice = GenerationConfig.from_pretrained(model.source, revision=model.revision).to_dict()
    except OSError:
        return {}
    if not advice.get("do_sample"):
        return {}
    return {key: advice[key] for key in GENERATION_KEYS if advice.get(key) is not None}


def load_config(source: str, revision: str | None, yarn: Yarn | None) -> Any:
    """A checkpoint's configuration, its context stretched where YaRN is asked for.

    Raises:
        OSError, ValueError: there is none.
    """
    from transformers import AutoConfig

    config: Any = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    return config if yarn is None else stretched(config, yarn)


def stretched(config: Any, yarn: Yarn) -> Any:
    """A checkpoint's configuration, its context stretched."""
    text = getattr(config, "text_config", None)
    if text is None:  # vLLM also asks with a configuration that is not the model's yet
        return config
    original = yarn.original_max_position_embeddings or text.max_position_embeddings
    text.rope_parameters = {  # what it says of M-RoPE stays
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
        raise ModelError(f"model.adapter: {folder} has no adapter_config.json: is it an adapter?")
    return _folder_digest(folder)


def _check_weights(folder: Path) -> None:
    """Open every weight file: else only an actor would notice one that is missing or cut."""
    from safetensors import SafetensorError, safe_open

    names = {path.name for path in folder.glob("*.safetensors")}
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names |= set(json.loads(index.read_text())["weight_map"].values())
    if not names:
        raise ModelError(f"{folder} holds no *.safetensors weights")
    for name in sorted(names):
        try:
            with safe_open(folder / name, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"the weights {folder / name} cannot be read: {error}") from None


def _folder_digest(folder: Path) -> str:
    """Hash a checkpoint's files: small ones whole, of large weights 1,024 pieces of 64 KB."""
    weights = sorted(folder.glob("*.safetensors"))
    configs = [*folder.glob("*.json"), *folder.glob("*.jinja"), *folder.glob("*.txt")]
    digest = hashlib.sha256()
    for path in sorted(configs):
        digest.update(path.name.encode() + path.read_bytes())
    for path in weights:
        size = path.stat().st_size
        digest.update(f"{path.name}{size}".encode())
        step = max(size // _SAMPLES, _SAMPLE_BYTES)
        with path.open("rb") as file:
            for start in range(0, size, step):
                file.seek(start)
                digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]
