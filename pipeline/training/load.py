"""Load the model to train, and export the trained one."""

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from pipeline.engines.transformers.load import load_weights
from pipeline.training.optimizer import choose_parameters, with_lora
from schemas.job.finetune import FinetuneJob, Lora, TrainedModel

# All files of a published checkpoint except its weights.
_FILES = ("*.json", "*.jinja", "*.txt", "*.model")


def attention(model: TrainedModel, *, has_gpu: bool, is_bf16: bool) -> str:
    """The attention implementation of the job, or the one that ``auto`` means here.

    is_bf16: training computes in bfloat16, which FlashAttention needs.
    """
    import importlib.util

    if model.attn_implementation != "auto":
        return model.attn_implementation
    has_flash = importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if has_gpu and is_bf16 and has_flash else "sdpa"


def load_model(job: FinetuneJob, attn_implementation: str) -> nn.Module:
    """Load the checkpoint; only the parts that the job trains, or LoRA adapters, are trainable.

    Raises:
        ModelError: the checkpoint cannot be loaded, or ``lora.target_modules`` names no module.
    """
    model = load_weights(job.model, attn_implementation)
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
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in _source_files(source, revision):
        # The weights are saved in one file; the source's index would name others.
        is_index = path.name.endswith(".safetensors.index.json")
        if not is_index and (has_weights or not (folder / path.name).exists()):
            shutil.copy(path, folder / path.name)
    if not has_weights:
        return
    if lora is not None and lora.merge:
        model = model.merge_and_unload()
    # The index of an earlier export in several files would point to files that are gone.
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    model.save_pretrained(folder)


def _source_files(source: str, revision: str | None) -> list[Path]:
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(source, revision=revision, allow_patterns=list(_FILES)))
    return [path for pattern in _FILES for path in sorted(folder.glob(pattern))]
