"""Load a Qwen3-VL checkpoint with transformers, to answer or to train."""

from typing import Any

import torch
from transformers import AutoModelForImageTextToText
from transformers.utils.logging import disable_progress_bar

from pipeline.engines.transformers.attention import FRAMES, GROUPED
from pipeline.model.checkpoint import load_config
from pipeline.model.prompter import Prompter
from schemas.errors import ModelError
from schemas.extras import install_command
from schemas.job.finetune import TrainedModel
from schemas.job.model import Model


def choose_device(model: Model) -> torch.device:
    """The device that ``model.device`` means on this machine.

    Raises:
        ModelError: cuda is set, and torch sees no GPU.
    """
    if model.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if model.device == "cuda" and not torch.cuda.is_available():
        raise ModelError("model.device is cuda, but torch sees no GPU here: set it to auto or cpu")
    return torch.device(model.device)


def load_weights(
    model: Model | TrainedModel, attn_implementation: str | dict[str, str]
) -> torch.nn.Module:
    """Load the checkpoint's weights on the CPU, with the context that ``model.yarn`` sets.

    Raises:
        ModelError: the checkpoint cannot be loaded.
    """
    disable_progress_bar()
    try:
        loaded: torch.nn.Module = AutoModelForImageTextToText.from_pretrained(
            model.source,
            revision=model.revision,
            config=load_config(model.source, model.revision, model.yarn),
            dtype="auto" if model.dtype == "auto" else getattr(torch, model.dtype),
            attn_implementation=attn_implementation,
            trust_remote_code=False,
            use_safetensors=True,  # a pickle could run code
        )
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(f"cannot load {model.source}: {error}") from None
    return loaded


def load_model(model: Model, device: torch.device) -> Any:
    """Load the checkpoint for inference on ``device``, its LoRA adapter merged into the weights.

    Raises:
        ModelError: the checkpoint or the adapter cannot be loaded.
    """
    attn: str | dict[str, str] = model.attn_implementation
    if attn == "sdpa":
        attn = {"": "sdpa", "text_config": GROUPED, "vision_config": FRAMES}
    loaded = load_weights(model, attn)
    if model.adapter is not None:
        loaded = _merge_adapter(loaded, model.adapter)
    return loaded.to(device).eval()


def _merge_adapter(loaded: torch.nn.Module, adapter: str) -> torch.nn.Module:
    try:
        from peft import PeftModel

        merged: torch.nn.Module = PeftModel.from_pretrained(loaded, adapter).merge_and_unload()
    except ImportError:
        raise ModelError(
            f"model.adapter needs the package peft: {install_command('finetune')}"
        ) from None
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"cannot load the adapter {adapter}: {error}") from None
    return merged


def end_token_ids(model: Any, prompter: Prompter) -> list[int]:
    """Token ids that end an answer: those of the checkpoint's generation config, and <|im_end|>."""
    eos = model.generation_config.eos_token_id
    ids = set(eos if isinstance(eos, list) else [eos] if eos is not None else [])
    ids.add(int(prompter.tokenizer.eos_token_id))
    return sorted(ids)
