"""A LoRA adapter as vLLM takes it: beside the weights, not merged into them.

Importing this module does not import vLLM.
"""

import json
from pathlib import Path
from typing import Any

from schemas.errors import ModelError
from schemas.job.model import Model
from schemas.shown import one_line

_RANKS = (8, 16, 32, 64, 128, 256, 512)
_INSTEAD = "merge the adapter into the checkpoint, or set model.engine to transformers"


def adapter_args(adapter: str) -> dict[str, Any]:
    """Arguments of ``AsyncEngineArgs`` for an adapter: hub id or local folder.

    Raises:
        ModelError: vLLM cannot load the adapter, or would leave a part of it out without a word.
    """
    config: dict[str, Any] = json.loads(_file(adapter, "adapter_config.json").read_text())
    rank = max([config.get("r") or 0, *(config.get("rank_pattern") or {}).values()])
    fitting = [known for known in _RANKS if known >= rank]
    if not fitting:
        raise ModelError(
            f"model.adapter: rank {rank} is over vLLM's maximum of {_RANKS[-1]}: {_INSTEAD}"
        )
    if config.get("modules_to_save"):
        raise ModelError(
            f"model.adapter has full modules ({config['modules_to_save']}), which vLLM does not "
            f"load: {_INSTEAD}"
        )
    if vision := _vision_modules(adapter):
        raise ModelError(
            f"model.adapter changes {len(vision)} modules of the vision tower, such as "
            f"{vision[0]}, which vLLM leaves out without a word: {_INSTEAD}"
        )
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": fitting[0]}


def adapter_request(model: Model) -> Any:
    """Make vLLM's ``LoRARequest`` for the job's adapter; None without an adapter."""
    if model.adapter is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("adapter", 1, model.adapter)


def _vision_modules(adapter: str) -> list[str]:
    """Modules of the vision tower for which the adapter has weights."""
    from safetensors import SafetensorError, safe_open

    path = _file(adapter, "adapter_model.safetensors")
    try:
        with safe_open(path, "pt") as weights:
            names = {name.split(".lora_")[0] for name in weights.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"model.adapter: {path} cannot be read ({error}): copy or save the adapter again"
        ) from None
    return sorted(name for name in names if "visual" in name.split("."))


def _file(adapter: str, name: str) -> Path:
    """The path of an adapter's file, downloaded if it is on the hub.

    Raises:
        ModelError: there is no such file, or the hub cannot be asked.
    """
    missing = (
        f"model.adapter: {adapter} has no {name}: save it with peft's `save_pretrained`, which "
        f"writes adapter_config.json and adapter_model.safetensors, or {_INSTEAD}"
    )
    if Path(adapter).is_dir():
        path = Path(adapter) / name
        if not path.is_file():
            raise ModelError(missing)
        return path
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(adapter, name))
    except (OSError, ValueError, EntryNotFoundError) as error:
        # The hub's answer that a file is missing; a "local" one says that it was not asked.
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise ModelError(missing) from None
        raise ModelError(
            f"model.adapter: {name} of {adapter} cannot be loaded: give a local folder, or a hub "
            "id that this machine can reach or has in its cache; the hub's client says: "
            f"{one_line(str(error))}"
        ) from None
