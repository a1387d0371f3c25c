"""Load the model that learns, and write the one that has learnt."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.checkpoint import load_config
from pipeline.training.optimizer import choose_parameters, with_lora
from schemas.errors import ModelError
from schemas.finetune import FinetuneJob, Lora, TrainedModel

# Everything of a published checkpoint but its weights.
_FILES = ("*.json", "*.jinja", "*.txt", "*.model")


def attention(model: TrainedModel, *, has_gpu: bool, is_bf16: bool) -> str:
    """The attention implementation that ``auto`` means here.

    is_bf16: it computes in bfloat16, without which FlashAttention cannot.
    """
    import importlib.util

    if model.attn_implementation != "auto":
        return model.attn_implementation
    is_there = has_gpu and is_bf16 and importlib.util.find_spec("flash_attn") is not None
    return "flash_attention_2" if is_there else "sdpa"


def load_model(job: FinetuneJob, attn_implementation: str) -> nn.Module:
    """Load the checkpoint, with its context stretched and its parts chosen as the job says.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    spec = job.model
    try:
        config = load_config(spec.source, spec.revision, spec.yarn)
        model: nn.Module = AutoModelForImageTextToText.from_pretrained(
            spec.source,
            revision=spec.revision,
            config=config,
            dtype=getattr(torch, spec.dtype),
            attn_implementation=attn_implementation,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"cannot load {spec.source}: {error}") from None
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

    With adapters: merged into the weights, or apart (``adapter_config.json`` beside their weights).
    has_weights: the model has all of them; else they, and the configuration, are there already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in _source_files(source, revision):
        if has_weights or not (folder / path.name).exists():
            shutil.copy(path, folder / path.name)
    if not has_weights:
        return
    if lora is not None and lora.merge:
        model = model.merge_and_unload()
    # A checkpoint of several files has an index, which must not outlive its files.
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    model.save_pretrained(folder)


def _source_files(source: str, revision: str | None) -> list[Path]:
    folder = Path(source)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(source, revision=revision, allow_patterns=list(_FILES)))
    return [path for pattern in _FILES for path in sorted(folder.glob(pattern))]
