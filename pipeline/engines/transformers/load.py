"""Load a checkpoint with transformers, to answer or to train."""

import importlib.util
import logging
from collections.abc import Collection
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForImageTextToText
from transformers.utils.logging import disable_progress_bar

from pipeline.engines.transformers.attention import FRAMES, GROUPED
from pipeline.model.checkpoint import load_config, quantization, quantized_problem
from pipeline.model.family import family_of
from pipeline.model.prompter import Prompter
from schemas.errors import ModelError
from schemas.extras import install_command
from schemas.job.finetune import TrainedModel
from schemas.job.model import Model

logger = logging.getLogger(__name__)

_HEAD = "lm_head.weight"
_MAX_NAMES = 3
"""Tensors that a message names."""


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
    model: Model | TrainedModel,
    attn_implementation: str | dict[str, str],
    device: torch.device | None = None,
    *,
    needs_head: bool = True,
) -> torch.nn.Module:
    """Load the checkpoint's weights, with the context that ``model.yarn`` sets.

    device: takes each tensor as it is read, so that the host's memory holds a few at a time; this
        needs the package accelerate, without which the weights stay on the CPU. None: the CPU.
    needs_head: whether the output embedding must be there; a checkpoint that embeds may lack it.

    Raises:
        ModelError: the checkpoint cannot be loaded, its weights are quantised, or its tensors are
            not exactly those of the model.
    """
    disable_progress_bar()
    is_direct = device is not None and importlib.util.find_spec("accelerate") is not None
    try:
        config = load_config(model.source, model.revision, model.yarn)
        if method := quantization(config.to_dict()):
            raise ModelError(quantized_problem(model.source, method))
        loaded, info = AutoModelForImageTextToText.from_pretrained(
            model.source,
            revision=model.revision,
            config=config,
            dtype="auto" if model.dtype == "auto" else getattr(torch, model.dtype),
            attn_implementation=attn_implementation,
            device_map={"": device} if is_direct else None,
            trust_remote_code=False,
            use_safetensors=True,  # a pickle could run code
            ignore_mismatched_sizes=True,  # else its error names none of them
            output_loading_info=True,
        )
    except torch.AcceleratorError:
        raise  # the device is broken, not the checkpoint
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"cannot load {model.source}: {error}") from None
    shapes = {
        f"{name} {list(found)} in place of {list(expected)}"
        for name, found, expected in info["mismatched_keys"]
    }
    _check_complete(
        f"the weights of {model.source} are not those of its config.json",
        {
            "missing": set(info["missing_keys"]) - (set() if needs_head else {_HEAD}),
            "of another shape": shapes,
            "unknown to the model": info["unexpected_keys"],
        },
    )
    weights: torch.nn.Module = loaded
    return weights


def _check_complete(problem: str, found: dict[str, Collection[str]]) -> None:
    """Check that all names of tensors agree: transformers draws at random what is missing.

    found: the names that do not, by what is wrong with them.

    Raises:
        ModelError: counts them, and names the first of each kind.
    """
    parts = [
        f"{len(names):,} {'tensor is' if len(names) == 1 else 'tensors are'} {kind} "
        f"({', '.join(sorted(names)[:_MAX_NAMES])}{', ...' if len(names) > _MAX_NAMES else ''})"
        for kind, names in found.items()
        if names
    ]
    if parts:
        raise ModelError(f"{problem}: {'; '.join(parts)}")


def load_model(model: Model, device: torch.device, *, needs_head: bool = True) -> Any:
    """Load the checkpoint for inference on ``device``, its LoRA adapter merged into the weights.

    needs_head: of ``load_weights``.

    Raises:
        ModelError: the checkpoint or the adapter cannot be loaded.
    """
    attn: str | dict[str, str] = model.attn_implementation
    if attn == "sdpa":
        # Layers that choose their keys read a mask with a row for each token.
        text = "sdpa" if _is_indexed(model) else GROUPED
        attn = {"": "sdpa", "text_config": text, "vision_config": FRAMES}
    at = device if device.type != "cpu" else None
    loaded = load_weights(model, attn, at, needs_head=needs_head)
    if model.adapter is not None:
        loaded = _merge_adapter(loaded, model.adapter)
    loaded = loaded.to(device).eval()
    dtype = next(loaded.parameters()).dtype
    if device.type == "cuda" and dtype == torch.float32 and model.dtype == "auto":
        logger.warning(
            "%s is stored in float32, which takes twice the memory of bfloat16 and several times "
            "its time: set model.dtype to bfloat16 unless you need float32",
            model.source,
        )
    return loaded


def _is_indexed(model: Model) -> bool:
    """Whether layers of the checkpoint choose their keys; False if nothing can be read of it."""
    try:
        return family_of(load_config(model.source, model.revision, None).to_dict()).is_indexed
    except (OSError, ValueError, KeyError):
        return False  # loading it says what is wrong


def _merge_adapter(loaded: torch.nn.Module, adapter: str) -> torch.nn.Module:
    """Merge a LoRA adapter into the weights.

    Raises:
        ModelError: it cannot be loaded, or its tensors are not those that its configuration names.
    """
    try:
        from peft import PeftConfig, PeftModel
    except ImportError:
        raise ModelError(
            f"model.adapter needs the package peft: {install_command('finetune')}"
        ) from None
    try:
        merged: Any = PeftModel(loaded, PeftConfig.from_pretrained(adapter, inference_mode=True))
        result = merged.load_adapter(adapter, "default")
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"cannot load the adapter {adapter}: {error}") from None
    _check_complete(
        f"the adapter {adapter} does not fit the model",
        {"missing": result.missing_keys, "unknown to the model": result.unexpected_keys},
    )
    weights: torch.nn.Module = merged.merge_and_unload()
    return weights


def end_token_ids(model: Any, prompter: Prompter) -> list[int]:
    """Token ids that end an answer: those of the checkpoint's generation config, and <|im_end|>."""
    eos = model.generation_config.eos_token_id
    ids = set(eos if isinstance(eos, list) else [eos] if eos is not None else [])
    ids.add(int(prompter.tokenizer.eos_token_id))
    return sorted(ids)
