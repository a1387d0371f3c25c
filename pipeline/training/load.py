"""Load the model to train, and export the trained one."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from pipeline.engines.transformers.load import load_weights
from pipeline.training.attention import IMPLEMENTATION, separate_conversations
from pipeline.training.optimizer import choose_parameters, with_lora
from schemas.job.finetune import FinetuneJob, Lora

# All files of a published checkpoint except its weights.
_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
_MTP = "mtp_num_hidden_layers"
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def recompute_name(owner: type) -> str:
    """The name of gradient checkpointing in this version of transformers, which 5.23 changed.

    owner: TrainingArguments or PreTrainedModel; later versions warn about the old name.
    """
    new = "activation_checkpointing"
    is_new = hasattr(owner, new) or hasattr(owner, f"{new}_enable")
    return new if is_new else "gradient_checkpointing"


def enable_recompute(model: Any) -> None:
    """Compute a model's activations again in the backward pass."""
    getattr(model, f"{recompute_name(PreTrainedModel)}_enable")()


def weights_dtype(job: FinetuneJob, *, is_bf16: bool) -> Literal["float32", "bfloat16"]:
    """The type of the weights in training, as the job says, or what ``auto`` means.

    bfloat16 with LoRA, whose base weights are never changed: float32 would take twice the memory,
    and be converted for every product anyway. Else float32, as bfloat16 is too coarse for the
    steps of AdamW; also with FSDP, which joins weights and adapters to tensors of one type.

    is_bf16: training computes in bfloat16.
    """
    if job.model.dtype != "auto":
        return job.model.dtype
    is_frozen = job.lora is not None and not job.trainer.get("fsdp")
    return "bfloat16" if is_frozen and is_bf16 else "float32"


def load_model(job: FinetuneJob, *, is_bf16: bool = False) -> nn.Module:
    """Load the checkpoint; only the parts that the job trains, or LoRA adapters, are trainable.

    is_bf16: training computes in bfloat16.

    Raises:
        ModelError: the checkpoint cannot be loaded, or ``lora.target_modules`` names no module.
    """
    dtype = weights_dtype(job, is_bf16=is_bf16)
    model = load_weights(job.model.model_copy(update={"dtype": dtype}), IMPLEMENTATION)
    return trainable(model, job)


def trainable(model: nn.Module, job: FinetuneJob) -> nn.Module:
    """Make what the job trains trainable, and freeze the rest; with LoRA, the model with adapters.

    Its linear layers then read each conversation of a row by itself.

    Raises:
        ModelError: ``lora.target_modules`` names no module.
    """
    separate_conversations(model)
    if job.lora is not None:
        return with_lora(model, job.lora)
    choose_parameters(model, job.tune)
    return model


def export(
    model: Any,
    source: str,
    revision: str | None,
    lora: Lora | None,
    folder: Path,
    *,
    has_weights: bool = True,
) -> None:
    """Write a checkpoint in the published layout: weights, tokenizer, template, processors.

    source, revision: of the checkpoint that was trained.
    lora: with ``merge``, its adapters are merged into the weights; else they are written apart.
    folder: existing files are replaced.
    has_weights: the model has all weights; false if a sharded model's weights and configuration
        are in ``folder`` already.

    Whole checkpoints have the source's dtype: training keeps float32, and an engine that takes a
    checkpoint as it is would need twice the memory. Adapters stay float32.

    Layers that guess further tokens (``mtp``) are in no model of transformers, so they are neither
    trained nor written, and the configuration says that there are none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    origin = _source_folder(source, revision)
    for path in [path for pattern in _FILES for path in sorted(origin.glob(pattern))]:
        # The weights are saved in one file; the source's index would name others.
        is_index = path.name.endswith(".safetensors.index.json")
        if not is_index and (has_weights or not (folder / path.name).exists()):
            shutil.copy(path, folder / path.name)
    dtype = _weights_dtype(origin)
    if not has_weights:
        _cast_files(folder, dtype)
        return
    if lora is None or lora.merge:
        model = (model if lora is None else model.merge_and_unload()).to(dtype)
        _set_dtype(model.config, dtype)
    # The index of an earlier export in several files would point to files that are gone.
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    model.save_pretrained(folder)
    if lora is None or lora.merge:
        _say_no_mtp(folder)


def _source_folder(source: str, revision: str | None) -> Path:
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(source, revision=revision, allow_patterns=list(_FILES)))
    return folder


def _weights_dtype(folder: Path) -> torch.dtype:
    """The type of most tensors of a checkpoint; bfloat16 for one in a type that none trains in."""
    from safetensors import safe_open

    counts: Counter[torch.dtype] = Counter()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as weights:
            names = [weights.get_slice(key).get_dtype() for key in weights.keys()]  # noqa: SIM118
        counts.update(_DTYPES[name] for name in names if name in _DTYPES)
    return counts.most_common(1)[0][0] if counts else torch.bfloat16


def _set_dtype(config: Any, dtype: torch.dtype) -> None:
    for part in (config, config.text_config, config.vision_config):
        part.dtype = dtype


def _say_no_mtp(folder: Path) -> None:
    """Say in a configuration that there are no layers for speculative decoding."""
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    parts = [part for part in (config, config.get("text_config")) if part and part.get(_MTP)]
    for part in parts:
        part[_MTP] = 0
    if parts:
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _cast_files(folder: Path, dtype: torch.dtype) -> None:
    """Write a checkpoint's files again in ``dtype``: those of a sharded model are float32."""
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig

    files = [path for path in folder.glob("model*.safetensors") if path.is_file()]
    for path in files:
        tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
        save_file(tensors, path, metadata={"format": "pt"})
    if files:
        config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        _set_dtype(config, dtype)
        config.save_pretrained(folder)
        _say_no_mtp(folder)
