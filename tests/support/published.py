"""Checkpoints of the published sizes with random weights, which are made on the device."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from tests.support.paths import ROOT

# fmt: off
_VISION = {
    "small": {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096,
              "deepstack_visual_indexes": [5, 11, 17]},
    "large": {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304,
              "deepstack_visual_indexes": [8, 16, 24]},
}
_SIZES: dict[str, tuple[str, bool, dict[str, int]]] = {
    "2B": ("small", True, {"hidden_size": 2048, "intermediate_size": 6144,
                           "num_hidden_layers": 28, "num_attention_heads": 16}),
    "4B": ("small", True, {"hidden_size": 2560, "intermediate_size": 9728,
                           "num_hidden_layers": 36, "num_attention_heads": 32}),
    "8B": ("large", False, {"hidden_size": 4096, "intermediate_size": 12288,
                            "num_hidden_layers": 36, "num_attention_heads": 32}),
}
# fmt: on
"""Vision encoder, whether embedding and output are one matrix, and the language model.

Source: ``config.json`` of Qwen/Qwen3-VL-2B-, 4B- and 8B-Instruct.
"""

SIZES = tuple(_SIZES)

DEMO = ROOT / "jobs" / "demo_model"


def write_published(folder: Path, size: str) -> Path:
    """Write a checkpoint of a published size without weights; returns the folder.

    size: 2B, 4B or 8B. The tokenizer is the demo model's: a prompt has more text tokens than with
        the published one; vision tokens are the same.
    """
    vision, is_tied, numbers = _SIZES[size]
    shutil.copytree(DEMO, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    config = json.loads((DEMO / "config.json").read_text())
    rope = {"mrope_section": [24, 20, 20]}
    config["text_config"] |= numbers | {
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "dtype": "bfloat16",
        "rope_parameters": config["text_config"]["rope_parameters"] | rope,
    }
    config["vision_config"] |= _VISION[vision] | {
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": numbers["hidden_size"],
        "dtype": "bfloat16",
    }
    config |= {"dtype": "bfloat16", "tie_word_embeddings": is_tied, "use_cache": True}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


@contextmanager
def random_weights(device: str) -> Iterator[None]:
    """Let ``from_pretrained`` make models with random weights on a device, and read no weights."""

    def from_config(source: str, **options: Any) -> Any:
        config = options.get("config") or AutoConfig.from_pretrained(source)
        dtype = options.get("dtype", "auto")
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(
                config,
                dtype=config.dtype if dtype == "auto" else dtype,
                attn_implementation=options.get("attn_implementation"),
            )
        if options.get("output_loading_info"):
            nothing: list[str] = []
            keys = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
            return model, dict.fromkeys(keys, nothing)
        return model

    with patch.object(AutoModelForImageTextToText, "from_pretrained", from_config):
        yield
